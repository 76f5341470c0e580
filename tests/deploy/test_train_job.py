import pytest
import yaml

from components.cluster import train_job as module
from components.cluster.__main__ import main
from components.cluster.train_job import Nodes, train_job
from cyto_dl.errors import ConfigError
from pipelines import resources
from tests.deploy.models import assert_known

OVERRIDES = ["experiment=im2im/segmentation", "data.path=s3://images/m.csv"]


def job(nodes, run="r1", overrides=OVERRIDES):
    return train_job(run, "imaging", "registry.example.org/cyto-dl:0.1.0", overrides, nodes)


def pod(manifest):
    (patch,) = manifest["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    return node["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("nodes", [Nodes(2), Nodes(4, gpus=8, volume_claim="images")], ids=["cpu", "gpu"])
def test_trainer_knows_every_key_of_a_job(nodes):
    assert_known(job(nodes))


def test_the_overrides_that_trainer_drops_would_be_found():
    manifest = job(Nodes(2))
    manifest["spec"]["podSpecOverrides"] = manifest["spec"].pop("runtimePatches")
    with pytest.raises(AssertionError):
        assert_known(manifest)


def test_every_node_trains_with_one_process_a_gpu():
    trainer = job(Nodes(2, gpus=4))["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "4"
    assert trainer["args"] == [
        "--module", "cyto_dl.train", *OVERRIDES, "trainer=ddp", "trainer.num_nodes=2", "trainer.devices=4"
    ]  # fmt: skip


def test_without_gpus_it_trains_on_processors_and_asks_for_none():
    manifest = job(Nodes(2))
    assert "trainer.accelerator=cpu" in manifest["spec"]["trainer"]["args"]
    assert set(manifest["spec"]["trainer"]["resourcesPerNode"]["limits"]) == {"cpu", "memory"}
    assert "tolerations" not in pod(manifest)


def test_keys_come_from_the_secret_that_the_steps_use():
    names = (module.S3_SECRET, module.MLFLOW_SECRET, module.ENVIRONMENT_CONFIG_MAP)
    assert names == (resources.S3_SECRET, resources.MLFLOW_SECRET, resources.ENVIRONMENT_CONFIG_MAP)
    referred = [each["valueFrom"] for each in job(Nodes(2))["spec"]["trainer"]["env"] if "value" not in each]
    for (source,) in map(dict.values, referred):
        assert source["name"] in names
        assert source["optional"]


def test_nodes_know_their_image_and_the_run_by_which_the_last_step_finds_their_training():
    def given(run):
        environment = job(Nodes(2), run=run)["spec"]["trainer"]["env"]
        return {each["name"]: each["value"] for each in environment if "value" in each}

    image = {"CYTO_DL_IMAGE": "registry.example.org/cyto-dl:0.1.0"}
    assert given("r1") == {**image, "CYTO_DL_PIPELINE_RUN": "r1"}
    assert given("") == image  # a command without --run belongs to no run


def test_pods_have_shared_memory_and_the_volume_that_is_named():
    spec = pod(job(Nodes(2, gpus=1, volume_claim="images")))
    (container,) = spec["containers"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/dev/shm", "/data"]
    assert spec["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert spec["volumes"][1]["persistentVolumeClaim"] == {"claimName": "images"}
    assert spec["tolerations"]


def test_a_name_is_that_of_its_run_and_of_what_it_does():
    name = job(Nodes(2))["metadata"]["name"]
    assert name == job(Nodes(2))["metadata"]["name"]
    others = [job(Nodes(2), run="r2"), job(Nodes(3)), job(Nodes(2), overrides=[*OVERRIDES, "seed=1"])]
    assert len({name, *(other["metadata"]["name"] for other in others)}) == 4


@pytest.mark.parametrize(
    ("nodes", "overrides", "message"),
    [
        (Nodes(0), [], "0 nodes"),
        (Nodes(2), ["trainer.devices=3"], "are decided by the nodes"),
        (Nodes(2), ["trainer=gpu"], "trainer=gpu"),
    ],
)
def test_what_contradicts_itself_is_refused(nodes, overrides, message):
    with pytest.raises(ConfigError, match=message):
        job(nodes, overrides=overrides)


def test_the_command_prints_the_job_that_it_would_start(capsys):
    words = ["--namespace", "imaging", "--image", "cyto-dl:0.1.0", "--nodes", "2", "--gpus", "1", "--print", *OVERRIDES]
    assert main(words) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert_known(printed)
    assert printed["spec"]["trainer"]["numNodes"] == 2
