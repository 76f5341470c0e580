"""An export is whole or not there, and predicts what the checkpoint predicts."""

import json

import numpy as np
import pytest
import torch
import yaml

from cyto_dl.bundle import export, export_bundle, load_bundle
from cyto_dl.bundle.checkpoint import predictor_from_checkpoint
from cyto_dl.data.image import read_image
from cyto_dl.errors import BundleError, ConfigError
from tests.bundle.tiny import SPACING_UM, checkpoint_of, experiment, write_images


@pytest.fixture
def run_dir(tmp_path):
    config = experiment(write_images(tmp_path))
    checkpoint_of(config, tmp_path / "run/checkpoints/best.ckpt")
    return tmp_path / "run"


@pytest.fixture
def without_onnx(monkeypatch):
    """Tests that do not look at model.onnx need not wait for it."""
    monkeypatch.setattr(export, "export_onnx", lambda *_: {"error": "left out by a test"})


def document_of(bundle):
    return yaml.safe_load((bundle / "bundle.yaml").read_text())


def test_a_bundle_holds_all_its_files_and_says_what_it_is(exported):
    document = document_of(exported)
    names = {"weights.safetensors", "sample.npz", "model.onnx", "preview.png", "README.md"}
    assert set(document["files"]) == names
    assert {path.name for path in exported.iterdir()} == {*names, "bundle.yaml"}
    spatial_dims = len(document["input"]["axes"]) - 1
    assert document["input"]["spacing_um"] == list(SPACING_UM[spatial_dims])
    assert document["outputs"]["seg"] == {
        "kind": "segmentation",
        "activation": "sigmoid",
        "values": "intensities",
        "dtype": "uint8",
        "channels": 1,
        "axes": document["input"]["axes"],
    }
    assert document["metrics"] == {"test/seg/dice": 0.5}
    assert document["provenance"]["manifest_sha256"]
    assert document["foreign_targets"] == []


def test_a_bundle_names_the_code_that_trained_it_and_that_exported_it(run_dir, tmp_path, monkeypatch, without_onnx):
    path = run_dir / "checkpoints/best.ckpt"
    torch.save({**torch.load(path, weights_only=True), "git_commit": "trained5"}, path)
    monkeypatch.setenv("CYTO_DL_GIT_COMMIT", "exported6")
    origin = document_of(export_bundle(run_dir, tmp_path / "bundle"))["provenance"]
    assert (origin["training_commit"], origin["export_commit"]) == ("trained5", "exported6")
    members = document_of(export_bundle([run_dir, tmp_path / "bundle"], tmp_path / "ensemble"))["provenance"]
    assert (members["training_commit"], members["export_commit"]) == ("trained5", "exported6")


def test_a_checkpoint_without_a_commit_is_exported_without_one(run_dir, tmp_path, without_onnx):
    bundle = export_bundle(run_dir, tmp_path / "bundle")
    assert document_of(bundle)["provenance"]["training_commit"] is None
    assert "training commit" not in (bundle / "README.md").read_text()


def test_a_bundle_predicts_what_its_checkpoint_predicts_bit_for_bit(exported):
    original, _, _ = predictor_from_checkpoint(exported.parent / "run")
    image = read_image(exported.parent / "raw_2.ome.tif", **original.input.load)
    expected = original.predict(image)
    for head, array in load_bundle(exported).predict(image).items():
        assert array.tobytes() == expected[head].tobytes()


def test_a_failed_export_leaves_nothing_behind(run_dir, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise BundleError("not the same")

    monkeypatch.setattr(export, "replay", fail)
    monkeypatch.setattr(export, "export_onnx", lambda *_: {})
    with pytest.raises(BundleError, match="not the same"):
        export_bundle(run_dir, tmp_path / "out/bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_older_bundle_is_replaced_and_any_other_folder_is_not(run_dir, tmp_path, without_onnx):
    bundle = export_bundle(run_dir, tmp_path / "bundle", name="first")
    export_bundle(run_dir, bundle, name="second")
    assert document_of(bundle)["name"] == "second"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("irreplaceable")
    with pytest.raises(ConfigError, match="exists and is no bundle"):
        export_bundle(run_dir, tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter.txt").read_text() == "irreplaceable"


def test_an_export_into_a_bucket_is_refused(run_dir):
    with pytest.raises(ConfigError, match="local folder"):
        export_bundle(run_dir, "s3://models/nuclei")


def test_metrics_of_the_run_are_found_and_the_name_can_stand_in_an_address(run_dir, tmp_path, without_onnx):
    (run_dir / "test").mkdir()
    (run_dir / "test/metrics.json").write_text(json.dumps({"test/seg/dice": 0.75}))
    document = document_of(export_bundle(run_dir, tmp_path / "bundle", name="my nuclei (2)"))
    assert document["metrics"] == {"test/seg/dice": 0.75}
    assert document["name"] == "my-nuclei-2"


def test_the_sample_may_be_given_and_must_be_when_there_is_no_manifest(run_dir, tmp_path, without_onnx):
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(Exception, match="manifest"):
        export_bundle(run_dir, tmp_path / "bundle")
    image = np.random.default_rng(0).integers(0, 999, (1, 40, 40)).astype(np.uint16)
    assert load_bundle(export_bundle(run_dir, tmp_path / "bundle", sample=image)).name == "tiny"


def test_preprocessing_that_cannot_be_undone_is_refused_by_name(tmp_path):
    crop = {"_target_": "monai.transforms.GridPatchd", "keys": ["raw", "seg", "dist"], "patch_size": [8, 8]}
    config = experiment(write_images(tmp_path), preprocess=[crop])
    checkpoint_of(config, tmp_path / "best.ckpt")
    with pytest.raises(ConfigError, match="GridPatchd"):
        export_bundle(tmp_path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_own_code_is_listed_with_its_package(tmp_path, without_onnx, caplog):
    names = ["monai.transforms.DataStatsd"]
    config = experiment(write_images(tmp_path), preprocess=[{"_target_": names[0], "keys": "raw"}])
    checkpoint_of_allowed(config, tmp_path / "best.ckpt", names)
    with pytest.raises(BundleError, match="--allow-target"):
        export_bundle(tmp_path, tmp_path / "bundle")
    bundle = export_bundle(tmp_path, tmp_path / "bundle", allow=names)
    assert document_of(bundle)["foreign_targets"] == [{"target": names[0], "package": "monai"}]
    assert names[0] in caplog.text
    with pytest.raises(BundleError, match="DataStatsd"):
        load_bundle(bundle)
    assert load_bundle(bundle, allow=names).name == "tiny"


def checkpoint_of_allowed(config, path, names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CYTO_DL_ALLOWED_TARGETS", ",".join(names))
        return checkpoint_of(config, path)


def test_windows_and_thresholds_may_be_chosen_after_training(run_dir, tmp_path, without_onnx):
    chosen = {"model.inference.augment": "flips", "model.inference.overlap": 0.5}
    bundle = export_bundle(run_dir, tmp_path / "bundle", settings=chosen)
    window = load_bundle(bundle).window
    assert (window.augment, window.overlap) == ("flips", 0.5)


@pytest.mark.parametrize(
    "key", ["data.batch_size", "model.backbone.spatial_dims", "model.postprocessing.prediction.x.y"]
)
def test_what_training_has_fixed_cannot_be_chosen_after_it(run_dir, tmp_path, key):
    with pytest.raises(ConfigError, match=key):
        export_bundle(run_dir, tmp_path / "bundle", settings={key: 1})
    assert not (tmp_path / "bundle").exists()
