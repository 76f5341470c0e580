"""The data module: batches from manifests or arrays, and every mistake said before the first step."""

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from monai.transforms import CropForegroundd, NormalizeIntensityd, RandFlipd, RandGaussianNoised, SpatialPadd

from cyto_dl.config import instantiate
from cyto_dl.data import DataframeDatamodule, ReadImaged
from cyto_dl.data.image import write_image
from cyto_dl.errors import ConfigError, ImageError, ManifestError

PATCH = {2: [32, 32], 3: [8, 16, 16]}


def transforms(spatial_dims=2, *preprocess):
    return {
        "load": [ReadImaged(["raw", "seg"], spatial_dims)],
        "preprocess": [NormalizeIntensityd("raw"), *preprocess],
        "augment": [RandFlipd(["raw", "seg"], prob=0.5), RandGaussianNoised("raw", prob=1.0)],
    }


@pytest.fixture
def datamodule(manifest_folder):
    """A data module over images of blobs, in a folder that is made once."""
    folders = {}

    def make(spatial_dims=2, **changed):
        if spatial_dims not in folders:
            folders[spatial_dims] = manifest_folder(spatial_dims, train=3)
        arguments = {
            "path": folders[spatial_dims] / "manifest.csv",
            "columns": {"raw": "raw", "seg": "seg"},
            "split_column": "split",
            "transforms": transforms(spatial_dims),
            "patch_shape": PATCH[spatial_dims],
            "patches_per_image": 2,
            "batch_size": 4,
        }
        return DataframeDatamodule(**(arguments | changed))

    return make


def batches(loader, epoch=0):
    if epoch:
        loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(one, other):
    return all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]
        for a, b in zip(one, other, strict=True)
        for key in a
    )


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_training_sees_patches_and_validation_whole_images(datamodule, spatial_dims):
    data = datamodule(spatial_dims)
    data.setup("fit")
    found = batches(data.train_dataloader())
    assert [tuple(batch["raw"].shape) for batch in found] == [(size, 1, *PATCH[spatial_dims]) for size in (4, 2)]
    assert found[0]["raw"].dtype == found[0]["seg"].dtype == torch.float32
    assert type(found[0]["raw"]) is torch.Tensor
    assert all(path.endswith(".tif") for path in found[0]["path"])
    assert found[0]["spacing_um"] == [None] * 4
    (whole,) = batches(data.val_dataloader())
    assert whole["raw"].shape == whole["seg"].shape == (1, 1, *{2: (64, 64), 3: (16, 32, 32)}[spatial_dims])
    assert whole["raw"].mean().abs() < 1e-4  # preprocessed; a mean of float32 values
    assert equal([whole], batches(data.val_dataloader()))  # not augmented


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_number_of_workers_and_the_cache_change_nothing(datamodule, tmp_path, spatial_dims):
    foreground = {"foreground_key": "seg", "foreground_fraction": 0.5}
    expected = batches(datamodule(spatial_dims, **foreground).train_dataloader(), epoch=3)
    for changed in {"num_workers": 2}, {"cache_dir": tmp_path}, {"cache_dir": tmp_path, "num_workers": 2}:
        data = datamodule(spatial_dims, **foreground, **changed)
        assert equal(batches(data.train_dataloader(), epoch=3), expected)
    assert not equal(batches(data.train_dataloader(), epoch=4), expected)
    assert not equal(batches(datamodule(spatial_dims, seed=1).train_dataloader(), epoch=3), expected)


def test_prediction_does_without_targets_in_table_and_transforms(datamodule, tmp_path):
    image = np.random.default_rng(0).random((64, 64))
    rows = {"predict": [{"raw": image}]}
    data = datamodule(path=rows, split_column=None, transforms=transforms(2, SpatialPadd(["raw", "seg"], [70, 70])))
    data.setup("predict")
    (batch,) = batches(data.predict_dataloader())
    assert set(batch) == {"raw", "path", "spacing_um"}
    assert batch["raw"].shape == (1, 1, 70, 70)
    assert batch["path"] == ["predict[0]"]


@pytest.mark.parametrize("kind", ["mapping", "list", "table"])
def test_arrays_in_memory_are_trained_on_like_files(kind):
    rng = np.random.default_rng(0)
    rows = [
        {"raw": rng.random((40, 40)), "seg": rng.random((40, 40)) > 0.5, "split": split} for split in ("train", "valid")
    ]
    path = {"mapping": {row["split"]: [row] for row in rows}, "list": rows, "table": pd.DataFrame(rows)}[kind]
    data = DataframeDatamodule(
        path=path, columns={"raw": "raw", "seg": "seg"}, transforms=transforms(), patch_shape=[32, 32], batch_size=1
    )
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["raw"].shape == (1, 1, 32, 32)
    (whole,) = batches(data.val_dataloader())
    np.testing.assert_array_equal(whole["seg"][0, 0].numpy(), rows[1]["seg"])


def test_a_configuration_of_plain_values_builds_the_same_as_objects(datamodule):
    objects = datamodule()
    node = {
        "_target_": "cyto_dl.data.DataframeDatamodule",
        "_recursive_": False,
        "path": str(objects.path),
        "columns": {"raw": "raw", "seg": "seg"},
        "split_column": "split",
        "patch_shape": [32, 32],
        "batch_size": 4,
        "patches_per_image": 2,
        "pin_memory": False,
        "drop_last": False,
        "transforms": {
            "load": [{"_target_": "cyto_dl.data.ReadImaged", "keys": ["raw", "seg"], "spatial_dims": 2}],
            "preprocess": [{"_target_": "monai.transforms.NormalizeIntensityd", "keys": "raw"}],
            "augment": [
                {"_target_": "monai.transforms.RandFlipd", "keys": ["raw", "seg"], "prob": 0.5},
                {"_target_": "monai.transforms.RandGaussianNoised", "keys": "raw", "prob": 1.0},
            ],
        },
    }
    assert equal(batches(instantiate(node, "data").train_dataloader()), batches(objects.train_dataloader()))


def test_further_arguments_reach_the_data_loader(datamodule):
    loader = datamodule(num_workers=1, persistent_workers=True, prefetch_factor=3, drop_last=True).train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (1, True, 3)
    assert len(loader) == 1  # six patches in batches of four


def test_lists_per_split_are_full_control(datamodule):
    read, flip = ReadImaged(["raw", "seg"], 2), RandFlipd("raw", prob=1.0)
    data = datamodule(transforms={"train": [read, flip], "valid": [read]}, patch_shape=None, batch_size=1)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["raw"].shape == (1, 1, 64, 64)
    assert len(batches(data.val_dataloader())) == 1
    with pytest.raises(ConfigError, match="no list for the split 'test'"):
        data.test_dataloader()


def test_the_pixel_size_is_in_the_batch(tmp_path):
    write_image(tmp_path / "a.ome.tif", np.zeros((1, 8, 8), np.uint8), spacing_um=(0.2, 0.1))
    data = DataframeDatamodule(
        path={"predict": [{"raw": str(tmp_path / "a.ome.tif")}]},
        columns={"raw": "raw"},
        transforms=[ReadImaged("raw", 2)],
    )
    assert next(iter(data.predict_dataloader()))["spacing_um"] == [(0.2, 0.1)]


def damage_manifest(folder, change):
    table = change(pd.read_csv(folder / "manifest.csv"))
    table.to_csv(folder / "manifest.csv", index=False)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            lambda table: table.drop(columns="seg"),
            [r"no column 'seg' \(data\.columns\.seg\); the columns are raw, split"],
        ),
        (
            lambda table: table.assign(split="Train"),
            [r"'Train' is unknown in manifest\.csv:2.*Splits are train, valid"],
        ),
        (lambda table: table[:0], ["the manifest is empty"]),
        (
            lambda table: table.replace("raw_0.tif", "gone.tif"),
            [r"1 of 5 files in column 'raw' do not exist, e\.g\. .*gone"],
        ),
        (lambda table: table.replace("raw_4.tif", "raw_0.tif"), [r"in several splits: train \(manifest\.csv:2.*test"]),
    ],
)
def test_mistakes_in_the_table_are_said_when_it_is_read(datamodule, change, messages):
    data = datamodule()
    damage_manifest(data.path.parent, change)
    for message in messages:
        with pytest.raises(ManifestError, match=message):
            data.setup("fit")


def test_all_images_that_cannot_be_used_are_said_at_once(datamodule):
    data = datamodule(transforms={"load": [ReadImaged("raw", 2, channels=0), ReadImaged("seg", 2, channels=1)]})
    folder = data.path.parent
    write_image(folder / "two.ome.tif", np.zeros((2, 64, 64), np.uint8))
    write_image(folder / "small.ome.tif", np.zeros((2, 60, 64), np.uint8))
    write_image(folder / "tiny.ome.tif", np.zeros((2, 8, 8), np.uint8))
    (folder / "text.tif").write_text("no image")
    names = {"seg_0": "two.ome", "seg_1": "small.ome", "raw_2": "tiny.ome", "seg_2": "tiny.ome", "raw_3": "text"}
    damage_manifest(folder, lambda table: table.replace({f"{old}.tif": f"{new}.tif" for old, new in names.items()}))
    with pytest.raises(ManifestError) as caught:
        data.setup("fit")
    message = str(caught.value)
    assert "manifest.csv:3: 'raw'" in message  # another size
    assert "small.ome.tif) has (60, 64)" in message
    assert "tiny.ome.tif: the image's size is (8, 8), but data.patch_shape is (32, 32)" in message
    assert "text.tif: the file cannot be read" in message
    assert "seg_3.tif: channel 1 was asked for, but the file has only channel 0" in message
    assert message.count("\n  - ") == 4


def test_sizes_are_not_checked_in_files_when_preprocessing_changes_them(datamodule):
    data = datamodule(transforms=transforms(2, SpatialPadd(["raw", "seg"], [80, 80])), patch_shape=[70, 70])
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["raw"].shape == (4, 1, 70, 70)
    data = datamodule(transforms=transforms(2, SpatialPadd("raw", [80, 80])))
    data.setup("fit")
    with pytest.raises(ImageError, match=r"raw_\d\.tif\) has the size \(80, 80\), but 'seg' .*\(64, 64\)"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_worker_process_keeps_its_kind_and_message(datamodule, num_workers):
    def fail(item):
        raise ValueError("no such thing")

    data = datamodule(transforms={**transforms(), "preprocess": [fail]}, num_workers=num_workers)
    for loader in data.train_dataloader(), data.val_dataloader():
        with pytest.raises(ImageError, match=r"^[^ ]*raw_\d\.tif: the transform fail failed") as caught:
            next(iter(loader))
        assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"columns": {"raw": "raw", "seg": "seg", "edge": "seg"}}, r"no transform reads 'edge' of data\.columns"),
        ({"transforms": {"preprocess": [RandFlipd("raw")]}}, "holds random transforms"),
        (
            {"transforms": transforms(2, CropForegroundd(["raw", "seg"], source_key="seg"))},
            "CropForegroundd needs a target",
        ),
    ],
)
def test_mistakes_in_the_transforms_are_said_when_the_data_module_is_built(datamodule, changed, message):
    with pytest.raises(ConfigError, match=message):
        datamodule(**changed)


def test_a_split_that_is_not_there_is_said_with_those_that_are(datamodule):
    with pytest.raises(
        ManifestError, match=r"no rows of the split 'predict'; there are train \(3\), valid \(1\), test"
    ):
        datamodule().predict_dataloader()


def test_splits_that_a_training_needs_can_be_asked_for_before_anything_else(datamodule):
    data = datamodule()
    data.require("train", "valid", "test")
    with pytest.raises(ManifestError, match=r"no rows of the split 'predict'; there are train \(3\)"):
        data.require("train", "predict")


def test_images_of_different_sizes_in_a_batch_are_named():
    rows = {"train": [{"raw": np.zeros((8, size))} for size in (8, 9)]}
    data = DataframeDatamodule(path=rows, columns={"raw": "raw"}, transforms=[ReadImaged("raw", 2)], batch_size=2)
    with pytest.raises(ConfigError, match=r"different sizes of 'raw': .*train\[.\].*Set data\.patch_shape"):
        next(iter(data.train_dataloader()))


def test_images_of_different_dtypes_are_warned_of(caplog):
    rows = {"train": [{"raw": np.zeros((8, 8), dtype)} for dtype in (np.uint8, np.uint16)]}
    DataframeDatamodule(path=rows, columns={"raw": "raw"}, transforms=[ReadImaged("raw", 2)]).setup("fit")
    assert "'raw' differ in their dtype" in caplog.text


class Tiny(LightningModule):
    """Remembers what it saw, and may crash."""

    def __init__(self, crash_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(1, 1, 1)
        self.crash_at = crash_at
        self.seen = []

    def training_step(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == self.crash_at:
            raise RuntimeError("crash")
        self.seen.append(float(batch["raw"].sum()))
        return self.layer(batch["raw"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class SaveOnCrash(Callback):
    """Writes the checkpoint of a crash, between fetching a batch and its step."""

    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_that_crashed_continues_with_the_batch_at_which_it_did(datamodule, tmp_path, num_workers):
    def fit(module, *callbacks, ckpt_path=None):
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=3,
            logger=False,
            enable_checkpointing=False,
            limit_val_batches=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
        )
        data = datamodule(num_workers=num_workers, batch_size=1, cache_dir=str(tmp_path / "cache"))
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return module

    whole = fit(Tiny())
    crashed = Tiny(crash_at=(1, 3))
    with pytest.raises(RuntimeError, match="crash"):
        fit(crashed, SaveOnCrash(tmp_path / "crash.ckpt"))
    resumed = fit(Tiny(), ckpt_path=tmp_path / "crash.ckpt")
    assert crashed.seen + resumed.seen == whole.seen
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
