"""A checkpoint becomes a predictor: the best one of a run, read without running anything in it."""

import pickle

import numpy as np
import pytest
import torch

from cyto_dl.bundle.checkpoint import find_checkpoint, predictor_from_checkpoint
from cyto_dl.errors import BundleError
from tests.bundle.tiny import SHAPE, checkpoint_of, experiment, predictor_of


@pytest.fixture
def config(tmp_path):
    return experiment(tmp_path / "manifest.csv")


def test_the_best_checkpoint_of_a_run_is_taken_else_the_last(tmp_path, config):
    last = checkpoint_of(config, tmp_path / "run/checkpoints/last.ckpt")
    assert find_checkpoint(tmp_path / "run") == last
    best = checkpoint_of(config, tmp_path / "run/checkpoints/best.ckpt")
    assert find_checkpoint(tmp_path / "run") == best
    assert find_checkpoint(last) == last


def test_its_predictor_predicts_what_the_trained_network_predicts(tmp_path, config):
    predictor, document, found = predictor_from_checkpoint(checkpoint_of(config, tmp_path / "checkpoints/best.ckpt"))
    image = np.random.default_rng(0).integers(0, 999, (1, *SHAPE[2])).astype(np.uint16)
    expected = predictor_of(config).predict(image)
    for head, array in predictor.predict(image).items():
        np.testing.assert_array_equal(array, expected[head])
    assert found == config
    assert document["provenance"]["checkpoint"] == {"file": "best.ckpt", "epoch": 3, "step": 12}


def test_the_callers_experiment_counts_and_its_code_is_trusted(tmp_path, config, monkeypatch):
    (tmp_path / "lab_of_the_caller.py").write_text("import torch\nclass Net(torch.nn.Conv2d):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = checkpoint_of(config, tmp_path / "checkpoints/best.ckpt")
    config["model"]["backbone"]["_target_"] = "lab_of_the_caller.Net"
    config["run_name"] = "renamed"
    predictor, _, _ = predictor_from_checkpoint(checkpoint, config=config)
    assert predictor.name == "renamed"
    assert type(predictor.network.backbone).__name__ == "Net"


def test_foreign_code_that_only_the_checkpoint_names_must_be_allowed(tmp_path, config):
    checkpoint = checkpoint_of(config, tmp_path / "best.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    content["config"]["model"]["task_heads"]["seg"]["head"]["_target_"] = "os.system"
    torch.save(content, checkpoint)
    with pytest.raises(BundleError, match=r"'os.system' at model.task_heads.seg.head"):
        predictor_from_checkpoint(checkpoint)


class Malicious:
    """What a pickle runs when it is loaded the careless way."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('this ran')",))


@pytest.mark.parametrize("content", [b"", b"half a file", pickle.dumps(Malicious())], ids=["empty", "text", "code"])
def test_a_damaged_or_malicious_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "best.ckpt").write_bytes(content)
    with pytest.raises(BundleError, match=r"best.ckpt cannot be read as a checkpoint"):
        predictor_from_checkpoint(tmp_path / "best.ckpt")


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "best.ckpt")
    with pytest.raises(BundleError, match="no checkpoint that CytoDL wrote"):
        predictor_from_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(BundleError, match="neither a checkpoint nor the folder of a run"):
        predictor_from_checkpoint(tmp_path)
