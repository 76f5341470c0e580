"""The best checkpoint of a run that goes on in another folder, and of one whose best checkpoint was lost."""

import shutil

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from cyto_dl.bundle.checkpoint import read_checkpoint
from cyto_dl.config import compose_experiment
from cyto_dl.train import train
from tests.test_train import assert_same_weights, overrides_for

METRIC = "valid/loss"
VALUES = [0.5, 0.9, 0.7, 0.8]  # what the checkpoints are chosen by; the second epoch is the best


@pytest.fixture
def fit(manifest_folder, monkeypatch):
    folder, measured = manifest_folder(), Trainer.callback_metrics.fget

    def what_the_test_wants(trainer):
        known = measured(trainer)
        return {**known, METRIC: torch.tensor(VALUES[min(trainer.current_epoch, 3)])} if METRIC in known else known

    monkeypatch.setattr(Trainer, "callback_metrics", property(what_the_test_wants))

    def run(output_dir, *, epochs):
        chosen = [f"callbacks.best.monitor={METRIC}", "callbacks.best.mode=max"]
        given = [*overrides_for(folder), *chosen, f"trainer.max_epochs={epochs}", "test=false", "~callbacks.previews"]
        train(compose_experiment(given, output_dir=output_dir))
        return best(output_dir)

    return run


def best(output_dir):
    return read_checkpoint(output_dir / "checkpoints" / "best.ckpt")


def score(checkpoint):
    return round(float(checkpoint["scores"][METRIC]), 3)


def test_a_run_that_goes_on_in_another_folder_keeps_its_best_checkpoint(fit, tmp_path):
    before = fit(tmp_path / "here", epochs=2)
    (tmp_path / "here").rename(tmp_path / "there")
    after = fit(tmp_path / "there", epochs=4)
    assert score(before) == score(after) == 0.9
    assert_same_weights(before["state_dict"], after["state_dict"])


def test_what_the_last_checkpoint_says_of_the_best_one_is_that_of_an_uninterrupted_run(fit, tmp_path):
    fit(tmp_path / "here", epochs=3)
    (tmp_path / "here").rename(tmp_path / "there")
    fit(tmp_path / "there", epochs=4)
    fit(tmp_path / "uninterrupted", epochs=4)
    states = []
    for place in "there", "uninterrupted":
        last = read_checkpoint(tmp_path / place / "checkpoints" / "last.ckpt")["callbacks"]
        (state,) = (
            state for name, state in last.items() if name.startswith(ModelCheckpoint.__name__ + "{'monitor': 'v")
        )
        states.append([state["best_model_score"], state["kth_value"], *state["best_k_models"].values()])
    assert states[0] == states[1] == [pytest.approx(0.9)] * 3


def test_a_best_checkpoint_that_was_lost_is_not_what_the_next_ones_are_compared_with(fit, tmp_path):
    fit(tmp_path / "run", epochs=3)
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    assert score(fit(tmp_path / "run", epochs=4)) == 0.8


def test_the_last_checkpoint_in_place_of_the_best_one_counts_what_it_is_worth(fit, tmp_path):
    fit(tmp_path / "run", epochs=3)
    shutil.copy(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert score(fit(tmp_path / "run", epochs=4)) == 0.8  # the last one had 0.7
