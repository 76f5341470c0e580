"""Label images: fractions and negative numbers are found in whole images, before a training."""

import numpy as np
import pytest
import torch
from monai.transforms import Lambdad

from cyto_dl.data import DataframeDatamodule, ReadImaged
from cyto_dl.data.image import write_image
from cyto_dl.data.labels import CheckLabelsd
from cyto_dl.errors import ImageError, ManifestError

SHAPE = {2: (1, 16, 16), 3: (1, 8, 16, 16)}


def labels(spatial_dims=2, *, dtype=np.uint16, wrong=None):
    image = np.zeros(SHAPE[spatial_dims], dtype)
    image[..., 2:6, 2:6], image[..., 8:12, 8:12] = 1, 2
    if wrong is not None:
        image[..., -1, -1] = wrong
    return image


class Counting:
    """Remembers the rows that were read, as a transform that concerns all keys."""

    def __init__(self):
        self.read = []

    def __call__(self, item):
        self.read.append(item["row"])
        return item


@pytest.fixture
def datamodule(tmp_path):
    """A data module over one image per split with the given labels, written to files and set up for all of them."""

    def make(*, spatial_dims=2, preprocess=(), stages=("fit", "test"), **targets):
        rows = {}
        for split, target in targets.items():
            files = {key: tmp_path / f"{key}_{split}.ome.tif" for key in ("raw", "seg")}
            write_image(files["raw"], np.random.default_rng(0).random(SHAPE[spatial_dims], np.float32))
            write_image(files["seg"], target)
            rows[split] = [{key: str(file) for key, file in files.items()}]
        data = DataframeDatamodule(
            path=rows,
            columns={"raw": "raw", "seg": "seg"},
            transforms={"load": [ReadImaged(["raw", "seg"], spatial_dims)], "preprocess": list(preprocess)},
            cache_dir=str(tmp_path / "cache"),
        )
        for stage in stages:
            data.setup(stage)
        return data

    return make


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("dtype", "wrong", "says"), [(np.int16, -3, "-3"), (np.float32, 0.3, "0.3")])
def test_wrong_labels_of_every_split_are_named_at_once_before_the_training(
    datamodule, spatial_dims, dtype, wrong, says
):
    image = labels(spatial_dims, dtype=dtype, wrong=wrong)
    good = labels(spatial_dims, dtype=dtype)
    data = datamodule(spatial_dims=spatial_dims, train=image, valid=good, test=image)
    with pytest.raises(ManifestError) as caught:
        data.check_labels(["seg"])
    num_wrong = np.count_nonzero(image == wrong)
    for split in ("train", "test"):
        assert f"seg_{split}.ome.tif: 'seg' is a label image, but {num_wrong} of its pixels" in str(caught.value)
    assert f"e.g. {says}. Save label images as whole numbers" in str(caught.value)
    assert "seg_valid" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_targets_that_are_no_labels_may_be_negative_and_fractions(datamodule, dtype):
    data = datamodule(train=labels(dtype=dtype, wrong=-3), valid=labels(dtype=np.float32, wrong=0.3))
    data.check_labels([])
    assert next(iter(data.train_dataloader()))["seg"].min() == -3


def test_only_images_whose_header_leaves_a_doubt_are_read_and_those_once(datamodule):
    counting = Counting()
    splits = {"train": labels(dtype=np.uint16), "valid": labels(dtype=np.int16), "test": labels(dtype=np.float32)}
    datamodule(preprocess=[counting], **splits).check_labels(["seg"])
    assert counting.read == ["valid[0]", "test[0]"]


def test_labels_are_looked_at_after_the_preprocessing(datamodule):
    repaired = datamodule(
        preprocess=[Lambdad("seg", lambda image: image.abs())], train=labels(dtype=np.int16, wrong=-3)
    )
    repaired.check_labels(["seg"])
    spoilt = datamodule(preprocess=[Lambdad("seg", lambda image: image * 0.5)], train=labels())
    spoilt.check_labels(["seg"])  # the file is fine, so it is not read yet
    with pytest.raises(ImageError, match=r"seg_train\.ome\.tif: 'seg' is a label image, but 16 of its pixels"):
        next(iter(spoilt.train_dataloader()))


def test_what_is_in_the_cache_is_not_read_again(datamodule, monkeypatch):
    data = datamodule(train=labels(dtype=np.int16), valid=labels(dtype=np.float32))
    data.check_labels(["seg"])
    monkeypatch.delattr("cyto_dl.data.transforms.read_image")  # whoever reads a file now fails
    data.check_labels(["seg"])
    assert next(iter(data.train_dataloader()))["seg"].max() == 2


def test_what_was_cached_of_another_kind_of_target_is_checked_too(datamodule):
    image = labels(dtype=np.float32, wrong=0.3)
    next(iter(datamodule(train=image).train_dataloader()))
    with pytest.raises(ManifestError, match="'seg' is a label image"):
        datamodule(train=image).check_labels(["seg"])


def test_wrong_labels_in_memory_are_named_by_their_row():
    blank = np.zeros((8, 8))
    rows = {"train": [{"raw": blank, "seg": np.full((8, 8), -1)}, {"raw": blank, "seg": blank}]}
    transforms = [ReadImaged(["raw", "seg"], 2)]
    columns = {"raw": "raw", "seg": "seg"}
    data = DataframeDatamodule(path=rows, columns=columns, transforms=transforms, num_workers=1)
    data.setup("fit")
    with pytest.raises(ManifestError, match=r"train\[0\]: train\[0\] 'seg': 'seg' is a label image.*e\.g\. -1"):
        data.check_labels(["seg", "elsewhere"])


def test_several_channels_are_probabilities_and_missing_targets_are_skipped():
    check = CheckLabelsd(["seg"])
    assert check({"seg": torch.full((2, 4, 4), 0.5)})["seg"].shape == (2, 4, 4)
    assert check({"raw": torch.zeros(1, 4, 4)}).keys() == {"raw"}
    with pytest.raises(ImageError, match=r"m\.csv:2: 'seg' is a label image"):
        check({"seg": torch.full((1, 4, 4), 0.5), "row": "m.csv:2"})


def test_the_random_numbers_of_the_training_stay_the_same(datamodule):
    data = datamodule(train=labels(dtype=np.int16))
    before = torch.get_rng_state()
    data.check_labels(["seg"])
    assert torch.equal(torch.get_rng_state(), before)
