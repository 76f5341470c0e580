"""The whole way on real servers: data, checkpoints, models and reports in S3, runs and models in MLflow on PostgreSQL.

examples/nuclei -> S3 -> training pipeline -> checkpoints in S3, runs and bundles in MLflow -> champion
                      -> batch prediction -> predictions in S3
"""

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import mlflow
import numpy as np
import pandas as pd
import pytest
import tifffile
from mlflow.tracking import MlflowClient

from cyto_dl.bundle import export_bundle, load_bundle
from cyto_dl.bundle.provenance import manifest_sha256
from cyto_dl.config import compose_experiment
from cyto_dl.data import read_image
from cyto_dl.storage import localize
from cyto_dl.train import train
from tests.bundle.tiny import checkpoint_of, experiment, write_images
from tests.integration.mlflow_server import mlflow_server
from tests.integration.object_store import object_store
from tests.integration.postgres import postgres
from tests.integration.process import ROOT, run
from tests.integration.test_mlflow import artifacts, only_run
from tests.integration.test_s3 import upload
from tests.serving.process import free_ports

pytestmark = pytest.mark.integration
NUCLEI = ROOT / "examples" / "nuclei"
IMAGES = {"train": 6, "valid": 2, "test": 5}  # of those of 256 x 256 pixels
NETWORK = [
    "data.patch_shape=[64,64]",
    "data.patches_per_image=4",
    "data.batch_size=4",
    "model.backbone.filters=[4,4,8,8]",
]
UNTRAINED = ["model.optimizer.generator.lr=1e-9", "trainer.max_epochs=1"]  # test Dice 0.01
TRAINED = ["trainer.max_epochs=6"]  # test Dice 0.83
COMMIT = "4f2d1c"
IMAGE = "registry.example.org/cyto-dl@sha256:0123456789abcdef"


class Servers:
    """Where everything is, and the switch of MLflow."""

    def __init__(self, folder, database, store):
        self.folder, self.database, self.store = folder, database, store
        (self.port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{self.port}"
        self.variables = {**store.variables, "MLFLOW_TRACKING_URI": self.address, "CYTO_DL_IMAGE": IMAGE}
        self.variables |= {"CYTO_DL_GIT_COMMIT": COMMIT}  # as an image says it
        self.variables |= {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"}  # the training takes seconds only

    def bucket(self, name):
        keys = {"aws_access_key_id": self.store.access_key, "aws_secret_access_key": self.store.secret_key}
        return boto3.resource("s3", endpoint_url=self.store.endpoint, **keys).Bucket(name)

    def mlflow(self):
        files = "s3://mlflow/artifacts"
        return mlflow_server(self.folder, self.port, database=self.database, files=files, values=self.store.variables)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    (folder / "store").mkdir()
    with postgres() as database, object_store(folder / "store") as store:
        servers = Servers(folder, database, store)
        for name in ("lab", "mlflow"):
            servers.bucket(name).create()
        yield servers


@pytest.fixture(autouse=True)
def reached(servers, monkeypatch):
    """This process knows the servers, and nothing of a developer's own."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name, value in servers.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the keys of the test before


@pytest.fixture(scope="module")
def manifest(servers, tmp_path_factory):
    """The address of a table of few small images, in S3 as they are."""
    folder = tmp_path_factory.mktemp("nuclei")
    table = pd.read_csv(NUCLEI / "manifest.csv")
    small = table[[tifffile.imread(NUCLEI / path).shape == (256, 256) for path in table["raw"]]]
    chosen = pd.concat([small[small["split"] == split].head(number) for split, number in IMAGES.items()])
    for path in chosen[["raw", "nuclei"]].to_numpy().ravel():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).symlink_to(NUCLEI / path)
    chosen.to_csv(folder / "manifest.csv", index=False)
    return f"{upload(folder, servers.bucket('lab'), 'nuclei')}/manifest.csv"


def run_pipeline(name, servers, workspace, *arguments):
    command = [sys.executable, "-m", "pipelines", "run", name, *arguments, "--workspace", workspace]
    ended = run(command, values=servers.variables)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads((workspace / "latest" / "summary.json").read_text())


def run_training(servers, manifest, workspace, name, overrides):
    """Train, with checkpoints in a folder of S3 that bears the name."""
    remote = ["callbacks=s3", f"callbacks.remote.address=s3://lab/runs/{name}"]
    arguments = [f"manifest={manifest}", f"overrides={json.dumps([*NETWORK, *remote, *overrides])}"]
    register = ["model_name=nuclei", "comparison_metric=test/seg/dice", "minimal_gain=0.1"]
    return run_pipeline("training", servers, workspace, *arguments, *register)


def aliases(client):
    return {alias: int(number) for alias, number in client.get_registered_model("nuclei").aliases.items()}


def test_a_better_model_is_promoted_a_worse_one_is_not_and_the_champion_predicts(servers, manifest, tmp_path):
    client, workspace = MlflowClient(servers.address), tmp_path / "runs"
    with servers.mlflow():
        run_training(servers, manifest, workspace, "first", UNTRAINED)
        assert aliases(client) == {"champion": 1, "challenger": 1}
        better = run_training(servers, manifest, workspace, "better", TRAINED)
        assert aliases(client) == {"champion": 2, "challenger": 2}
        run_training(servers, manifest, workspace, "worse", UNTRAINED)
        assert aliases(client) == {"champion": 2, "challenger": 3}

        assert_all_of_it_is_in_s3(servers, client.get_run(better["mlflow"]["run_id"]))
        assert_origin_is_known(client, better)
        image = read_image(f"{manifest.rpartition('/')[0]}/{held_out_images(manifest)[0]}", spatial_dims=2).array
        expected = load_bundle(better["bundle"]).predict(image)["seg"]
        model = mlflow.pyfunc.load_model("models:/nuclei@champion")
        np.testing.assert_array_equal(model.predict(image.astype(np.float32))["seg"], expected)


def held_out_images(manifest):
    table = pd.read_csv(localize(manifest))
    return list(table[table["split"] == "test"]["raw"])


def assert_all_of_it_is_in_s3(servers, tracked):
    left, stored = ([each.key for each in servers.bucket(name).objects.all()] for name in ("lab", "mlflow"))
    assert {"runs/better/best.json", "runs/better/last.json"} <= set(left)
    own = f"{tracked.info.run_id}/artifacts"
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "data/fingerprint.json"):
        assert f"artifacts/{tracked.info.experiment_id}/{own}/{name}" in stored
    for name in ("evaluation/report.html", "evaluation/images.csv", "requirements.txt"):
        assert f"artifacts/{tracked.info.experiment_id}/{own}/{name}" in stored
    assert any(f"{own}/previews/epoch_000/" in key for key in stored)
    assert sum(key.endswith("/bundle.yaml") for key in stored) == 3  # one a version


def assert_origin_is_known(client, summary):
    tracked = client.get_run(summary["mlflow"]["run_id"])
    assert tracked.info.status == "FINISHED"
    assert (tracked.data.tags["git_commit"], tracked.data.tags["image"]) == (COMMIT, IMAGE)
    assert tracked.data.params["trainer.max_epochs"] == "6"
    assert {"train/loss", "valid/seg/dice", "test/seg/dice", "comparison/gain_low"} <= set(tracked.data.metrics)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(tracked.data.metrics)
    digest = manifest_sha256(f"{summary['dataset']}/manifest.csv")
    (used,) = tracked.inputs.dataset_inputs
    assert digest.startswith(used.dataset.digest)
    assert json.loads(used.dataset.profile) == json.loads(Path(summary["dataset"], "fingerprint.json").read_text())
    version = client.get_model_version_by_alias("nuclei", "champion")
    assert (version.run_id, version.tags["manifest_sha256"]) == (tracked.info.run_id, digest)
    assert tracked.data.tags["manifest_sha256"] == digest


def test_a_batch_is_predicted_from_s3_to_s3_and_nothing_is_done_twice(servers, manifest, tmp_path):
    config = experiment(write_images(tmp_path))
    bundle = export_bundle(checkpoint_of(config, tmp_path / "run" / "best.ckpt"), tmp_path / "bundle")
    bucket = servers.bucket("lab")
    arguments = [f"manifest={manifest}", "column=raw", "num_shards=2", "output=s3://lab/predicted"]
    arguments.append(f"bundle={upload(bundle, bucket, 'models/tiny')}")
    summary = run_pipeline("batch_prediction", servers, tmp_path / "runs", *arguments)
    assert {name: summary["metrics"][name] for name in ("predicted", "kept", "failed")} == {
        "predicted": 13,
        "kept": 0,
        "failed": 0,
    }
    table = pd.read_csv(localize("s3://lab/predicted/predictions.csv"))
    image = read_image(table["path"][0], spatial_dims=2)
    expected = load_bundle(bundle).predict(image)["seg"]
    np.testing.assert_array_equal(tifffile.imread(localize(table["seg"][0])), np.squeeze(expected))

    before = {each.key: each.last_modified for each in bucket.objects.filter(Prefix="predicted/seg/")}
    assert len(before) == 13
    summary = run_pipeline("batch_prediction", servers, tmp_path / "runs", *arguments)
    assert (summary["metrics"]["predicted"], summary["metrics"]["kept"]) == (0, 13)
    assert {each.key: each.last_modified for each in bucket.objects.filter(Prefix="predicted/seg/")} == before


def overrides(manifest, name, *extra):
    data = [f"data.path={manifest}", "source_col=raw", "target_col=nuclei", "spatial_dims=2", "raw_im_channels=1"]
    remote = ["callbacks=s3", f"callbacks.remote.address=s3://lab/runs/{name}"]
    given = ["experiment=im2im/segmentation", "trainer=cpu", "logger=mlflow", f"experiment_name={name}"]
    return [*given, *data, *NETWORK, *remote, "extras.print_config=false", *extra]


def test_a_server_that_is_away_for_seconds_misses_nothing(servers, manifest, tmp_path):
    output_dir, ended = tmp_path / "run", threading.Event()
    with servers.mlflow() as first, ThreadPoolExecutor() as thread:

        def start_again():
            while first.poll() is None:
                assert not ended.wait(0.1)
            assert not ended.wait(3)  # the training goes on meanwhile
            with servers.mlflow():
                ended.wait()
                tracked = only_run(MlflowClient(servers.address), "away")
                assert tracked.info.status == "FINISHED"
                history = MlflowClient(servers.address).get_metric_history(tracked.info.run_id, "valid/seg/dice")
                assert len(history) == len({each.step for each in history}) == 4
                stored = artifacts(MlflowClient(servers.address), tracked.info.run_id)
                for name in ("best.ckpt", "last.ckpt"):
                    assert stored[f"checkpoints/{name}"] == (output_dir / "checkpoints" / name).stat().st_size

        second = thread.submit(start_again)
        kill = (
            f"+callbacks.kill={{_target_: tests.integration.test_mlflow.KillServerAtStep, pid: {first.pid}, step: 8}}"
        )
        given = overrides(manifest, "away", "trainer.max_epochs=4", f"paths.cache_dir={tmp_path / 'cache'}", kill)
        try:
            train(compose_experiment(given, output_dir=output_dir))
        finally:
            ended.set()
        second.result()
    assert not (output_dir / "mlflow_unsent.jsonl").exists()


def test_a_training_that_goes_on_in_an_empty_folder_is_the_same_run(servers, manifest, tmp_path):
    """As on another node: of the first one, only what is on S3 is left."""
    client = MlflowClient(servers.address)
    with servers.mlflow():
        for epochs in (1, 2):
            given = overrides(manifest, "moved", f"trainer.max_epochs={epochs}", "test=false")
            train(
                compose_experiment([*given, f"paths.cache_dir={tmp_path / 'cache'}"], output_dir=tmp_path / f"{epochs}")
            )
        tracked = only_run(client, "moved")
        assert tracked.info.status == "FINISHED"
        assert tracked.data.params["trainer.max_epochs"] == "1"  # MLflow changes none
        history = client.get_metric_history(tracked.info.run_id, "valid/seg/dice")
        assert len({each.step for each in history}) == 2
