"""The InferenceService that serves a bundle, as KServe takes it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cyto_dl.errors import ConfigError

GROUP, VERSION, PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"
RUNTIME = "cyto-dl"  # of deploy/runtime
SERVICE_ACCOUNT = "cyto-dl-server"  # of deploy/serving
# A volume of 64 x 512 x 512 in windows takes about 4 GB; as deploy/serving asks for.
RESOURCES = {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"cpu": "4", "memory": "8Gi"}}
# What KServe's storage initializer downloads; it does not know models:/ of MLflow.
_DOWNLOADS = ("s3://", "gs://", "https://", "http://", "pvc://", "hf://")
# It becomes a part of a host's name: <name>-predictor-<namespace>, of at most 63 characters.
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True)
class Target:
    """Where a bundle is served.

    Attributes:
        name: Of the InferenceService, and of the model in its addresses.
        namespace: Of Kubernetes.
    """

    name: str
    namespace: str

    @classmethod
    def parse(cls, text: str, default_namespace: str) -> "Target":
        """`namespace/name`, or `name` alone for the default namespace.

        Raises:
            ConfigError: Not names that Kubernetes takes.
        """
        namespace, _, name = text.rpartition("/")
        target = cls(name, namespace or default_namespace)
        for word in (target.name, target.namespace):
            if not _NAME.fullmatch(word) or len(f"{target.name}-predictor-{target.namespace}") > 63:
                raise ConfigError(
                    f"deploy_target '{text}': write namespace/name of lowercase letters, digits and hyphens, beginning "
                    f"with a letter, at most 52 characters together, e.g. imaging/nuclei; '{word}' does not fit."
                )
        return target


def inference_service(
    target: Target,
    bundle_uri: str,
    *,
    image: str = "",
    resources: Mapping[str, Mapping[str, str]] = RESOURCES,
    canary_percent: int = 100,
    service_account: str = SERVICE_ACCOUNT,
) -> dict[str, Any]:
    """The InferenceService as a mapping.

    Args:
        target: Its name and namespace.
        bundle_uri: Where the bundle is, s3://...; minio://..., as Kubeflow Pipelines calls its own store, becomes s3://.
        image: The server's; "" for the one of the ClusterServingRuntime.
        resources: Requests and limits of the server.
        canary_percent: Share of the requests that the new revision gets; 100 for all. Only in KServe's Knative mode.
        service_account: Its secrets let KServe download the bundle.

    Raises:
        ConfigError: A percentage outside 1 to 100, an address that KServe cannot download.
    """
    if not 1 <= canary_percent <= 100:
        raise ConfigError(f"canary_percent {canary_percent}: from 1 to 100, the share of requests for the new model.")
    model = {
        "modelFormat": {"name": RUNTIME},
        "runtime": RUNTIME,
        "protocolVersion": "v2",
        "storageUri": _downloadable(bundle_uri),
        "resources": {kind: dict(amounts) for kind, amounts in resources.items()},
    }
    if image:
        model["image"] = image
    predictor: dict[str, Any] = {
        "serviceAccountName": service_account,
        "minReplicas": 1,
        "maxReplicas": 3,
        # Two requests are predicted at a time; the next goes to another pod (docs/how-to/deploy.md).
        "scaleMetric": "concurrency",
        "scaleTarget": 1,
        "containerConcurrency": 2,
        "timeout": 300,
        "model": model,
    }
    if canary_percent < 100:
        predictor["canaryTrafficPercent"] = canary_percent
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "InferenceService",
        "metadata": {
            "name": target.name,
            "namespace": target.namespace,
            "labels": {"app.kubernetes.io/part-of": "cyto-dl"},
        },
        "spec": {"predictor": predictor},
    }


def _downloadable(uri: str) -> str:
    # KFP writes minio:// for every S3-compatible store that is not named otherwise; KServe knows only s3://.
    address = re.sub(r"^minio://", "s3://", uri)
    if not address.startswith(_DOWNLOADS):
        raise ConfigError(
            f"KServe cannot download the bundle from '{uri}'. Put it at one of "
            f"{', '.join(_DOWNLOADS)}: Kubeflow Pipelines does when its artifacts are kept on S3."
        )
    return address
