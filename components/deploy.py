"""Step 7: a bundle is served by KServe."""

from kfp.dsl import Input, Model

from components.image import component


@component
def deploy(bundle: Input[Model], target: str, canary_percent: int, timeout_s: int) -> str:
    """Create or update the InferenceService of a bundle, and wait until it is ready.

    If it is not in time, what was served before is served again, and the step fails.

    Args:
        bundle: Folder from export.
        target: namespace/name of the InferenceService, or its name alone in the namespace of this step.
        canary_percent: Share of the requests that the new model gets; 100 for all.
        timeout_s: Seconds until it has to be ready.

    Returns:
        Output: The server's address.
    """
    from components.cluster.api import own_namespace
    from components.cluster.deployment import deploy_service
    from components.cluster.inference_service import Target, inference_service

    service = inference_service(Target.parse(target, own_namespace()), bundle.uri, canary_percent=canary_percent)
    return deploy_service(service, timeout_s=timeout_s, poll_s=5)
