"""The Kubernetes API as a step sees it: found, asked about one object, and its refusals explained."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyto_dl.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_ANSWER_SECONDS = 30  # an API server under load answers within seconds; without a limit a lost packet waits for ever

Object = dict[str, Any]


def connect() -> "ApiClient":
    """A client with the rights of the pod's account; outside a cluster with those of $KUBECONFIG or ~/.kube/config.

    Raises:
        ConfigError: There is neither.
    """
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        try:
            config.load_kube_config(config_file=os.environ.get("KUBECONFIG"), client_configuration=configuration)
        except config.ConfigException as error:
            raise ConfigError(
                f"no Kubernetes cluster is known: {error}. Run this in a pod, or set KUBECONFIG."
            ) from error
    return client.ApiClient(configuration)


def own_namespace() -> str:
    """The namespace of the pod that this runs in; `default` outside a cluster."""
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else "default"


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the API refuses into a message that says what to do.

    Raises:
        ConfigError: The request is refused: rights, a field, a namespace or a kind that does not exist.
        StorageError: The API server does not answer, or has an error of its own.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if error.status in (401, 403):
            advice = "Give the step's account the rights in deploy/pipeline (docs/how-to/deploy.md)."
        elif error.status == 404:
            advice = "Is the namespace right, and is KServe, or Kubeflow Trainer for a TrainJob, installed?"
        elif error.status and error.status < 500:
            advice = "The message above names the field."
        else:
            raise StorageError(f"{what}: the Kubernetes API failed: {error.status} {error.body}") from error
        raise ConfigError(f"{what}: {error.status} {error.reason}: {error.body} {advice}") from error
    except HTTPError as error:
        raise StorageError(f"{what}: the Kubernetes API does not answer: {error}") from error


@dataclass(frozen=True)
class CustomObject:
    """One object of a custom kind, by its name.

    Attributes:
        client: From `connect`.
        group, version, plural: Its kind's, e.g. serving.kserve.io, v1beta1, inferenceservices.
        namespace, name: Its own.
    """

    client: "ApiClient"
    group: str
    version: str
    plural: str
    namespace: str
    name: str

    def get(self) -> Object | None:
        """The object as the cluster has it; None if it does not exist."""
        return self._unless(404, "get", name=self.name)

    def create(self, body: Object) -> Object | None:
        """The object as it was created; None if one of its name exists."""
        return self._unless(409, "create", body=body)

    def patch(self, body: Object) -> Object | None:
        """The object with the changes of a merge patch; None if it is not at the patch's resourceVersion any more."""
        return self._unless(409, "patch", name=self.name, body=body)

    def replace(self, body: Object) -> Object | None:
        """The object as replaced; None if it is not at the body's resourceVersion any more."""
        return self._unless(409, "replace", name=self.name, body=body)

    def delete(self) -> None:
        """Remove it, and what the cluster made for it; nothing happens if it does not exist."""
        # Foreground: it is gone only when its pods are, so that a new one of its name does not meet them.
        self._unless(404, "delete", name=self.name, propagation_policy="Foreground")

    def _unless(self, status: int, verb: str, **arguments: Any) -> Object | None:
        from kubernetes.client import ApiException, CustomObjectsApi

        call = getattr(CustomObjectsApi(self.client), f"{verb}_namespaced_custom_object")
        with explained(f"{verb} {self.plural} {self.namespace}/{self.name}"):
            try:
                answer: Object = call(
                    self.group, self.version, self.namespace, self.plural, _request_timeout=_ANSWER_SECONDS, **arguments
                )
            except ApiException as error:
                # A kind or a namespace that does not exist is a 404 too; for an object of ours, Status names it.
                if error.status != status:
                    raise
                return None
        return answer
