"""An ensemble is the mean of its members' logits, in one bundle; models that differ otherwise make none."""

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from cyto_dl.bundle import export, export_bundle, load_bundle
from cyto_dl.bundle.checkpoint import predictor_from_checkpoint
from cyto_dl.bundle.ensemble import predictor_of_ensemble
from cyto_dl.bundle.format import read_document, write_document
from cyto_dl.config import flatten
from cyto_dl.data.image import read_image
from cyto_dl.errors import BundleError
from tests.bundle.tiny import checkpoint_of, experiment, write_images


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def runs(request, tmp_path):
    """Three trainings of one experiment."""
    config = experiment(write_images(tmp_path, request.param), request.param)
    folders = [tmp_path / f"run_{seed}" for seed in (1, 2, 3)]
    for seed, folder in enumerate(folders):
        checkpoint_of({**config, "seed": seed}, folder / "checkpoints/best.ckpt", seed=seed)
    return folders


@pytest.fixture
def without_onnx(monkeypatch):
    """Tests that do not look at model.onnx need not wait for it."""
    monkeypatch.setattr(export, "export_onnx", lambda *_: {"error": "left out by a test"})


def image_of(run):
    predictor, _, _ = predictor_from_checkpoint(run)
    return predictor, read_image(run.parent / "raw_2.ome.tif", **predictor.input.load)


def mean_of(runs, head):
    """The mean of the members' predictions of a head that predicts intensities, whose logits these are."""
    return np.mean([image_of(run)[0].predict(image_of(run)[1])[head] for run in runs], axis=0)


def test_a_bundle_of_several_runs_predicts_the_mean_of_their_logits(runs, tmp_path):
    bundle = export_bundle(runs[:2], tmp_path / "bundle")
    document = yaml.safe_load((bundle / "bundle.yaml").read_text())
    assert document["ensemble"] == ["weights.safetensors", "weights_2.safetensors"]
    assert set(document["ensemble"]) < set(document["files"])
    assert [member["seed"] for member in document["provenance"]["members"]] == [0, 1]
    assert document["provenance"]["experiment"] == "tiny"
    assert document["metrics"] == {}
    _, image = image_of(runs[0])
    predictor = load_bundle(bundle)
    expected = mean_of(runs[:2], "dist")
    # blending before or after the mean adds in another order
    np.testing.assert_allclose(predictor.predict(image)["dist"], expected, atol=1e-5)
    np.testing.assert_allclose(predictor.predict(image, heads=["dist"])["dist"], expected, atol=1e-5)
    windows = torch.rand((3, 1, *document["inference"]["roi_size"]))
    session = onnxruntime.InferenceSession(bundle / "model.onnx")
    with torch.inference_mode():
        logits = predictor.network(windows)["seg"].numpy()
    np.testing.assert_allclose(session.run(["seg"], {"raw": windows.numpy()})[0], logits, atol=1e-4)  # as in test_onnx


def test_bundles_and_ensembles_can_be_members(runs, tmp_path, without_onnx):
    pair = export_bundle(runs[:2], tmp_path / "pair")
    single = export_bundle(runs[2], tmp_path / "single")
    bundle = export_bundle([pair, single], tmp_path / "all")
    assert len(yaml.safe_load((bundle / "bundle.yaml").read_text())["ensemble"]) == 3
    prediction = load_bundle(bundle).predict(image_of(runs[0])[1])["dist"]
    np.testing.assert_allclose(prediction, mean_of(runs, "dist"), atol=1e-5)  # as above


def test_an_ensemble_is_evaluated_with_the_experiment_of_its_members(runs, tmp_path, without_onnx):
    bundle = export_bundle(runs[:2], tmp_path / "bundle")
    _, _, config = predictor_from_checkpoint(runs[0])
    predictor, document, experiment_of = predictor_from_checkpoint(bundle, config=config)
    assert flatten(experiment_of).items() >= flatten(config).items()  # and what draws heads that it does not name
    assert len(document["ensemble"]) == 2
    _, image = image_of(runs[0])
    assert predictor.predict(image)["seg"].tobytes() == load_bundle(bundle).predict(image)["seg"].tobytes()


def test_models_that_differ_are_refused_with_all_differences(runs, tmp_path):
    predictor, _ = image_of(runs[0])
    config = experiment(runs[0].parent / "manifest.csv", 5 - predictor.input.spatial_dims)
    config["model"]["inference"]["overlap"] = 0.5
    config["data"]["transforms"]["preprocess"][0]["nonzero"] = True
    checkpoint_of(config, tmp_path / "other/best.ckpt")
    with pytest.raises(
        BundleError, match=r"(?s)make no ensemble.*inference\.overlap: None in .*run_1, 0\.5 in "
    ) as caught:
        predictor_of_ensemble([runs[0], tmp_path / "other"])
    for key in ("input.axes", "model.backbone._target_", "preprocess.0.nonzero"):
        assert f"{key}: " in str(caught.value)


def test_members_that_no_hash_protects_are_refused(runs, tmp_path, without_onnx):
    bundle = export_bundle(runs[:2], tmp_path / "bundle")
    document = read_document(bundle)
    del document["files"]["weights_2.safetensors"]
    (bundle / "bundle.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(BundleError, match=r"weights_2\.safetensors: not listed"):
        load_bundle(bundle)


@pytest.mark.parametrize("ensemble", [["weights.safetensors", "../x.safetensors"], "weights.safetensors", [1]])
def test_an_ensemble_of_other_files_is_refused(runs, tmp_path, without_onnx, ensemble):
    bundle = export_bundle(runs[:2], tmp_path / "bundle")
    write_document(bundle, {**read_document(bundle), "ensemble": ensemble})
    with pytest.raises(BundleError, match=r"`ensemble` is not a list|x.safetensors: not listed"):
        load_bundle(bundle)
