"""What a server tells of a model: its tensors, what a request may ask, and which bundle it is.

The V2 protocol has fields for names, datatypes and shapes. Everything else stands under `parameters`, of a tensor or of
the model; over gRPC there is no place for it.
"""

from typing import Any

import numpy as np
from kserve.utils.numpy_codec import from_np_dtype

from cyto_dl import __version__
from cyto_dl.inference import InputSpec, Predictor
from serving.identity import Identity
from serving.limits import Limits
from serving.messages.axes import accepted_axes, full_axes
from serving.messages.parameters import offered_parameters
from serving.messages.requests import DATATYPES

_OF_A_TENSOR = ("name", "datatype", "shape")


def describe_model(name: str, predictor: Predictor, identity: Identity, limits: Limits) -> dict[str, Any]:
    """The metadata of a model, as JSON.

    Args:
        name: That it is served under.
        predictor: That computes.
        identity: Of its bundle.
        limits: Of requests.
    """
    document = predictor.metadata
    offered = offered_parameters(predictor, limits)
    return {
        "name": name,
        "versions": [],  # that could be asked for: there is one, and the address does not name it
        "platform": f"cyto-dl_{identity.engine}",
        "inputs": [describe_input(predictor.input)],
        "outputs": describe_outputs(predictor),
        "parameters": {
            "version": identity.version,
            "sha256": identity.sha256,
            "format_version": document.get("format_version"),
            "engine": identity.engine,
            "device": identity.device,
            "cyto_dl": __version__,
            "provenance": document.get("provenance") or {},
            "metrics": document.get("metrics") or {},
            "request_parameters": {parameter: each.described() for parameter, each in offered.items()},
            "limits": {"voxels": limits.voxels, "body_bytes": limits.body_bytes, "message_bytes": limits.message_bytes},
        },
    }


def without_parameters(document: dict[str, Any]) -> dict[str, Any]:
    """What of a model's metadata gRPC has fields for."""
    tensors = {
        kind: [{key: tensor[key] for key in _OF_A_TENSOR} for tensor in document[kind]]
        for kind in ("inputs", "outputs")
    }
    return {"name": document["name"], "platform": document["platform"], **tensors}


def describe_input(spec: InputSpec) -> dict[str, Any]:
    """The input tensor: FP32 is what the network computes with, `datatypes` what is accepted."""
    return {
        "name": spec.name,
        "datatype": "FP32",
        "shape": [-1, spec.num_channels, *[-1] * spec.spatial_dims],
        "parameters": {
            "axes": full_axes(spec, batch=True),
            "accepted_axes": accepted_axes(spec, batch=True),
            "datatypes": list(DATATYPES),
            "spacing_um": list(spec.spacing_um) if spec.spacing_um else None,
            "load": {"spatial_dims": spec.spatial_dims, **spec.load},  # what of a file it is, as `read_image` takes it
        },
    }


def describe_outputs(predictor: Predictor) -> list[dict[str, Any]]:
    """One tensor per head."""
    return [
        {
            "name": head,
            "datatype": from_np_dtype(np.dtype(output["dtype"])),
            "shape": [-1, output["channels"], *[-1] * (len(output["axes"]) - 1)],
            "parameters": {
                "axes": f"N{output['axes']}",
                **{key: output[key] for key in ("kind", "activation", "values") if key in output},
            },
        }
        for head, output in predictor.outputs.items()
    ]
