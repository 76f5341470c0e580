"""A bundle in MLflow's registry is a version that says where it comes from, and predicts as the bundle does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from mlflow.entities import LoggedModelStatus
from mlflow.tracking import MlflowClient

from cyto_dl.bundle import export, export_bundle, load_bundle
from cyto_dl.bundle.format import write_document
from cyto_dl.data.image import read_image
from cyto_dl.errors import BundleError, StorageError
from cyto_dl.storage import sha256
from cyto_dl.tracking import Version, download_bundle, find_champion, promote, register_bundle
from tests.bundle.tiny import checkpoint_of, experiment, write_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory):
    """An sqlite store; MLflow makes its tables on first use, which takes seconds: once for all tests here."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def reached(tracking_uri, monkeypatch):
    """By MLflow's own functions."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)


@pytest.fixture
def client(tracking_uri):
    return MlflowClient(tracking_uri)


@pytest.fixture
def make_bundle(tmp_path, monkeypatch):
    """Exports a model of random weights; other seeds are other models."""
    monkeypatch.setattr(export, "export_onnx", lambda *_: {"error": "left out by a test"})

    def make(spatial_dims=2, *, seed=0):
        folder = tmp_path / f"{spatial_dims}d_{seed}"
        folder.mkdir()
        config = experiment(write_images(folder, spatial_dims), spatial_dims)
        checkpoint_of(config, folder / "run/checkpoints/best.ckpt", seed=seed)
        return export_bundle(folder / "run", folder / "bundle", metrics={"test/seg/dice": 0.912345678})

    return make


@pytest.fixture
def bundle(make_bundle):
    return make_bundle()


def aliases(client, name):
    found = client.get_registered_model(name).aliases
    return {alias: str(number) for alias, number in found.items()}  # a server says "1", sqlite 1


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_registered_bundle_predicts_as_the_bundle_does(make_bundle, tracking_uri, spatial_dims):
    bundle, name = make_bundle(spatial_dims), f"predicts {spatial_dims}"
    version = register_bundle(bundle, name, tracking_uri=tracking_uri)
    image = read_image(bundle.parent / "raw_2.ome.tif", spatial_dims=spatial_dims).array.astype(np.float32)
    model = mlflow.pyfunc.load_model(version.uri)
    predicted, expected = model.predict(image), load_bundle(bundle).predict(image)
    assert predicted.keys() == expected.keys() == {"seg", "dist"}
    assert all(np.array_equal(predicted[head], expected[head]) for head in expected)
    assert model.metadata.signature.inputs.inputs[0].shape == (1, *[-1] * spatial_dims)
    assert model.metadata.signature.outputs.input_names() == ["seg", "dist"]
    assert max(model.input_example.shape[1:]) <= 32


def test_a_registered_bundle_holds_no_pickle(bundle, tracking_uri, tmp_path):
    version = register_bundle(bundle, "no pickle", tracking_uri=tracking_uri)
    folder = mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "model"))
    names = {path.name for path in Path(folder).rglob("*")}
    assert {"pyfunc.py", "weights.safetensors"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".ckpt"))]


def test_the_tags_say_where_a_version_comes_from(bundle, tracking_uri, client):
    version = register_bundle(bundle, "tags", tracking_uri=tracking_uri)
    origin = yaml.safe_load((bundle / "bundle.yaml").read_text())["provenance"]
    assert client.get_model_version("tags", version.number).tags == {
        "bundle_sha256": sha256(bundle / "bundle.yaml"),
        "manifest_sha256": origin["manifest_sha256"],
        "git_commit": origin["export_commit"],
        "test/seg/dice": "0.912346",
    }


def test_the_newest_version_is_the_challenger_and_only_a_promoted_one_the_champion(make_bundle, tracking_uri, client):
    assert find_champion("aliases", tracking_uri=tracking_uri) is None
    first = register_bundle(make_bundle(seed=1), "aliases", tracking_uri=tracking_uri)
    assert find_champion("aliases", tracking_uri=tracking_uri) is None
    promote(first, tracking_uri=tracking_uri)
    second = register_bundle(make_bundle(seed=2), "aliases", tracking_uri=tracking_uri)
    assert find_champion("aliases", tracking_uri=tracking_uri) == first == Version("aliases", "1")
    assert aliases(client, "aliases") == {"champion": "1", "challenger": "2"}
    promote(second, tracking_uri=tracking_uri)
    assert aliases(client, "aliases") == {"champion": "2", "challenger": "2"}


def test_the_same_bundle_is_registered_once(bundle, tracking_uri, client):
    first = register_bundle(bundle, "once", tracking_uri=tracking_uri)
    assert register_bundle(bundle, "once", tracking_uri=tracking_uri) == first
    assert len(client.search_model_versions("name = 'once'")) == 1


def test_a_downloaded_champion_is_the_bundle_that_was_registered(bundle, tracking_uri, tmp_path):
    version = register_bundle(bundle, "download", tracking_uri=tracking_uri)
    folder = download_bundle(version, tmp_path / "copy", tracking_uri=tracking_uri)
    assert {path.name: sha256(path) for path in folder.iterdir()} == {p.name: sha256(p) for p in bundle.iterdir()}


def test_a_version_belongs_to_the_run_of_its_training_which_stays_as_it_was(bundle, tracking_uri, client):
    run = client.create_run(client.create_experiment("trainings"))
    client.set_terminated(run.info.run_id, "FINISHED")
    document = yaml.safe_load((bundle / "bundle.yaml").read_text())
    document["provenance"]["mlflow_run"] = run.info.run_id
    write_document(bundle, document)
    version = register_bundle(bundle, "with run", tracking_uri=tracking_uri)
    registered = client.get_model_version("with run", version.number)
    assert registered.run_id == registered.tags["mlflow_run"] == run.info.run_id
    after = client.get_run(run.info.run_id)
    assert (after.info.status, after.info.end_time is None) == ("FINISHED", False)
    assert len(after.outputs.model_outputs) == 1
    assert mlflow.active_run() is None


def test_a_run_that_this_mlflow_does_not_know_is_no_hindrance(bundle, tracking_uri, client):
    document = yaml.safe_load((bundle / "bundle.yaml").read_text())
    document["provenance"]["mlflow_run"] = "f" * 32
    write_document(bundle, document)
    version = register_bundle(bundle, "unknown run", tracking_uri=tracking_uri)
    assert not client.get_model_version("unknown run", version.number).run_id
    assert client.get_experiment_by_name("unknown run")


def test_the_address_that_the_process_uses_stays_as_it_was(bundle, tmp_path, monkeypatch):
    """A notebook that registers a bundle elsewhere goes on logging where it did."""
    elsewhere, before = f"sqlite:///{tmp_path / 'elsewhere.db'}", dict(os.environ)
    version = register_bundle(bundle, "elsewhere", tracking_uri=elsewhere)
    assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] != elsewhere
    assert dict(os.environ) == before
    assert (download_bundle(version, tmp_path / "copy", tracking_uri=elsewhere) / "bundle.yaml").is_file()
    assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    assert mlflow.pyfunc.load_model(version.uri).metadata.signature is not None


def test_a_version_is_linked_to_its_logged_model_which_is_ready(bundle, tracking_uri, client):
    version = register_bundle(bundle, "linked", tracking_uri=tracking_uri)
    source = client.get_model_version("linked", version.number).source
    logged = client.get_logged_model(source.removeprefix("models:/"))
    assert logged.status == LoggedModelStatus.READY
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "linked", "version": version.number}]


def test_a_damaged_bundle_is_not_registered(bundle, tracking_uri, client):
    (bundle / "weights.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match="damaged"):
        register_bundle(bundle, "damaged", tracking_uri=tracking_uri)
    assert not client.search_registered_models("name = 'damaged'")


def test_a_name_that_mlflow_refuses_is_an_error_that_says_so(bundle, tracking_uri):
    with pytest.raises(StorageError, match="name"):
        register_bundle(bundle, "a/b", tracking_uri=tracking_uri)


def test_a_version_of_somebody_else_is_no_bundle(tracking_uri, client, tmp_path):
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "model.bin").write_bytes(b"weights")
    client.create_registered_model("foreign")
    version = client.create_model_version("foreign", source=str(tmp_path))
    with pytest.raises(BundleError, match="holds no bundle"):
        download_bundle(Version("foreign", str(version.version)), tmp_path / "copy", tracking_uri=tracking_uri)


def test_a_server_that_does_not_answer_is_an_error(bundle, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(StorageError, match=f"MLflow at {address} cannot be used"):
        register_bundle(bundle, "nobody", tracking_uri=address)
    with pytest.raises(StorageError, match=f"MLflow at {address} cannot be used"):
        find_champion("nobody", tracking_uri=address)


def test_registering_and_looking_for_the_champion_need_no_torch(bundle, tracking_uri):
    code = (
        "import sys\nfrom cyto_dl.tracking import find_champion, register_bundle\n"
        f"assert register_bundle({str(bundle)!r}, 'light', tracking_uri={tracking_uri!r}).number == '1'\n"
        f"assert find_champion('light', tracking_uri={tracking_uri!r}) is None\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
