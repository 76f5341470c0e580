"""Training through the public function: what it writes, that it repeats itself, and that it survives a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback

from cyto_dl.bundle import export_bundle, load_bundle, predictor_from_checkpoint
from cyto_dl.bundle.checkpoint import read_checkpoint
from cyto_dl.config import compose_experiment, experiments
from cyto_dl.data import read_image
from cyto_dl.errors import ConfigError, ManifestError, TrainingError
from cyto_dl.evaluation import evaluate
from cyto_dl.train import train

REPOSITORY = Path(__file__).resolve().parents[1]
PATCH = {2: "[32,32]", 3: "[8,16,16]"}
STACKS_ONLY = "im2im/labelfree_projection"
OWN_SETTINGS = {
    "im2im/segmentation_classes": ["target_col=seg", "num_classes=5"],  # blobs 1 to 4, and background
    "im2im/labelfree_stains": [f"data.columns.{stain}=seg" for stain in ("dapi", "map2", "nfh")],
    STACKS_ONLY: ["target_col=seg", "data.patch_shape=[16,16,16]"],  # all planes of a stack
}


def overrides_for(folder, *, experiment="im2im/segmentation", spatial_dims=2, cache_dir=None):
    """A run of two steps an epoch with a tiny network."""
    return [
        f"experiment={experiment}",
        "source_col=raw",
        f"spatial_dims={spatial_dims}",
        f"data.path={folder / 'manifest.csv'}",
        f"data.cache_dir={cache_dir or folder / 'cache'}",
        f"data.patch_shape={PATCH[spatial_dims]}",
        "data.patches_per_image=2",
        "data.batch_size=2",
        *OWN_SETTINGS.get(experiment, ["target_col=seg"]),
        "model.backbone.filters=[4,4,8,8]",
        "trainer.max_epochs=1",
        "+trainer.enable_progress_bar=false",
        "~callbacks.progress_bar",
        "~callbacks.summary",
        "extras.print_config=false",
        "logger=none",
    ]


def run(folder, output_dir, *extra, **options):
    return train(compose_experiment([*overrides_for(folder, **options), *extra], output_dir=output_dir))


def weights(output_dir):
    return read_checkpoint(output_dir / "checkpoints" / "last.ckpt")["state_dict"]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    ("experiment", "spatial_dims"),
    [(name, dims) for name in experiments() for dims in (2, 3) if (name, dims) != (STACKS_ONLY, 2)],
)
def test_every_shipped_experiment_trains_is_evaluated_and_predicts_the_same_from_its_bundle(
    manifest_folder, tmp_path, experiment, spatial_dims
):
    output_dir = tmp_path / "run"
    composed = compose_experiment(
        overrides_for(tmp_path, experiment=experiment, spatial_dims=spatial_dims), output_dir=output_dir
    )
    folder = manifest_folder(spatial_dims, scale=composed.get("scale", 1), project_targets=experiment == STACKS_ONLY)
    metrics = run(folder, output_dir, experiment=experiment, spatial_dims=spatial_dims)

    for head in composed["model"]["task_heads"]:
        assert any(name.startswith(f"valid/{head}/") for name in metrics)
        assert any(name.startswith(f"test/{head}/") for name in metrics)
    for file in ("config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "test/report.html"):
        assert (output_dir / file).is_file(), file

    bundle = load_bundle(export_bundle(output_dir, tmp_path / "bundle"))
    config = read_checkpoint(output_dir / "checkpoints" / "best.ckpt")["config"]
    again = evaluate(bundle, config, manifest=folder / "manifest.csv")
    assert again.summary == json.loads((output_dir / "test" / "metrics.json").read_text())
    predictor, _, _ = predictor_from_checkpoint(output_dir)
    raw = read_image(folder / "raw_0.tif", spatial_dims=spatial_dims)
    for head, predicted in predictor.predict(raw).items():
        np.testing.assert_array_equal(bundle.predict(raw)[head], predicted)


def test_test_metrics_are_in_the_table_of_the_csv_logger(manifest_folder, tmp_path):
    run(manifest_folder(), tmp_path / "run", "logger=csv")

    table = (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").read_text()
    assert {"train/loss", "valid/seg/dice", "test/seg/dice"} <= set(table.splitlines()[0].split(","))


def test_two_runs_with_one_seed_have_the_same_loss_and_weights(manifest_folder, tmp_path):
    folder = manifest_folder()
    one = run(folder, tmp_path / "one", "test=false")
    other = run(folder, tmp_path / "other", "test=false")

    assert one["train/loss"] == other["train/loss"]
    assert_same_weights(weights(tmp_path / "one"), weights(tmp_path / "other"))
    assert run(folder, tmp_path / "third", "test=false", "seed=7")["train/loss"] != one["train/loss"]


class KillAtStep(Callback):
    """Ends the process as a node that dies does: SIGKILL, before the given optimizer step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "checkpointing",
    [[], ["callbacks.last.every_n_epochs=null", "callbacks.last.every_n_train_steps=1"]],
    ids=["checkpoint-each-epoch", "checkpoint-each-step"],
)
def test_a_run_killed_in_the_middle_of_an_epoch_ends_with_the_weights_of_an_uninterrupted_one(
    manifest_folder, tmp_path, checkpointing
):
    folder = manifest_folder()
    extra = ["trainer.max_epochs=3", "test=false", "+model.backbone.dropout=0.2", *checkpointing]
    kill = "+callbacks.kill={_target_: tests.test_train.KillAtStep, step: 3}"  # the second step of the second epoch
    output_dir = tmp_path / "killed"

    command = [sys.executable, "cyto_dl/train.py", *overrides_for(folder), *extra, kill]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run([*command, f"hydra.run.dir={output_dir}"], cwd=REPOSITORY, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read_checkpoint(output_dir / "checkpoints" / "last.ckpt")["global_step"] == (3 if checkpointing else 2)

    run(folder, output_dir, *extra)
    run(folder, tmp_path / "uninterrupted", *extra)
    assert_same_weights(weights(output_dir), weights(tmp_path / "uninterrupted"))


class PressCtrlC(Callback):
    """Stands for a user who stops the training."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        raise KeyboardInterrupt


def test_ctrl_c_ends_the_training_with_the_code_that_shells_expect(manifest_folder, tmp_path, caplog):
    handler = signal.getsignal(signal.SIGINT)  # Lightning switches it off while it shuts down
    try:
        with pytest.raises(SystemExit) as end:
            run(manifest_folder(), tmp_path / "run", "+callbacks.stop={_target_: tests.test_train.PressCtrlC}")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert end.value.code == 130
    assert "the same command goes on" in caplog.text


class Terminate(Callback):
    """Stands for a scheduler that takes a node away: SIGTERM, in the given optimizer step or in a validation."""

    def __init__(self, step=None, validation=None):
        self.step, self.validation = step, validation

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not trainer.sanity_checking and trainer.current_epoch == self.validation:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("when", "num_valid", "saved_step", "experiment"),
    [
        ("step: 2", 1, 3, "im2im/segmentation"),
        ("step: 2", 1, 3, "im2im/gan"),
        ("step: 3", 1, 4, "im2im/segmentation"),
        ("validation: 1", 2, 2, "im2im/segmentation"),
    ],
    ids=["between batches", "between batches of a GAN", "in the last batch of an epoch", "between validation images"],
)
def test_sigterm_ends_the_training_after_a_checkpoint_from_which_it_goes_on_bit_for_bit(
    manifest_folder, tmp_path, caplog, when, num_valid, saved_step, experiment
):
    folder = manifest_folder(valid=num_valid)
    extra = ["trainer.max_epochs=3", "test=false", "~callbacks.previews"]
    stop = f"+callbacks.stop={{_target_: tests.test_train.Terminate, {when}}}"
    with pytest.raises(SystemExit) as end:
        run(folder, tmp_path / "ended", *extra, stop, experiment=experiment)
    assert end.value.code == 143
    assert "the same command goes on" in caplog.text
    assert read_checkpoint(tmp_path / "ended" / "checkpoints" / "last.ckpt")["global_step"] == saved_step

    ended = run(folder, tmp_path / "ended", *extra, experiment=experiment)
    assert ended == run(folder, tmp_path / "uninterrupted", *extra, experiment=experiment)
    assert_same_weights(weights(tmp_path / "ended"), weights(tmp_path / "uninterrupted"))


def test_a_run_folder_of_another_experiment_is_not_continued_by_mistake(manifest_folder, tmp_path):
    folder = manifest_folder()
    run(folder, tmp_path / "run", "test=false", "model.optimizer.generator.lr=0.001")
    before = (tmp_path / "run" / "config.yaml").read_text()

    with pytest.raises(ConfigError, match=r"model\.optimizer\.generator\.lr: 0\.001 there, 0\.5 now"):
        run(folder, tmp_path / "run", "test=false", "model.optimizer.generator.lr=0.5")
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    run(folder, tmp_path / "run", "test=false", "model.optimizer.generator.lr=0.5", "resume=false")


def test_a_run_says_that_it_goes_on_with_another_table(manifest_folder, tmp_path, caplog):
    folder = manifest_folder()
    run(folder, tmp_path / "run", "test=false")
    moved = folder.rename(tmp_path / "moved")
    assert "goes on with" not in caplog.text
    run(moved, tmp_path / "run", "test=false")
    assert f"was trained on {folder / 'manifest.csv'} and goes on with {moved / 'manifest.csv'}" in caplog.text


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_files(manifest_folder, tmp_path):
    with pytest.raises(TrainingError, match=r"raw_\d\.tif"):
        run(manifest_folder(), tmp_path / "run", "model.optimizer.generator.lr=1.0e+30", "trainer.max_epochs=3")


def test_a_loss_that_is_not_finite_in_fewer_bits_names_the_precision(manifest_folder, tmp_path):
    wrong = ["model.optimizer.generator.lr=1.0e+30", "trainer.max_epochs=3", "trainer.precision=bf16-mixed"]
    with pytest.raises(TrainingError, match=r"trainer\.precision=32-true instead of bf16-mixed"):
        run(manifest_folder(), tmp_path / "run", *wrong)


def test_a_training_ends_with_its_best_checkpoint_and_the_next_command(manifest_folder, tmp_path, caplog):
    with caplog.at_level("INFO"):
        metrics = run(manifest_folder(), tmp_path / "a run")
    said = caplog.messages[-3:]
    assert "a run/checkpoints/best.ckpt" in said[0] and f"(valid/seg/dice {metrics['valid/seg/dice']:.4g})" in said[0]
    assert "cyto-dl export '" in said[1] and "a run' --output bundle" in said[1]
    assert "cyto-dl predict bundle" in said[2]


def test_a_training_shows_its_configuration_once_everything_is_checked(manifest_folder, tmp_path, capfd):
    folder = manifest_folder()
    (folder / "raw_3.tif").write_bytes(b"no image")
    with pytest.raises(ManifestError):
        run(folder, tmp_path / "run", "extras.print_config=true")
    assert capfd.readouterr().out == ""


def test_heads_are_weighted_on_the_command_line(manifest_folder, tmp_path):
    own = ["model.loss_weights={distance: 0}", "test=false"]
    metrics = run(manifest_folder(), tmp_path / "run", *own, experiment="im2im/multitask")
    assert metrics["valid/loss"] == metrics["valid/seg/loss"]


def test_the_literal_rescale_and_sigmoid_rescale_configuration_saves_eight_bit_images(manifest_folder, tmp_path):
    import tifffile

    run(manifest_folder(), tmp_path / "run", "callbacks.previews.every_n_epochs=1", "test=false")
    previews = sorted((tmp_path / "run" / "previews").rglob("*.ome.tif"))

    assert {path.name.removesuffix(".ome.tif").split("_", 2)[2] for path in previews} >= {"raw", "seg", "seg_target"}
    assert {tifffile.imread(path).dtype.name for path in previews} == {"uint8"}


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["~model.task_heads.seg.loss"], r"model\.task_heads\.seg\.loss"),
        (["~model.optimizer.generator"], r"model\.optimizer\.generator"),
        (["~data.columns.seg"], r"data\.columns"),
        (["model.backbone.kernel_sizes=3"], "kernel_sizes"),
        (["data.patch_shape=[512,512]"], r"data\.patch_shape"),
        (["ckpt_path=nowhere.ckpt"], r"ckpt_path.*nowhere\.ckpt"),
    ],
)
def test_a_wrong_experiment_says_which_key_before_the_first_step(manifest_folder, tmp_path, extra, says):
    with pytest.raises((ConfigError, ManifestError), match=says):
        run(manifest_folder(), tmp_path / "run", *extra)
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_damaged_test_image_is_found_before_the_training(manifest_folder, tmp_path):
    folder = manifest_folder()
    (folder / "raw_3.tif").write_bytes(b"no image")
    with pytest.raises(ManifestError, match=r"raw_3\.tif"):
        run(folder, tmp_path / "run")
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize("debug", ["default", "fdr", "limit", "overfit"])
def test_a_debug_run_trains_and_tests_without_checkpoints(debug, tmp_path, manifest_folder):
    usual = [each for each in overrides_for(manifest_folder(2)) if not each.startswith("~callbacks")]
    metrics = train(compose_experiment([*usual, f"debug={debug}"], output_dir=tmp_path / "run"))
    assert {"valid/seg/dice", "test/seg/dice"} <= set(metrics)
    assert not list((tmp_path / "run").rglob("*.ckpt"))
