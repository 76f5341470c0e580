"""A checkpoint is whole or absent, plain data, and knows its experiment."""

import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from cyto_dl.callbacks import AtomicCheckpointIO, EmbedConfig, RandomStates
from cyto_dl.errors import ConfigError

CONFIG = {"experiment_name": "nuclei", "seed": 3, "model": {"heads": ["seg", None, 0.5, True]}}


def test_a_run_writes_a_checkpoint_that_holds_plain_data_only(tmp_path, make_model, loader, make_trainer, monkeypatch):
    monkeypatch.setenv("CYTO_DL_GIT_COMMIT", "abc123")
    checkpoints = ModelCheckpoint(tmp_path, "best", monitor="valid/seg/dice", mode="max", save_last=True)
    trainer = make_trainer(checkpoints, RandomStates(), EmbedConfig(CONFIG), plugins=[AtomicCheckpointIO()])
    model = make_model()
    trainer.fit(model, loader(patch=16, batch_size=2), loader(num_images=1))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert checkpoint["config"] == CONFIG
        assert checkpoint["git_commit"] == "abc123"
        assert {"RandomStates", "loops", "optimizer_states"} <= set(checkpoint) | set(checkpoint["callbacks"])
        assert all(key.startswith("network.") for key in checkpoint["state_dict"])
        assert "hyper_parameters" not in checkpoint


def test_a_write_that_fails_leaves_the_previous_checkpoint_and_nothing_else(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(1)}, path)
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        AtomicCheckpointIO().save_checkpoint({"step": torch.rand(1000), "bad": lambda: None}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_comes_back_and_can_be_removed(tmp_path):
    path = tmp_path / "folder" / "last.ckpt"
    files = AtomicCheckpointIO()
    files.save_checkpoint({"weights": torch.arange(3), "names": ["a"]}, path)
    loaded = files.load_checkpoint(path)
    assert torch.equal(loaded["weights"], torch.arange(3))
    assert loaded["names"] == ["a"]
    files.remove_checkpoint(path)
    files.remove_checkpoint(path)
    assert not path.exists()


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", "half"])
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "last.ckpt"
    if content == "half":
        AtomicCheckpointIO().save_checkpoint({"weights": torch.rand(1000)}, path)
        content = path.read_bytes()[:2000]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ckpt_path: .*last.ckpt"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_checkpoint_that_holds_code_is_refused_even_when_asked_for(tmp_path):
    # weights_only=False is what Lightning may ask for; that it changes nothing is what is tested
    torch.save({"path": Path("x")}, tmp_path / "last.ckpt")
    with pytest.raises(ConfigError, match=r"last.ckpt cannot be read"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model": {"loss": torch.nn.MSELoss()}}, "config.model.loss is a MSELoss"),
        ({"paths": [Path("x")]}, r"config.paths\[0\] is a PosixPath"),
        ({"model": OmegaConf.create({"lr": 1})}, "config.model is a DictConfig"),
    ],
)
def test_an_experiment_that_is_not_plain_is_refused(config, key):
    with pytest.raises(ConfigError, match=key):
        EmbedConfig(config)
