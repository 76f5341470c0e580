"""The compiled training pipeline in containers of the image, step by step, and its bundle served from the image."""

import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from kfp import components, local
from kfp.local import docker_task_handler
from mlflow.tracking import MlflowClient

from components.image import DEFAULT_IMAGE
from cyto_dl.data import read_image
from tests.image.containers import ROOT, USER, ask

pytestmark = pytest.mark.integration
COMPILED = ROOT / "pipelines/compiled/training.yaml"
STEPS = {"check-settings", "prepare-data", "train", "evaluate", "export", "compare", "register"}
OVERRIDES = [
    "data.patch_shape=[32,32]",
    "data.patches_per_image=2",
    "data.batch_size=2",
    "model.backbone.filters=[4,4,8,8]",
    "trainer.max_epochs=15",  # bright blobs are found after some 60 steps
]


def compiled_for(image):
    """The compiled pipeline's steps in another image, without second attempts, which would come half a minute later."""
    pipeline, platform = yaml.safe_load_all(COMPILED.read_text())
    for executor in pipeline["deploymentSpec"]["executors"].values():
        if "container" in executor:  # an importer has none
            assert executor["container"]["image"] == DEFAULT_IMAGE
            executor["container"]["image"] = image
    for node in [pipeline["root"], *pipeline["components"].values()]:
        for task in node.get("dag", {"tasks": {}})["tasks"].values():
            task.pop("retryPolicy", None)
    return yaml.safe_dump_all([pipeline, platform])


def run_to_its_end(client, image, command, volumes, **settings):
    """The exit code of a container.

    KFP's own lets the engine remove the container, and takes one that is gone before it asks for one that succeeded.
    """
    container = client.containers.run(image, command, detach=True, volumes=volumes, **settings)
    try:
        for line in container.logs(stream=True):
            sys.stdout.write(line.decode(errors="replace"))
        return container.wait()["StatusCode"]
    finally:
        container.remove(force=True)


@pytest.fixture
def run_pipeline(image, shared_folder, socket, monkeypatch):
    """Runs the compiled pipeline: each step in a container that may write to the shared folder and /tmp alone."""

    def run(**arguments):
        pipeline = components.load_component_from_text(compiled_for(image.inspect("{{.Id}}")))
        runner = local.DockerRunner(
            user=USER,
            read_only=True,
            tmpfs={"/tmp": ""},
            cap_drop=["all"],
            security_opt=["no-new-privileges"],
            environment={"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{shared_folder / 'mlflow.db'}"},
        )
        local.init(runner, pipeline_root=str(shared_folder), raise_on_error=True)
        with mock.patch.object(docker_task_handler, "run_docker_container", run_to_its_end):
            pipeline(**arguments)

    monkeypatch.setenv("DOCKER_HOST", socket)
    return run


def test_a_step_that_fails_ends_the_pipeline(run_pipeline, shared_folder, capfd):
    with pytest.raises(RuntimeError, match="prepare-data"):
        run_pipeline(manifest=str(shared_folder / "absent.csv"))
    assert "absent.csv" in capfd.readouterr().out
    assert not list(shared_folder.rglob("bundle.yaml"))


def test_the_pipeline_promotes_a_model_that_is_served_as_it_predicts(
    image, run_pipeline, shared_folder, manifest_folder
):
    folder = manifest_folder(train=4, test=2)
    run_pipeline(manifest=str(folder / "manifest.csv"), target_cols=["seg"], overrides=OVERRIDES, model_name="blobs")
    # what the steps left, not what the runner says
    assert {path.parent.name for path in shared_folder.rglob("executor_output.json")} >= STEPS
    (bundle,) = (path.parent for path in shared_folder.rglob("export/bundle/bundle.yaml"))
    champion = MlflowClient(f"sqlite:///{shared_folder / 'mlflow.db'}").get_model_version_by_alias("blobs", "champion")
    assert int(champion.version) == 1

    (measured,) = pd.read_csv(folder / "manifest.csv").query("split == 'test'")["raw"].iloc[:1]
    output = shared_folder / "predictions"
    image.run("cyto-dl", "predict", bundle, folder / measured, "--output", output, folder=shared_folder)
    (file,) = (output / "seg").iterdir()
    wanted, picture = tifffile.imread(file), read_image(folder / measured, spatial_dims=2).array
    assert np.ptp(wanted) > 100  # of 255: blobs and background
    name = yaml.safe_load((bundle / "bundle.yaml").read_text())["name"]
    with image.server(bundle, model=name) as address:
        np.testing.assert_array_equal(np.squeeze(ask(address, name, "seg", picture)), np.squeeze(wanted))
