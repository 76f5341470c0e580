"""Every kind of task has its metrics; those of counts come as mean and pooled."""

from cyto_dl.metrics import PerImageMetric, PooledMetric, default_metrics


def names_of(kind, activation):
    return list(default_metrics(kind, activation))


def test_every_kind_has_its_metrics():
    assert names_of("segmentation", "softmax") == ["dice", "dice_pooled", "iou", "iou_pooled"]
    assert names_of("regression", "identity") == ["pearson", "r2", "psnr", "psnr_affine", "ssim", "nrmse"]
    of_objects = ["ap50", "ap75", "ap90", "ap", "f1", "pq"]
    assert names_of("instances", "sigmoid") == [each for name in of_objects for each in (name, f"{name}_pooled")]


def test_what_is_called_pooled_is_pooled():
    for kind in ("segmentation", "instances"):
        for name, metric in default_metrics(kind, "sigmoid").items():
            assert isinstance(metric, PooledMetric if name.endswith("_pooled") else PerImageMetric)


def test_they_are_new_objects_for_every_task():
    first, second = default_metrics("segmentation", "sigmoid"), default_metrics("segmentation", "sigmoid")
    assert first["dice"] is not second["dice"]
    assert first["dice_pooled"].metric is not first["dice"]
