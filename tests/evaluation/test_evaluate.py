"""An evaluation measures what it says, on every image, and compares with Otsu's threshold."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics import Metric

from cyto_dl.data.image import read_image
from cyto_dl.errors import ConfigError, ImageError, ManifestError
from cyto_dl.evaluation import evaluate
from cyto_dl.metrics import Dice
from tests.bundle.tiny import experiment, predictor_of, write_images

SPLITS = ("train", "valid", "test", "test", "test")


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def setup(request, tmp_path):
    """Images, an experiment and a predictor whose `seg` is the images' bright part, whose `dist` repeats the image."""
    config = experiment(write_images(tmp_path, request.param, splits=SPLITS), request.param)
    config["model"]["backbone"] = {"_target_": "torch.nn.Identity"}
    for head in config["model"]["task_heads"].values():
        head["head"] = {
            "_target_": f"torch.nn.Conv{request.param}d",
            "in_channels": 1,
            "out_channels": 1,
            "kernel_size": 1,
        }
    predictor = predictor_of(config)
    with torch.no_grad():
        for head, (weight, bias) in {"seg": (10, -5), "dist": (1, 0)}.items():
            predictor.network.heads[head].weight.fill_(weight)
            predictor.network.heads[head].bias.fill_(bias)
    return tmp_path / "manifest.csv", config, predictor


def test_known_predictions_have_known_metrics(setup):
    manifest, config, predictor = setup
    evaluation = evaluate(predictor, config, manifest=manifest)
    assert len(evaluation.images) == 3
    assert evaluation.summary["test/seg/dice"] == pytest.approx(1)
    assert evaluation.summary["test/dist/pearson"] == pytest.approx(1)
    assert evaluation.summary["test/seg/otsu_dice"] == pytest.approx(1)  # two levels with a wide gap between them
    assert set(evaluation.summary) == {
        *(f"test/seg/{name}{pooled}" for name in ("dice", "iou", "otsu_dice") for pooled in ("", "_pooled")),
        *(f"test/dist/{name}" for name in ("pearson", "r2", "psnr", "psnr_affine", "ssim", "nrmse")),
    }


def test_values_are_those_of_the_metrics_on_what_the_predictor_gives(setup):
    manifest, config, predictor = setup
    with torch.no_grad():
        predictor.network.heads["seg"].bias.fill_(9.5)  # much is false now
    evaluation = evaluate(predictor, config, manifest=manifest, split="valid")
    folder = manifest.parent
    outputs = predictor.activations(read_image(folder / "raw_1.ome.tif", **predictor.input.load))
    target = torch.from_numpy(read_image(folder / "seg_1.ome.tif", **predictor.input.load).array.astype(np.float32))
    expected = Dice().per_image(outputs["seg"][None], target[None]).item()
    row = evaluation.images.iloc[0]
    assert row["seg/dice"] == pytest.approx(expected)
    assert expected < 0.9
    assert evaluation.summary["valid/seg/dice"] == pytest.approx(expected)
    assert row["path"].endswith("raw_1.ome.tif")
    columns = list(evaluation.images.columns)
    assert (columns[0], columns[-1]) == ("path", "seconds")


def test_metrics_that_the_experiment_names_are_used(setup):
    manifest, config, predictor = setup
    config["model"]["task_heads"]["dist"]["metrics"] = {
        "agreement": {"_target_": "cyto_dl.metrics.Pearson"},
        "error": {"_target_": "torchmetrics.MeanSquaredError"},
    }
    summary = evaluate(predictor, config, manifest=manifest).summary
    assert summary["test/dist/agreement"] == pytest.approx(1)
    assert summary["test/dist/error"] == pytest.approx(0, abs=1e-10)
    assert "test/dist/pearson" not in summary


def test_resampling_is_undone_before_targets_are_compared(setup):
    manifest, config, _ = setup
    spatial_dims = config["spatial_dims"]
    zoom = {"_target_": "monai.transforms.Zoomd", "keys": ["raw", "seg", "dist"], "zoom": 0.5, "keep_size": False}
    config["data"]["transforms"]["preprocess"].insert(0, zoom)
    predictor = predictor_of(config)
    images = evaluate(predictor, config, manifest=manifest).images
    assert len(images) == 3
    size = read_image(manifest.parent / "raw_2.ome.tif", spatial_dims=spatial_dims).array.shape
    assert predictor.predict(np.zeros(size, np.uint16) + 3)["seg"].shape == size


def test_a_metric_that_is_not_defined_is_left_out_and_json_stays_valid(setup):
    manifest, config, predictor = setup
    with torch.no_grad():
        predictor.network.heads["dist"].weight.fill_(0)  # a constant has no correlation
    evaluation = evaluate(predictor, config, manifest=manifest)
    assert evaluation.images["dist/pearson"].isna().all()
    assert "test/dist/pearson" not in evaluation.summary
    json.dumps(evaluation.summary, allow_nan=False)


def test_figures_show_best_median_and_worst_image_of_each_head(setup):
    manifest, config, predictor = setup
    with torch.no_grad():
        predictor.network.heads["seg"].bias.fill_(9.5)
    evaluation = evaluate(predictor, config, manifest=manifest)
    figures = evaluation.figures["seg"]
    assert [figure.rank for figure in figures] == ["best", "median", "worst"]
    values = evaluation.images.set_index("path")["seg/dice"]
    assert figures[0].path == values.idxmax()
    assert figures[2].path == values.idxmin()
    assert [title for title, _ in figures[0].pictures] == [
        "input",
        "target",
        "prediction (probability)",
        "missed blue, false red",
    ]
    single = evaluate(predictor, config, manifest=manifest, split="valid").figures["dist"]
    assert [figure.rank for figure in single] == ["best"]


def test_images_in_memory_are_evaluated_like_files(setup):
    manifest, config, predictor = setup
    expected = evaluate(predictor, config, manifest=manifest).summary
    load = predictor.input.load
    rows = [
        {
            "raw": read_image(manifest.parent / f"raw_{n}.ome.tif", **load).array,
            "seg": read_image(manifest.parent / f"seg_{n}.ome.tif", **load).array,
            "split": "test",
        }
        for n in (2, 3, 4)
    ]
    assert evaluate(predictor, config, manifest=rows).summary == pytest.approx(expected)


def test_a_split_without_images_is_refused_with_the_splits_there_are(setup):
    manifest, config, predictor = setup
    with pytest.raises(ManifestError, match="no image of the split 'predict'; it has train, valid, test"):
        evaluate(predictor, config, manifest=manifest, split="predict")


def test_an_unreadable_image_stops_the_evaluation(setup):
    manifest, config, predictor = setup
    (manifest.parent / "raw_3.ome.tif").write_bytes(b"broken")
    with pytest.raises(ImageError, match="raw_3"):
        evaluate(predictor, config, manifest=manifest)


def test_a_target_of_another_size_is_named(setup):
    manifest, config, predictor = setup
    smaller = read_image(manifest.parent / "seg_2.ome.tif", **predictor.input.load).array[..., :-2]
    np.save(manifest.parent / "small.npy", smaller)
    table = pd.read_csv(manifest)
    table.loc[2, "seg"] = "small.npy"
    table.to_csv(manifest, index=False)
    with pytest.raises(ImageError, match=r"manifest.csv:4: the target 'seg' has .*raw_2"):
        evaluate(predictor, config, manifest=manifest)


def test_an_experiment_without_the_models_heads_is_refused(setup):
    manifest, config, predictor = setup
    del config["model"]["task_heads"]["dist"]
    with pytest.raises(ConfigError, match="says nothing about the model's head 'dist'"):
        evaluate(predictor, config, manifest=manifest)


def test_metrics_count_every_image_the_same(setup):
    manifest, config, predictor = setup
    evaluation = evaluate(predictor, config, manifest=manifest)
    assert evaluation.summary["test/seg/iou"] == pytest.approx(evaluation.images["seg/iou"].mean())
    low, high = evaluation.intervals["test/seg/iou"]
    assert low <= evaluation.summary["test/seg/iou"] <= high


def test_a_perfect_prediction_has_no_mean_psnr_and_json_stays_valid(setup):
    manifest, config, predictor = setup
    del config["data"]["transforms"]["preprocess"][0]  # `dist` then repeats the intensities, without rounding
    del config["model"]["inference"]
    exact = predictor_of(config)
    exact.network.load_state_dict(predictor.network.state_dict())
    evaluation = evaluate(exact, config, manifest=manifest)
    assert np.isinf(evaluation.images["dist/psnr"]).all()
    assert "test/dist/psnr" not in evaluation.summary
    assert evaluation.summary["test/dist/nrmse"] == 0
    json.dumps([evaluation.summary, evaluation.intervals], allow_nan=False)
    assert len(evaluation.figures["dist"]) == 3


class Brightness(Metric):
    """The mean of the prediction, of which nobody says whether more is better."""

    higher_is_better = None

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, prediction, target):
        self.total += prediction.mean()

    def compute(self):
        return self.total


@pytest.mark.parametrize(
    ("metric", "ranks"),
    [
        ("torchmetrics.MeanSquaredError", ["best", "median", "worst"]),  # lower is better
        (f"{__name__}.Brightness", ["highest", "median", "lowest"]),
    ],
)
def test_figures_are_ranked_by_what_the_metric_says_is_better(setup, metric, ranks):
    manifest, config, predictor = setup
    with torch.no_grad():
        predictor.network.heads["dist"].weight.fill_(3)
    config["model"]["task_heads"]["dist"]["metrics"] = {"value": {"_target_": metric}}
    evaluation = evaluate(predictor, config, manifest=manifest)
    figures = evaluation.figures["dist"]
    assert [figure.rank for figure in figures] == ranks
    values = evaluation.images.set_index("path")["dist/value"]
    assert figures[0].path == (values.idxmin() if ranks[0] == "best" else values.idxmax())


def test_a_head_without_metrics_has_no_figures(setup):
    manifest, config, predictor = setup
    config["model"]["task_heads"]["dist"]["metrics"] = {}
    assert evaluate(predictor, config, manifest=manifest).figures["dist"] == []


def test_how_the_model_was_run_is_said_and_by_which_code(setup, monkeypatch):
    manifest, config, predictor = setup
    monkeypatch.setenv("CYTO_DL_GIT_COMMIT", "abc123")
    predictor.metadata["inference"]["augment"] = "flips"
    provenance = evaluate(predictor, config, manifest=manifest).provenance
    assert provenance["evaluation_commit"] == "abc123"
    assert provenance["inference"] == {"roi_size": config["model"]["inference"]["roi_size"], "augment": "flips"}
    predictor.metadata["ensemble"] = ["weights.safetensors", "weights_2.safetensors"]
    assert evaluate(predictor, config, manifest=manifest).provenance["inference"]["networks"] == 2
