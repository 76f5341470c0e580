"""The `cyto-dl` command: what it hands over to hydra, what it says of a bundle, and how it refuses what cannot be."""

import sys
from pathlib import Path

import numpy as np
import pytest

from cyto_dl import cli
from cyto_dl.bundle import export_bundle
from cyto_dl.config import compose_experiment
from tests.bundle.tiny import checkpoint_of


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_other_processes_of_a_distributed_run_find_the_script_that_hydra_was_given(command, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["cyto-dl"])
    monkeypatch.setattr(f"cyto_dl.{command}.main", lambda: seen.extend(sys.argv))
    cli.main([command, "trainer=ddp_sim"])
    assert Path(seen[0]).is_file() and Path(seen[0]).name == f"{command}.py"  # Lightning runs `python argv[0] argv[1:]`
    assert seen[1:] == ["trainer=ddp_sim"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of im2im/instance_seg with a network of random weights, and an image."""
    folder = tmp_path_factory.mktemp("instances")
    overrides = ["experiment=im2im/instance_seg", "data.path=null", "data.patch_shape=[32,32]", "run_name=cells"]
    config = compose_experiment([*overrides, "model.backbone.filters=[4,4,8,8]"], output_dir=folder / "run")
    checkpoint_of(config, folder / "run/checkpoints/best.ckpt")
    return folder / "run", np.random.default_rng(0).normal(200, 20, (64, 64))


@pytest.fixture(scope="module")
def bundle(run):
    folder, image = run
    return export_bundle(folder, folder.parent / "bundle", sample=image)


def test_inspect_says_what_a_bundle_of_objects_gives(bundle, capsys):
    cli.main(["inspect", str(bundle)])
    said = capsys.readouterr().out
    assert said.startswith("# cells")
    assert "| objects | instances | C Y X, 1 channel(s) | uint32 | labels" in said


def refused(capsys, *arguments):
    """What the command says when it ends with the code of a wrong experiment or bundle."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in said
    return said


def test_an_engine_that_does_not_exist_is_refused_with_those_that_do(bundle, capsys):
    said = refused(capsys, "predict", bundle, "image.tif", "--engine", "tensorrt")
    assert "tensorrt" in said and "torch, torch-mixed, onnxruntime, openvino" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["image.tif", "--device", "foo"], "no device 'foo' here. Choose cpu"),
        (["image.tif", "--manifest", "images.csv"], "one of the two"),
        ([], "one of the two"),
    ],
)
def test_what_a_prediction_cannot_start_with_is_said_in_one_message(bundle, capsys, arguments, says):
    assert says in refused(capsys, "predict", bundle, *arguments)


def test_options_may_stand_between_the_bundle_and_the_images(bundle, run, tmp_path, capsys):
    np.save(tmp_path / "one.npy", run[1])
    np.save(tmp_path / "two.npy", run[1])
    given = [bundle, "--output", tmp_path / "out", tmp_path / "one.npy", "--engine", "torch", tmp_path / "two.npy"]
    cli.main(["predict", *map(str, given)])
    assert "2 of 2 images predicted" in capsys.readouterr().out


def test_a_folder_of_images_is_predicted_and_what_failed_is_told_at_the_end(bundle, run, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images/good.npy", run[1])
    np.save(tmp_path / "images/stack.npy", np.zeros((5, 64, 64)))
    said = refused(capsys, "predict", bundle, tmp_path / "images", "--output", tmp_path / "out")
    assert "1 of 2 images could not be predicted" in said
    assert "stack.npy: " in said and f"{tmp_path}/out/predictions.csv" in said
    assert (tmp_path / "out/objects/good.ome.tif").is_file()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.inference.augment", "KEY=VALUE"),
        ("model.inference.augment=[flips", "model.inference.augment"),
        ("model.inference.augment=mirror", "flips, rotations"),
        ("model.inference.agument=flips", "model.inference.agument"),
        ("model.backbone.filters=[1]", "model.backbone.filters"),
    ],
)
def test_a_setting_that_an_export_cannot_take_is_refused_by_name(run, tmp_path, capsys, setting, says):
    said = refused(capsys, "export", run[0], "--output", tmp_path / "bundle", "--set", setting)
    assert says in said, said
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-1", 0.1), ("[0.6,8e-1]", [0.6, 0.8]), ("null", None), ("flips", "flips"), ("{seed: 0.5}", {"seed": 0.5})],
)
def test_a_setting_is_read_as_on_the_command_line_of_a_training(text, value):
    read = cli._settings([f"model.key={text}"])
    assert read == {"model.key": value} and type(read["model.key"]) is type(value)


@pytest.mark.parametrize(("command", "says"), [("predict", "--engine"), ("export", "--set"), ("inspect", "bundle")])
def test_help_names_what_there_is(command, says, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code == 0
    assert says in capsys.readouterr().out
