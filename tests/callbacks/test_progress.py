"""What a terminal shows of a training: the network's size in a line, and a bar with the metrics that matter."""

import logging

import pytest
import torch
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from cyto_dl.callbacks import EpochProgress, NetworkSummary
from cyto_dl.model.weighting import UncertaintyWeights


@pytest.fixture
def in_a_terminal(monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", True)


def test_the_bar_counts_epochs_from_one_and_shows_metrics_without_the_loggers_version(
    tmp_path, make_model, loader, make_trainer, in_a_terminal, monkeypatch
):
    seen = []
    shown = EpochProgress._get_train_description
    monkeypatch.setattr(
        EpochProgress, "_get_train_description", lambda bar, epoch: seen.append(shown(bar, epoch)) or seen[-1]
    )
    bar = EpochProgress()
    trainer = make_trainer(bar, max_epochs=2, enable_progress_bar=True, logger=CSVLogger(tmp_path))
    model = make_model()
    trainer.fit(model, loader(patch=16), loader(num_images=1))
    assert list(dict.fromkeys(seen)) == ["Epoch 1 of 2", "Epoch 2 of 2"]
    assert sorted(bar.get_metrics(trainer, model)) == ["train/loss", "valid/loss"]


def test_a_training_without_an_end_counts_its_epochs_only(make_trainer, in_a_terminal):
    bar = EpochProgress()
    bar.setup(make_trainer(max_epochs=-1), None, "fit")
    assert bar._get_train_description(0).strip() == "Epoch 1"


def test_a_file_gets_no_bar(make_model, loader, make_trainer, capsys):
    trainer = make_trainer(EpochProgress(), enable_progress_bar=True)
    trainer.fit(make_model(), loader(patch=16), loader(num_images=1))
    assert "Epoch" not in capsys.readouterr().out


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_size_of_the_network_is_one_line_of_its_parts_that_have_parameters(
    make_model, loader, make_trainer, caplog, spatial_dims
):
    caplog.set_level(logging.INFO)
    trainer = make_trainer(NetworkSummary(), enable_model_summary=True)
    trainer.fit(make_model(spatial_dims, loss_weights=UncertaintyWeights()), loader(spatial_dims, patch=16))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "cyto_dl.callbacks.progress"]
    backbone = 4 * (3**spatial_dims + 1)
    assert line == f"{backbone + 12} parameters: backbone Sequential {backbone}, head seg 5, head dna 5, weighting 2"
    assert [each for each in trainer.callbacks if isinstance(each, ModelSummary)] == [trainer.callbacks[0]]


def test_a_model_of_ones_own_is_counted_by_its_modules(make_trainer, caplog):
    caplog.set_level(logging.INFO)
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(9, 1), "loss": torch.nn.MSELoss()})
    NetworkSummary().on_fit_start(None, model)
    assert caplog.messages == ["10 parameters: encoder 10"]
