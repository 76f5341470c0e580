"""Images that cannot be used, and unusual ones that can, through the data module."""

import logging

import numpy as np
import pytest
import torch
from monai.transforms import (
    AsDiscreted,
    Lambdad,
    NormalizeIntensityd,
    RandFlipd,
    ScaleIntensityRangePercentilesd,
)

from cyto_dl.data import DataframeDatamodule, ReadImaged
from cyto_dl.data.image import write_image
from cyto_dl.errors import ImageError, ManifestError

BOTH = ["raw", "seg"]
SHAPE = {2: (16, 16), 3: (8, 16, 16)}


def noise(spatial_dims=2, *, num_channels=1, seed=0):
    return np.random.default_rng(seed).random((num_channels, *SHAPE[spatial_dims]), np.float32)


@pytest.fixture
def datamodule(tmp_path):
    """A data module over rows of one split, of which each value is written to a file first."""

    def make(*rows, spatial_dims=2, num_channels=1, preprocess=(), in_memory=False, **arguments):
        table = []
        for number, row in enumerate(rows):
            files = {key: tmp_path / f"{key}_{number}.ome.tif" for key in row}
            for key, array in row.items():
                write_image(files[key], array)
            table.append(row if in_memory else {key: str(file) for key, file in files.items()})
        load = [ReadImaged("raw", spatial_dims, num_channels=num_channels), ReadImaged("seg", spatial_dims)]
        steps = {"load": load, "preprocess": list(preprocess), "augment": [RandFlipd(BOTH, prob=0.5)]}
        return DataframeDatamodule(
            path={"train": table},
            columns={key: key for key in BOTH},
            transforms=steps,
            **({"patch_shape": [8] * spatial_dims, "batch_size": 1} | arguments),
        )

    return make


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("key", BOTH)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_name_the_file(datamodule, spatial_dims, key, value):
    row = {"raw": noise(spatial_dims), "seg": noise(spatial_dims)}
    row[key].flat[:3] = value
    normalize = ScaleIntensityRangePercentilesd("raw", lower=1, upper=99, b_min=0, b_max=1)
    data = datamodule(row, spatial_dims=spatial_dims, preprocess=[normalize])
    data.setup("fit")
    with pytest.raises(ImageError, match=rf"{key}_0\.ome\.tif: \d+ of \d+ pixels of '{key}' are NaN or infinite\. Rep"):
        next(iter(data.train_dataloader()))


def test_nothing_is_cached_of_an_image_with_nan(datamodule, tmp_path):
    row = {"raw": noise() * np.nan, "seg": noise()}
    data = datamodule(row, cache_dir=str(tmp_path / "cache"), num_workers=1)
    for _ in range(2):
        with pytest.raises(ImageError, match=r"raw_0\.ome\.tif: 256 of 256 pixels of 'raw' are NaN"):
            next(iter(data.train_dataloader()))
    assert list((tmp_path / "cache").glob("*.pt")) == []


def test_the_transform_that_makes_nan_of_a_good_image_is_named(datamodule):
    data = datamodule({"raw": noise() - 0.5, "seg": noise()}, preprocess=[Lambdad("raw", torch.log)])
    with pytest.raises(ImageError, match=r"raw_0.*'raw' are NaN or infinite after the transform Lambdad"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize("hide", [torch.nan_to_num, lambda image: image > 0.5])
def test_a_transform_cannot_hide_nan(datamodule, hide):
    row = {"raw": noise(), "seg": noise()}
    row["raw"][0, :2] = np.nan
    data = datamodule(row, preprocess=[Lambdad("raw", hide)])
    with pytest.raises(ImageError, match=r"raw_0\.ome\.tif: .* of 'raw' are NaN"):
        next(iter(data.train_dataloader()))


def test_arrays_in_memory_with_nan_are_all_named_before_training(datamodule):
    rows = [{"raw": noise(seed=number), "seg": noise()} for number in range(4)]
    rows[1]["raw"][0, 0, 0] = np.nan
    rows[3]["seg"][:] = np.inf
    with pytest.raises(ManifestError) as caught:
        datamodule(*rows, in_memory=True).setup("fit")
    assert "train[1] 'raw': 1 of 256 pixels of 'raw' are NaN or infinite" in str(caught.value)
    assert "train[3] 'seg': 256 of 256 pixels of 'seg' are NaN or infinite" in str(caught.value)
    assert str(caught.value).count("\n  - ") == 2


def test_nan_in_a_channel_that_is_not_read_does_not_matter():
    raw = noise(num_channels=2)
    raw[1] = np.nan
    data = DataframeDatamodule(
        path={"train": [{"raw": raw}]}, columns={"raw": "raw"}, transforms=[ReadImaged("raw", 2, channels=0)]
    )
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["raw"].shape == (1, 1, 16, 16)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("in_memory", [False, True])
def test_constant_and_empty_images_are_legitimate(datamodule, spatial_dims, in_memory, caplog):
    shape = (1, *SHAPE[spatial_dims])
    rows = [
        {"raw": np.full(shape, 7, np.uint16), "seg": np.zeros(shape, np.uint8)},  # constant, without any object
        {"raw": np.zeros(shape, np.uint16), "seg": np.ones(shape, np.uint8)},  # nothing but foreground
    ]
    preprocess = [
        ScaleIntensityRangePercentilesd("raw", lower=1, upper=99.8, b_min=0, b_max=1, clip=True, channel_wise=True),
        NormalizeIntensityd("raw", channel_wise=True),
        AsDiscreted("seg", threshold=0.5),
    ]
    foreground = {"foreground_key": "seg", "foreground_fraction": 1.0}
    caplog.set_level(logging.ERROR)
    with np.errstate(all="raise"):
        data = datamodule(*rows, spatial_dims=spatial_dims, preprocess=preprocess, in_memory=in_memory, **foreground)
        data.setup("fit")
        batches = list(data.train_dataloader())
    assert {float(batch["seg"].mean()) for batch in batches} == {0.0, 1.0}
    assert all(batch["raw"].eq(0).all() for batch in batches)


def test_one_channel_where_three_are_configured_is_said_before_training(datamodule):
    rows = [{"raw": noise(num_channels=3), "seg": noise()}, {"raw": noise(), "seg": noise()}]
    with pytest.raises(ManifestError, match=r"raw_1\.ome\.tif: 'raw' has 1 channel, but the configuration expects 3"):
        datamodule(*rows, num_channels=3).setup("fit")


def test_a_2d_image_in_a_3d_experiment_is_said_before_training(datamodule):
    rows = [{"raw": noise(3), "seg": noise(3)}, {"raw": noise(2), "seg": noise(3)}]
    with pytest.raises(ManifestError, match=r"raw_1\.ome\.tif: spatial_dims is 3, but .*a 2-D image"):
        datamodule(*rows, spatial_dims=3).setup("fit")


def test_a_stack_in_a_2d_experiment_is_said_before_training(datamodule):
    with pytest.raises(ManifestError, match=r"raw_0\.ome\.tif: the file has 8 planes: give spatial_dims 3, or one pl"):
        datamodule({"raw": noise(3), "seg": noise(2)}).setup("fit")


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_labels_that_float32_would_merge_are_refused_with_the_file(datamodule, dtype):
    labels = np.full((1, *SHAPE[2]), 2**24, dtype)
    row = {"raw": noise(), "seg": labels}
    assert next(iter(datamodule(row).train_dataloader()))["seg"].eq(2**24).all()
    labels[0, 0, 0] += 1
    with pytest.raises(ImageError, match=r"seg_0\.ome\.tif: 'seg' has whole numbers up to 16777217, .*relabel_seque"):
        next(iter(datamodule(row).train_dataloader()))


def test_a_mistake_that_many_images_share_hides_no_other():
    rows = [{"raw": np.zeros((8, 8)), "seg": np.zeros((8, 9))} for _ in range(50)]
    rows.append({"raw": np.zeros((3, 8, 8)), "seg": np.full((8, 8), np.nan)})
    data = DataframeDatamodule(
        path={"train": rows}, columns={"raw": "raw", "seg": "seg"}, transforms=[ReadImaged(["raw", "seg"], 2)]
    )
    with pytest.raises(ManifestError) as caught:
        data.setup("fit")
    assert str(caught.value).count("'seg' (train[") == 20
    assert "... and 30 more" in str(caught.value)
    assert "train[50] 'seg': 64 of 64 pixels of 'seg' are NaN" in str(caught.value)
    assert "differ in their number of channels" in str(caught.value)
