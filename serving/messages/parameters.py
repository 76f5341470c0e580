"""What a client may ask of one request: the parameters of the model, and those of every request.

V2              "parameters" of the request (over gRPC fractions come as text: its parameters have none)
V1, JSON        "parameters" of the body
V1, a file      the address: POST /v1/models/NAME:predict?threshold=0.4&min_size=30
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kserve.errors import InvalidInput
from kserve.protocol.grpc.grpc_predict_v2_pb2 import InferParameter

from cyto_dl.errors import ConfigError
from cyto_dl.inference import Predictor
from cyto_dl.inference.parameters import Parameter, parameters_of, read_parameters
from serving.limits import Limits
from serving.messages.axes import accepted_axes

_OF_THE_PROTOCOL = ("binary_data_output",)  # read where the answer is written
# Triton's extensions of a tensor that change where its values are, or what they mean. Everything else that may stand
# there (MLServer's content_type, binary_data over gRPC) is about the form, and is ignored as the protocol allows.
_NOT_HERE = ("classification", "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
_LARGEST_PIXEL_UM = 1e6
_SHORTEST_S = 0.01


@dataclass(frozen=True)
class Asked:
    """The parameters of one request.

    Args:
        model: Those of the model, checked, for `cyto_dl.inference.parameters.with_parameters`.
        timeout_s: Seconds that the request may take.
        spacing_um: Pixel size (Z)YX of its images, where it is said.
        axes: Their order, where it is said.
    """

    timeout_s: float
    model: Mapping[str, Any] = field(default_factory=dict)
    spacing_um: tuple[float, ...] | None = None
    axes: str | None = None


def offered_parameters(predictor: Predictor, limits: Limits) -> dict[str, Parameter]:
    """Everything that a request to a model may ask, by name."""
    spec = predictor.input
    default = list(spec.spacing_um) if spec.spacing_um else None
    orders = " or ".join(accepted_axes(spec, batch=True))
    return parameters_of(predictor) | {
        "timeout_s": Parameter(
            "timeout_s", "number", "Seconds that the request may take.", limits.timeout_s, _SHORTEST_S, limits.timeout_s
        ),
        "spacing_um": Parameter(
            "spacing_um", "numbers", f"Pixel size {' '.join(spec.axes[1:])} in µm, where a file does not say it.",
            default, 0, _LARGEST_PIXEL_UM, is_open=True, num_values=spec.spatial_dims,
        ),
        "axes": Parameter("axes", "text", f"Order of the axes, if it is not {orders}; V1 has no N."),
    }  # fmt: skip


def read_asked(values: Any, predictor: Predictor, limits: Limits) -> Asked:
    """The parameters of a request, checked.

    Raises:
        InvalidInput: Names the parameter, what came and what is accepted.
    """
    if values is not None and not isinstance(values, Mapping):
        raise InvalidInput("parameters: an object is wanted, as {\"overlap\": 0.5}")  # fmt: skip
    for name in _OF_THE_PROTOCOL:
        check_switch(values, name, name="parameters")
    given = {name: _value(name, value) for name, value in (values or {}).items() if name not in _OF_THE_PROTOCOL}
    if not given:
        return Asked(limits.timeout_s)
    try:
        checked = read_parameters(given, offered_parameters(predictor, limits))
    except ConfigError as error:
        raise InvalidInput(f"parameters: {error}") from error
    timeout_s = checked.pop("timeout_s", limits.timeout_s)
    spacing_um, axes = checked.pop("spacing_um", None), checked.pop("axes", None)
    return Asked(timeout_s, checked, None if spacing_um is None else tuple(spacing_um), axes)


def check_tensor_parameters(values: Mapping[str, Any] | None, *, name: str) -> None:
    """See that nothing is asked of one tensor that would be silently left out.

    Args:
        values: The tensor's `parameters`, or those of a requested output.
        name: Of it, for messages.

    Raises:
        InvalidInput: Names the parameter.
    """
    for parameter in _NOT_HERE:
        if (values or {}).get(parameter):  # 0 classes are none
            raise InvalidInput(f"{name}: parameters: {parameter}: this server does not have Triton's extension; "
                               "values come and go with the request, whole")  # fmt: skip
    check_switch(values, "binary_data", name=f"{name}: parameters")


def check_switch(values: Mapping[str, Any] | None, parameter: str, *, name: str) -> None:
    """See that a parameter, where it is given over REST, is a boolean: the text "false" would be true.

    Raises:
        InvalidInput: It is something else.
    """
    value = (values or {}).get(parameter, False)
    if not isinstance(value, bool | InferParameter):
        raise InvalidInput(f"{name}: {parameter}: true or false is wanted, got {str(value)[:60]!r}")


def _value(name: str, value: Any) -> Any:
    if not isinstance(value, InferParameter):
        return value
    kind = value.WhichOneof("parameter_choice")
    if kind is None:  # of a kind that this protocol does not have, as Triton's fractions
        raise InvalidInput(f"parameters: {name}: it is neither text, a whole number nor a boolean; send it as text")
    return getattr(value, kind)
