"""Are manifests what the published models of Kubernetes, KServe and Kubeflow Trainer say? No key may be dropped."""

import re
from typing import Any

import kserve
import kubernetes.client
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

# Kind -> its model. Of kserve's and kubernetes' clients: both are made by OpenAPI's generator for Python.
CLASSES = {
    "ClusterServingRuntime": "V1alpha1ClusterServingRuntime",
    "InferenceService": "V1beta1InferenceService",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "ServiceAccount": "V1ServiceAccount",
}
SCALARS = {"str": str, "bool": bool, "int": int, "float": float, "object": object, "ResourceQuantity": str}


def assert_known(manifest: dict[str, Any]) -> None:
    """The manifest, read and written again by its model, is what it was.

    Raises:
        AssertionError: A key that the model does not have, a value of another type, a key that got lost.
        ValueError: A key is missing (raised by the model itself).
    """
    if manifest["kind"] == "TrainJob":
        assert TrainerV1alpha1TrainJob.from_dict(manifest).to_dict() == manifest
        return
    model = build(manifest, CLASSES[manifest["kind"]], manifest["kind"])
    assert_kept(kubernetes.client.ApiClient().sanitize_for_serialization(model), manifest)


def assert_kept(again: Any, before: Any) -> None:
    """Everything of `before` is in `again`, to which a model may have added a default (the name "" of a ModelSpec)."""
    if isinstance(before, dict):
        for key, value in before.items():
            assert_kept(again[key], value)
    else:
        assert again == before


def build(value: Any, kind: str, where: str) -> Any:
    """`value` as an object of the class called `kind`, every key of which is known."""
    if collection := re.fullmatch(r"list\[(.*)\]|dict\([^,]*, (.*)\)", kind):
        of_list, of_dict = collection.groups()
        if of_list:
            assert isinstance(value, list), where
            return [build(item, of_list, f"{where}[{number}]") for number, item in enumerate(value)]
        assert isinstance(value, dict), where
        return {key: build(item, of_dict, f"{where}.{key}") for key, item in value.items()}
    if kind in SCALARS:
        assert isinstance(value, SCALARS[kind]), f"{where} is {value!r}, not {kind}"
        assert kind == "bool" or kind == "object" or not isinstance(value, bool), where
        return value
    model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind)
    attributes = {key: attribute for attribute, key in model.attribute_map.items()}
    assert set(value) <= set(attributes), f"{where} has no {sorted(set(value) - set(attributes))}"
    names = {key: attributes[key] for key in value}
    return model(**{names[key]: build(value[key], model.openapi_types[names[key]], f"{where}.{key}") for key in value})
