import pytest

from components.cluster.deployment import DeploymentError, deploy_service, deployment_checks
from components.cluster.inference_service import Target, inference_service
from components.deploy import deploy
from cyto_dl.errors import ConfigError, StorageError

PATH = "/apis/serving.kserve.io/v1beta1/namespaces/imaging/inferenceservices/nuclei"
OLD, NEW = "s3://models/nuclei/1", "s3://models/nuclei/2"
URL = "http://nuclei.imaging.example.org"


def bring(uri, timeout_s=5.0, **choices):
    service = inference_service(Target("nuclei", "imaging"), uri, **choices)
    return deploy_service(service, timeout_s=timeout_s, poll_s=0.01)


def kserve_that_serves(*uris, late=2):
    """KServe's controller: `late` looks after a change it has followed; only `uris` ever become ready."""
    seen = {"generation": None, "looks": 0}

    def look(service):
        generation = service["metadata"]["generation"]
        if seen["generation"] != generation:
            seen.update(generation=generation, looks=0)
        seen["looks"] += 1
        if seen["looks"] <= late:
            return  # the status is still that of the former spec
        good = service["spec"]["predictor"]["model"]["storageUri"] in uris
        ready = {"type": "Ready", "status": "True" if good else "False"}
        service["status"] = {
            "observedGeneration": generation + 40,  # the deployment's own count
            "conditions": [ready | ({} if good else {"message": "Revision failed"})],
            "modelStatus": {"transitionStatus": "UpToDate"}
            if good
            else {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": {"message": "bundle is damaged"}},
            "url": URL,
        }

    return look


@pytest.fixture
def served(cluster):
    """A cluster in which OLD is served."""
    cluster.look = kserve_that_serves(OLD, NEW)
    bring(OLD)
    cluster.requests.clear()
    return cluster


def model(cluster):
    return cluster.objects[PATH]["spec"]["predictor"]["model"]["storageUri"]


def test_the_first_deployment_creates_the_service_and_waits_for_it(cluster):
    cluster.look = kserve_that_serves(NEW)
    assert bring(NEW) == URL
    assert cluster.methods() == ["POST"]
    assert cluster.objects[PATH]["spec"] == inference_service(Target("nuclei", "imaging"), NEW)["spec"]


def test_the_next_one_changes_it_and_is_not_fooled_by_the_readiness_of_the_former(served):
    assert bring(NEW) == URL
    assert served.methods() == ["PATCH"]
    assert served.objects[PATH]["status"]["observedGeneration"] == 42
    assert model(served) == NEW


def test_what_an_operator_has_set_stays(served):
    served.objects[PATH]["spec"]["predictor"]["nodeSelector"] = {"disk": "fast"}
    bring(NEW)
    assert served.objects[PATH]["spec"]["predictor"]["nodeSelector"] == {"disk": "fast"}


def test_the_same_bundle_again_changes_nothing(served):
    assert bring(OLD) == URL
    assert served.objects[PATH]["metadata"]["generation"] == 1


def test_a_canary_is_promoted_by_deploying_it_to_all(served):
    bring(NEW, canary_percent=10)
    assert served.objects[PATH]["spec"]["predictor"]["canaryTrafficPercent"] == 10
    bring(NEW)
    assert "canaryTrafficPercent" not in served.objects[PATH]["spec"]["predictor"]


def test_a_bundle_that_does_not_start_leaves_the_former_one_serving(served):
    before = served.objects[PATH]["spec"]
    served.look = kserve_that_serves(OLD)
    with pytest.raises(DeploymentError, match=f"bundle is damaged.*{OLD} is served again"):
        bring(NEW, timeout_s=0.3)
    assert served.objects[PATH]["spec"] == before
    assert served.methods() == ["PATCH", "PUT"]


def test_a_former_one_that_does_not_come_back_is_said(served):
    served.look = kserve_that_serves()
    with pytest.raises(
        DeploymentError, match=f"that of {OLD} again, which is not ready either: Ready: Revision failed"
    ):
        bring(NEW, timeout_s=0.3)


def test_a_first_bundle_that_does_not_start_is_removed(cluster):
    cluster.look = kserve_that_serves()
    with pytest.raises(DeploymentError, match="It was new, and is deleted"):
        bring(NEW, timeout_s=0.3)
    assert cluster.objects == {}


def test_a_revision_that_still_starts_behind_a_ready_one_is_waited_for(served):
    revisions = iter(["nuclei-1", "nuclei-1", "nuclei-1", "nuclei-2"])

    def knative(service):
        service["status"] = {
            "observedGeneration": 98 + service["metadata"]["generation"],
            "conditions": [{"type": "Ready", "status": "True"}],
            "components": {"predictor": {"latestCreatedRevision": "nuclei-2", "latestReadyRevision": next(revisions)}},
        }

    served.look = knative
    bring(NEW)
    assert next(revisions, None) is None


def test_a_service_that_someone_else_changes_meanwhile_is_left_alone(served):
    def colleague(service):
        service["spec"]["predictor"]["model"]["storageUri"] = "s3://models/nuclei/theirs"
        service["metadata"]["generation"] += 1

    written = []
    served.look = lambda service: colleague(service) if written or written.append(1) else None
    with pytest.raises(DeploymentError, match="changed by someone else"):
        bring(NEW)
    assert served.methods() == ["PATCH"]


def test_a_write_that_meets_another_one_is_done_again_on_a_fresh_copy(served):
    original = served.answer
    conflicts = [409]
    served.answer = lambda method, address, body: (
        (conflicts.pop(), {"message": "modified"})
        if method == "PATCH" and conflicts
        else original(method, address, body)
    )
    assert bring(NEW) == URL
    assert model(served) == NEW


def test_an_api_server_that_is_away_for_a_moment_does_not_end_the_wait(served):
    original, answers = served.answer, iter([None, None, (503, {"message": "etcd"}), (503, {"message": "etcd"})])
    served.answer = lambda *request: next(answers, None) or original(*request)
    assert bring(NEW) == URL


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (403, ConfigError, "rights in deploy/pipeline"),
        (422, ConfigError, "scaleMetric is not known"),
        (500, StorageError, "the Kubernetes API failed"),
    ],
)
def test_a_refusal_says_what_to_do(cluster, status, error, message):
    cluster.refuse = [(status, "scaleMetric is not known")]
    with pytest.raises(error, match=message):
        bring(NEW)


def test_a_cluster_that_has_no_kserve_is_named(cluster):
    cluster.refuse = [(404, "not found"), (404, "the server could not find the requested resource")]
    with pytest.raises(ConfigError, match="is KServe"):
        bring(NEW)


def test_without_a_cluster_the_step_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no Kubernetes cluster is known"):
        bring(NEW)


def test_the_step_deploys_the_artifact_of_a_run(cluster):
    from kfp.dsl import Model

    cluster.look = kserve_that_serves("s3://mlpipeline/bundle", late=0)  # the step looks every 5 s
    bundle = Model(name="bundle", uri="minio://mlpipeline/bundle")
    url = deploy.python_func(bundle=bundle, target="imaging/nuclei", canary_percent=50, timeout_s=5)
    assert url == URL
    assert cluster.objects[PATH]["spec"]["predictor"]["canaryTrafficPercent"] == 50


def test_a_deployment_that_is_possible_is_checked_without_changing_anything(cluster):
    for check in deployment_checks("imaging/nuclei", canary_percent=10, timeout_s=900):
        check()
    assert [method for method, *_ in cluster.requests] == ["GET"]
    assert deployment_checks("", canary_percent=200, timeout_s=900) == []


@pytest.mark.parametrize(
    ("target", "numbers", "says"),
    [
        ("imaging/Nuclei", {}, ["deploy_target 'imaging/Nuclei'"]),
        ("imaging/nuclei", {"canary_percent": 200}, ["canary_percent 200"]),
        ("imaging/Nuclei", {"timeout_s": 0}, ["deploy_timeout_s is 0", "deploy_target 'imaging/Nuclei'"]),
    ],
)
def test_a_deployment_that_is_not_possible_is_refused_before_there_is_a_bundle(cluster, target, numbers, says):
    refused = []
    for check in deployment_checks(target, **{"canary_percent": 100, "timeout_s": 900} | numbers):
        try:
            check()
        except ConfigError as error:
            refused.append(str(error))
    assert len(refused) == len(says)
    assert all(words in told for words, told in zip(says, refused, strict=True))
