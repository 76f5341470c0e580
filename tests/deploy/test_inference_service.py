import pytest

from components.cluster.inference_service import Target, inference_service
from cyto_dl.errors import ConfigError
from tests.deploy.models import assert_known

NUCLEI = Target("nuclei", "imaging")


def test_a_service_with_every_choice_is_what_kserve_knows():
    service = inference_service(
        NUCLEI,
        "s3://models/nuclei",
        image="registry.example.org/cyto-dl:0.2.0",
        resources={"limits": {"nvidia.com/gpu": "1"}},
        canary_percent=10,
        service_account="reader",
    )
    assert_known(service)
    predictor = service["spec"]["predictor"]
    assert predictor["canaryTrafficPercent"] == 10
    assert predictor["serviceAccountName"] == "reader"
    assert predictor["model"]["image"] == "registry.example.org/cyto-dl:0.2.0"
    assert predictor["model"]["resources"] == {"limits": {"nvidia.com/gpu": "1"}}


def test_all_requests_go_to_the_new_model_unless_a_share_is_named():
    predictor = inference_service(NUCLEI, "s3://models/nuclei")["spec"]["predictor"]
    assert "canaryTrafficPercent" not in predictor
    assert "image" not in predictor["model"]


def test_the_store_of_kubeflow_pipelines_is_s3_to_kserve():
    service = inference_service(NUCLEI, "minio://mlpipeline/v2/artifacts/bundle")
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://mlpipeline/v2/artifacts/bundle"


def test_a_bundle_on_this_machine_is_refused():
    with pytest.raises(ConfigError, match="cannot download the bundle from '/tmp/bundle'"):
        inference_service(NUCLEI, "/tmp/bundle")


@pytest.mark.parametrize("percent", [0, 101, -5])
def test_a_share_that_is_none_is_refused(percent):
    with pytest.raises(ConfigError, match=f"canary_percent {percent}: from 1 to 100"):
        inference_service(NUCLEI, "s3://models/nuclei", canary_percent=percent)


def test_a_target_names_a_namespace_or_takes_the_one_of_the_step():
    assert Target.parse("imaging/nuclei", "kubeflow") == NUCLEI
    assert Target.parse("nuclei", "kubeflow") == Target("nuclei", "kubeflow")


@pytest.mark.parametrize("text", ["Nuclei", "imaging/nuclei/7", "imaging/", "nuclei_7", "7-nuclei", "n" * 60])
def test_a_target_that_kubernetes_would_refuse_is_refused(text):
    with pytest.raises(ConfigError, match="write namespace/name"):
        Target.parse(text, "kubeflow")
