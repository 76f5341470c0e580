"""A checkpoint becomes a predictor: the best one of a run, read without running anything in it."""

import pickle

import numpy as np
import pytest
import torch

from cyto_dl.bundle import export, export_bundle
from cyto_dl.bundle.checkpoint import find_checkpoint, predictor_from_checkpoint
from cyto_dl.config import flatten
from cyto_dl.errors import BundleError, ConfigError
from tests.bundle.tiny import POSTPROCESSING, SHAPE, checkpoint_of, experiment, predictor_of, write_images


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


def test_an_experiment_of_another_network_than_the_checkpoints_is_refused_by_the_keys_that_differ(tmp_path, config):
    checkpoint = checkpoint_of(config, tmp_path / "checkpoints/best.ckpt")
    backbone = config["model"]["backbone"]
    before = backbone["out_channels"]
    backbone["out_channels"] = 8
    for task in config["model"]["task_heads"].values():
        task["head"]["in_channels"] = 8
    with pytest.raises(ConfigError) as error:
        predictor_from_checkpoint(checkpoint, config=config)
    assert f"model.backbone.out_channels: {before} there, 8 now" in str(error.value)
    assert "model.task_heads.seg.head.in_channels" in str(error.value) and "size mismatch" not in str(error.value)


def test_another_preprocessing_than_the_checkpoints_is_used_with_a_warning(tmp_path, config, caplog):
    checkpoint = checkpoint_of(config, tmp_path / "checkpoints/best.ckpt")
    config["data"]["transforms"]["augment"] = []
    predictor_from_checkpoint(checkpoint, config=config)
    assert "another experiment" not in caplog.text
    config["data"]["transforms"]["preprocess"][0]["subtrahend"] = 100
    predictor_from_checkpoint(checkpoint, config=config)
    assert "data.transforms.preprocess[0].subtrahend: None there, 100 now" in caplog.text


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


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def run(request, tmp_path, monkeypatch):
    """A run whose head `seg` has a threshold, its experiment, its bundle and an image."""
    monkeypatch.setattr(export, "export_onnx", lambda *_: {"error": "left out by a test"})
    config = experiment(write_images(tmp_path, request.param), request.param)
    config["model"]["postprocessing"]["prediction"]["seg"] = {
        "_target_": f"{POSTPROCESSING}.sigmoid_threshold",
        "_partial_": True,
        "threshold": 0.5,
    }
    checkpoint_of(config, tmp_path / "run/checkpoints/best.ckpt")
    image = np.random.default_rng(0).integers(0, 999, (1, *SHAPE[request.param])).astype(np.uint16)
    return tmp_path / "run", config, export_bundle(tmp_path / "run", tmp_path / "bundle"), image


SETTINGS = {"model.inference.augment": "flips", "model.postprocessing.prediction.seg.threshold": 0.6}


def test_a_bundle_predicts_with_its_own_settings_and_the_log_says_where_the_experiment_differs(run, caplog):
    _, config, bundle, image = run
    plain, _, same = predictor_from_checkpoint(bundle, config=config)
    assert flatten(same).items() >= flatten(config).items()
    assert "as it was exported" not in caplog.text
    config["model"]["inference"]["augment"] = "flips"
    with caplog.at_level("INFO"):
        predictor, document, experiment_of = predictor_from_checkpoint(bundle, config=config)
    assert "model.inference.augment None (experiment: flips)" in caplog.text
    assert predictor.window == plain.window
    assert predictor.predict(image)["seg"].tobytes() == plain.predict(image)["seg"].tobytes()
    assert experiment_of["model"]["inference"] == document["inference"]  # a report shows what was measured


def test_settings_that_are_asked_for_win_over_those_of_a_bundle(run):
    folder, config, bundle, image = run
    expected, _, _ = predictor_from_checkpoint(folder, config=config, settings=SETTINGS)
    predictor, document, experiment_of = predictor_from_checkpoint(bundle, config=config, settings=SETTINGS)
    for head, array in predictor.predict(image).items():
        np.testing.assert_array_equal(array, expected.predict(image)[head])
    assert (predictor.predict(image)["seg"] != predictor_of(config).predict(image)["seg"]).any()
    assert document["inference"]["augment"] == predictor.metadata["inference"]["augment"] == "flips"
    assert document["postprocess"]["seg"]["threshold"] == 0.6
    assert flatten(experiment_of).items() >= SETTINGS.items()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model.inference.augmentation": "flips"}, "unknown, choose one of roi_size, overlap"),
        ({"model.inference.augment": "twice"}, "choose null or one of flips"),
        ({"model.postprocessing.prediction.nuclei.threshold": 0.6}, "there is no .*prediction.nuclei"),
        ({"model.postprocessing.prediction.seg._target_": f"{POSTPROCESSING}.sigmoid"}, "seg: .* cannot be exchanged"),
        ({"model.postprocessing.prediction.seg": None}, "seg: .* cannot be exchanged"),
        ({"model.backbone.out_channels": 8}, "cannot be changed after training"),
    ],
    ids=str,
)
def test_a_setting_that_a_bundle_cannot_take_is_refused(run, settings, says):
    _, config, bundle, _ = run
    with pytest.raises(ConfigError, match=says):
        predictor_from_checkpoint(bundle, config=config, settings=settings)
