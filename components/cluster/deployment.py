"""Bring an InferenceService to a new bundle, or leave it as it was.

get --none--> create --+
 |                     +-> wait --ready--> its address
 +--there--> patch ----+    |
                            +--time over--> the former spec again (a new one: deleted) --> DeploymentError
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from components.cluster.api import CustomObject, Object, connect, own_namespace
from components.cluster.inference_service import GROUP, PLURAL, VERSION, Target, inference_service
from cyto_dl.errors import ConfigError, CytoDLError, StorageError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

logger = logging.getLogger(__name__)

_ANY_BUNDLE = "s3://"
_CONFLICTS = 5  # KServe's controller writes its status while we patch; a fresh copy settles it


class DeploymentError(CytoDLError):
    """A server did not become ready in time, and what was served before is served again."""


def deployment_checks(
    target: str, *, canary_percent: int, timeout_s: float, client: "ApiClient | None" = None
) -> list[Callable[[], None]]:
    """What `deploy_service` would refuse hours later, when there is a bundle: calls that refuse it now.

    A name or a number that does not fit, or no right to look at the InferenceService, is a ConfigError; a Kubernetes
    that does not answer is a StorageError.

    Args:
        target: namespace/name of the InferenceService; "" for no deployment.
        canary_percent: Share of the requests that the new model will get.
        timeout_s: That it will have.
        client: As for `deploy_service`.
    """
    if not target:
        return []

    def check_numbers() -> None:
        if timeout_s <= 0:
            raise ConfigError(f"deploy_timeout_s is {timeout_s:g}; a server takes minutes to be ready, e.g. 900.")
        inference_service(Target("any", "any"), _ANY_BUNDLE, canary_percent=canary_percent)

    def check_target() -> None:
        place = Target.parse(target, own_namespace())
        CustomObject(client or connect(), GROUP, VERSION, PLURAL, place.namespace, place.name).get()

    return [check_numbers, check_target]


def deploy_service(service: Object, *, timeout_s: float, poll_s: float, client: "ApiClient | None" = None) -> str:
    """Create or update an InferenceService, and wait until it serves what it says.

    Args:
        service: From `inference_service`.
        timeout_s: For the new one; going back takes as long again at most.
        poll_s: Between two looks.
        client: Of the cluster; by default the one that this runs in.

    Returns:
        The server's address.

    Raises:
        DeploymentError: It was not ready in time; the message has KServe's reasons and says what is served now.
        ConfigError: Kubernetes refuses it.
        StorageError: Kubernetes does not answer.
    """
    metadata = service["metadata"]
    live = CustomObject(client or connect(), GROUP, VERSION, PLURAL, metadata["namespace"], metadata["name"])
    before, after = _write(live, service)
    logger.info("%s %s: waiting for %s", "created" if before is None else "updated", live.name, _uri(after))
    try:
        return _wait(live, before, after, timeout_s=timeout_s, poll_s=poll_s)
    except TimeoutError as error:
        then = _go_back(live, before, after, timeout_s=timeout_s, poll_s=poll_s)
        raise DeploymentError(
            f"InferenceService {live.namespace}/{live.name} did not serve {_uri(after)} within {timeout_s:.0f} s: "
            f"{error}. {then} See kubectl describe inferenceservice {live.name} -n {live.namespace}."
        ) from error


def _write(live: CustomObject, service: Object) -> tuple[Object | None, Object]:
    """The service as it was, None if it is new, and as it is now."""
    for _ in range(_CONFLICTS):
        before = live.get()
        after = live.create(service) if before is None else live.patch(_changes(service, before))
        if after is not None:
            return before, after
    raise StorageError(f"InferenceService {live.namespace}/{live.name} changes all the time; who else writes it?")


def _changes(service: Object, before: Object) -> Object:
    """A merge patch to `service`, for the version that was read; what others have set beside it stays."""
    predictor = {"canaryTrafficPercent": None} | service["spec"]["predictor"]  # None removes an earlier share
    predictor["model"] = {"image": None} | predictor["model"]
    return {
        "metadata": {
            "labels": service["metadata"]["labels"],
            "resourceVersion": before["metadata"]["resourceVersion"],
        },
        "spec": {"predictor": predictor},
    }


def _wait(live: CustomObject, before: Object | None, after: Object, *, timeout_s: float, poll_s: float) -> str:
    """The address, once `after` is served.

    Raises:
        TimeoutError: With KServe's reasons.
    """
    # Ready is still that of the old spec for a while. status.observedGeneration is not this object's but that of the
    # Knative service or deployment below it (KServe 0.21), so all that can be said is that it has to move.
    unchanged = before is not None and _generation(before) == _generation(after)
    outdated = None if before is None or unchanged else before.get("status", {}).get("observedGeneration")
    end = time.monotonic() + timeout_s
    reasons = "KServe has said nothing about it"
    while True:
        try:
            now = live.get()
        except StorageError as error:
            reasons = str(error)  # an API server that restarts is back before the time is over
        else:
            if now is None or _generation(now) != _generation(after):
                raise DeploymentError(
                    f"InferenceService {live.namespace}/{live.name} was changed by someone else; left."
                )
            status = now.get("status", {})
            if status.get("observedGeneration", 0) != outdated and _is_ready(status):
                return str(status.get("url", ""))
            reasons = _reasons(status) or reasons
        if time.monotonic() >= end:
            raise TimeoutError(reasons)
        time.sleep(poll_s)


def _go_back(live: CustomObject, before: Object | None, after: Object, *, timeout_s: float, poll_s: float) -> str:
    """Restore the spec of `before`, or delete what was not there; a sentence about it."""
    if before is None:
        live.delete()
        return "It was new, and is deleted."
    for _ in range(_CONFLICTS):
        now = live.get()
        if now is None or _generation(now) != _generation(after):
            return "It was changed by someone else meanwhile, and is left as it is."
        restored = live.replace(now | {"spec": before["spec"]})
        if restored is not None:
            break
    else:
        return f"It could not be brought back to {_uri(before)}, because it changes all the time: do it by hand."
    try:
        _wait(live, now, restored, timeout_s=timeout_s, poll_s=poll_s)
    except TimeoutError as error:
        return f"Its spec is that of {_uri(before)} again, which is not ready either: {error}."
    return f"{_uri(before)} is served again."


def _is_ready(status: Object) -> bool:
    predictor = status.get("components", {}).get("predictor", {})
    return (
        any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", []))
        and status.get("modelStatus", {}).get("transitionStatus", "UpToDate") == "UpToDate"
        # Knative: while a new revision starts, the old one keeps the service ready
        and predictor.get("latestCreatedRevision") == predictor.get("latestReadyRevision")
    )


def _reasons(status: Object) -> str:
    """What KServe says about a service that is not ready."""
    said = [f"{one['type']}: {one['message']}" for one in status.get("conditions", []) if one.get("message")]
    failure = status.get("modelStatus", {}).get("lastFailureInfo", {})
    return "; ".join([*said, *filter(None, [failure.get("message")])])


def _generation(service: Object) -> Any:
    return service["metadata"]["generation"]


def _uri(service: Object) -> str:
    return str(service["spec"]["predictor"].get("model", {}).get("storageUri", "its former model"))
