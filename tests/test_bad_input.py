"""Bad input through the commands that people type: one message that names the culprit, its exit code, nothing left."""

import logging
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from PIL import Image

from cyto_dl.bundle import export_bundle
from cyto_dl.cli import main
from cyto_dl.errors import CytoDLError
from cyto_dl.steps import prepare_step
from tests.bundle.tiny import checkpoint_of, experiment, write_images


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs `cyto-dl ...` in an empty folder; returns the exit code, what stderr says, and what it left there."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["cyto-dl"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        left = [str(path.relative_to(folder)) for path in folder.rglob("*")]
        return end.value.code, capfd.readouterr().err, left

    yield run
    root.handlers[:], root.level = handlers, level  # hydra sets them up anew


@pytest.fixture
def images(manifest_folder):
    """A folder of good images with a manifest, which a test spoils."""
    return manifest_folder(2, train=2, valid=1, test=1)


def training(folder, *overrides):
    own = ["trainer=cpu", "target_col=seg", "data.cache_dir=null", "data.patch_shape=[32,32]"]
    own += [f"data.path={folder / 'manifest.csv'}", "extras.print_config=false", "logger=csv"]
    return ["train", "experiment=im2im/segmentation", *own, *overrides]


def one_error(message):
    return len(re.findall(r"^\w*[Ee]rror\b", message, re.MULTILINE)) == 1


def edit_manifest(folder, change):
    path = folder / "manifest.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


def set_split(table):
    table.loc[1, "split"] = "Train"
    return table


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_truncated_png(folder, table):
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8)).save(folder / "seg_1.png")
    cut_in_half(folder / "seg_1.png")
    return table.assign(seg=table["seg"].replace("seg_1.tif", "seg_1.png"))


# what is wrong: how the good data are spoilt, and what the message must name
DATA = {
    "a missing column": (
        lambda folder: edit_manifest(folder, lambda table: table.drop(columns="seg")),
        ["manifest.csv", "'seg'", "raw, split"],
    ),
    "a truncated image": (
        lambda folder: cut_in_half(folder / "raw_1.tif"),
        ["manifest.csv:3", "raw_1.tif"],
    ),
    "text that is named .tif": (
        lambda folder: (folder / "raw_1.tif").write_text("not an image"),
        ["manifest.csv:3", "raw_1.tif"],
    ),
    "a truncated PNG": (
        lambda folder: edit_manifest(folder, lambda table: with_truncated_png(folder, table)),
        ["manifest.csv:3", "seg_1.png"],
    ),
    "an unknown split": (
        lambda folder: edit_manifest(folder, set_split),
        ["manifest.csv:3", "'Train'", "train, valid, test, predict"],
    ),
    "a target of another size": (
        lambda folder: tifffile.imwrite(folder / "seg_1.tif", np.zeros((40, 64), np.uint8)),
        ["manifest.csv:3", "raw_1.tif", "seg_1.tif", "(64, 64)", "(40, 64)"],
    ),
    "an empty manifest": (
        lambda folder: edit_manifest(folder, lambda table: table.iloc[:0]),
        ["manifest.csv", "empty"],
    ),
    "a manifest of no bytes": (
        lambda folder: (folder / "manifest.csv").write_bytes(b""),
        ["manifest.csv"],
    ),
    "a missing file": (
        lambda folder: (folder / "seg_1.tif").unlink(),
        ["manifest.csv:3", "'seg'", "seg_1.tif"],
    ),
    "a volume among planes": (
        lambda folder: tifffile.imwrite(
            folder / "raw_1.tif", np.zeros((5, 64, 64), np.uint16), metadata={"axes": "ZYX"}
        ),
        ["manifest.csv:3", "raw_1.tif", "5 planes", "spatial_dims"],
    ),
    "one image in two splits": (
        lambda folder: edit_manifest(
            folder, lambda table: table.assign(raw=table["raw"].replace("raw_2.tif", "raw_0.tif"))
        ),
        ["manifest.csv:2", "manifest.csv:4", "raw_0.tif"],
    ),
}


@pytest.mark.parametrize("wrong", DATA)
def test_training_refuses_bad_data(wrong, images, command):
    spoil, named = DATA[wrong]
    spoil(images)
    code, message, left = command(*training(images))
    assert code == 2
    assert all(name in message for name in named), message
    assert "Traceback" not in message and one_error(message)
    assert left == []


@pytest.mark.parametrize("wrong", DATA)
def test_preparation_refuses_bad_data(wrong, images, tmp_path):
    spoil, named = DATA[wrong]
    spoil(images)
    dataset = tmp_path / "dataset"
    with pytest.raises(CytoDLError) as error:
        prepare_step(str(images / "manifest.csv"), str(dataset), source_col="raw", target_cols=["seg"], spatial_dims=2)
    assert error.value.exit_code == 2
    assert all(name in str(error.value) for name in named), error.value
    assert not dataset.exists() or not any(dataset.iterdir())


# overrides of a good experiment -> what the message must name
OVERRIDES = {
    "source_channel=3": ["manifest.csv:2", "raw_0.tif", "channel 3", "channel 0"],
    "data.patch_shape=[512,512]": ["manifest.csv:2", "(64, 64)", "data.patch_shape", "(512, 512)"],
    "raw_im_channels=3": ["raw_0.tif", "1 channel", "raw_im_channels"],
    "experiment=im2im/segmentatoin": ["im2im/segmentatoin", "Did you mean im2im/segmentation", "im2im/multitask, "],
    "trainer=cpuu": ["trainer=cpuu", "ddp_sim"],
    "trainer.max_epoch=3": ["trainer.max_epoch", "Did you mean max_epochs"],
    "+data.num_worker=1": ["data.num_worker"],
    "data.path=nowhere.csv": ["nowhere.csv", "data.path"],
    "data.path=???": ["data.path"],
    "model.backbone._target_=monai.networks.nets.DynUNett": ["DynUNett", "Did you mean DynUNet", "model.backbone"],
    "model.backbone._target_=monia.networks.nets.DynUNet": ["No module named 'monia'", "model.backbone"],
    "data.transforms.preprocess.0._target_=monai.transforms.Flipdd": ["Flipdd", "data.transforms.preprocess[0]"],
    "+model.backbone.depth=3": ["depth", "model.backbone"],
    "+model.optimizer.generator.depth=3": ["depth", "model.optimizer.generator"],
    "optimized_metric=valid/seg/dise": ["valid/seg/dise", "valid/seg/dice"],
    "optimized_metric=val/seg/dice": ["val/seg/dice", "Did you mean valid/seg/dice"],
    "trainer.max_epochs=ten": ["trainer.max_epochs is 'ten'", "a whole number or null"],
    "trainer.accelerator=tpu": ["trainer.accelerator is 'tpu'", "cpu"],
    "trainer.devices=two": ["trainer", "Trainer", "should be an int > 0"],
    "data.patch_shape=[30,30]": ["model.backbone", "1, 30, 30)", "data.patch_shape"],
    "ckpt_path=nowhere.ckpt": ["ckpt_path", "nowhere.ckpt"],
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_training_refuses_a_wrong_override(override, images, command):
    code, message, left = command(*training(images, override))
    assert code == 2
    assert all(name in message for name in OVERRIDES[override]), message
    assert "Traceback" not in message and "HYDRA_FULL_ERROR" not in message and one_error(message)
    assert left == []


def test_a_mistake_is_told_before_the_configuration_is_shown(images, command, capfd):
    given = [each for each in training(images, "trainer.max_epochs=ten") if not each.startswith("extras")]
    code, message, _ = command(*given)
    assert code == 2 and message.startswith("ConfigError: ")
    assert capfd.readouterr().out == ""


def test_a_sweep_with_a_broken_table_says_so_once(images, command):
    (images / "seg_1.tif").unlink()
    action, *given = training(images, "seed=1,2")
    code, message, left = command(action, "-m", *given)
    assert (code, left) == (2, [])
    assert message.count("seg_1.tif") == 1 and "Traceback" not in message


def test_an_experiment_of_ones_own_that_is_not_yaml_is_named_with_its_line(command, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndata: {path: ???}\n")
    code, message, left = command("train", "--config-dir", tmp_path, "experiment=mine")
    assert (code, left) == (2, [])
    assert message.startswith("ConfigError: ") and "mine.yaml" in message and "line 2" in message, message
    assert one_error(message) and "Traceback" not in message


def test_an_image_with_three_colours_for_one_channel_is_named(images, command):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(images / "raw_1.png")
    edit_manifest(images, lambda table: table.assign(raw=table["raw"].replace("raw_1.tif", "raw_1.png")))
    code, message, left = command(*training(images))
    assert (code, left) == (2, [])
    assert "manifest.csv:3" in message and "raw_1.png" in message and "3 channels" in message


def test_training_does_not_begin_without_the_mlflow_server_that_it_was_given(images, command, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, message, left = command(*training(images, "logger=mlflow"))
    assert code == 3
    assert f"http://127.0.0.1:{port}" in message and "Traceback" not in message
    assert left == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    checkpoint_of(experiment(write_images(folder)), folder / "run/checkpoints/best.ckpt")
    return export_bundle(folder / "run", folder / "bundle"), folder / "raw_0.ome.tif"


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(exported[0], tmp_path / "bundle"))


def edit_bundle(bundle, change):
    document = yaml.safe_load((bundle / "bundle.yaml").read_text())
    change(document)
    (bundle / "bundle.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


FILES = ["bundle.yaml", "weights.safetensors", "sample.npz", "model.onnx", "preview.png", "README.md"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [cut_in_half, Path.unlink])
def test_a_bundle_with_a_damaged_file_predicts_nothing(file, damage, bundle, exported, command):
    damage(bundle / file)
    code, message, left = command("predict", bundle, exported[1], "--output", "predictions")
    assert (code, left) == (2, [])
    assert message.startswith("BundleError: ") and str(bundle) in message and file in message
    assert "Traceback" not in message


# where foreign code is asked for: how the bundle asks for it
FOREIGN = {
    "model.backbone": lambda document, target: document["model"]["backbone"].update(_target_=target),
    "model.backbone.extra[0].deep": lambda document, target: document["model"]["backbone"].update(
        extra=[{"deep": {"_target_": target, "command": "touch pwned"}}]
    ),
    "preprocess[": lambda document, target: document["preprocess"].append({"_target_": target, "keys": "raw"}),
    "postprocess.seg": lambda document, target: document["postprocess"].update(seg={"_target_": target}),
}
TARGETS = [
    "os.system",
    "builtins.eval",
    "torch.load",
    "torch.nn.modules.lazy.torch.load",
    "monai.transforms.Lambdad",
    "no_such_module.Net",
]


@pytest.mark.parametrize("where", FOREIGN)
@pytest.mark.parametrize("target", TARGETS)
def test_a_bundle_that_asks_for_foreign_code_predicts_nothing(where, target, bundle, exported, command):
    edit_bundle(bundle, lambda document: FOREIGN[where](document, target))
    code, message, left = command("predict", bundle, exported[1], "--output", "predictions")
    assert (code, left) == (2, [])
    assert message.startswith("BundleError: ") and f"'{target}'" in message and where in message
    assert "--allow-target" in message and "Traceback" not in message


def test_a_bundle_of_a_newer_format_is_refused_by_name(bundle, exported, command):
    edit_bundle(bundle, lambda document: document.update(format_version=99))
    code, message, left = command("predict", bundle, exported[1])
    assert (code, left) == (2, [])
    assert "format 99" in message and "Update CytoDL" in message


@pytest.mark.parametrize(
    ("table", "named"),
    [("image,mask\na.tif,b.tif\n", ["'raw'", "image, mask", "--column"]), ("raw\n", ["no path", "'raw'"])],
)
def test_a_table_without_images_predicts_nothing(table, named, bundle, command, tmp_path):
    (tmp_path / "table.csv").write_text(table)
    code, message, left = command("predict", bundle, "--manifest", tmp_path / "table.csv")
    assert (code, left) == (2, [])
    assert message.startswith("ManifestError: ") and all(name in message for name in ["table.csv", *named]), message


def test_an_image_that_cannot_be_read_is_a_failed_row_and_the_others_are_predicted(bundle, exported, command, tmp_path):
    (tmp_path / "text.tif").write_text("not an image")
    code, message, left = command("predict", bundle, tmp_path / "text.tif", exported[1], "--output", "out")
    assert code == 2
    assert "text.tif" in message and "Traceback" not in message
    assert pd.read_csv("out/predictions.csv")["status"].tolist() == ["failed", "ok"]
    assert {"out/predictions.csv", "out/seg/raw_0.ome.tif"} <= set(left)
    assert not any("text" in path for path in left)
