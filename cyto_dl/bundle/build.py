"""From an experiment to a bundle's document, and from a document to a Predictor.

config --document_from_config--> document (plain values, = bundle.yaml) --build_predictor + weights--> Predictor
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cyto_dl.allocator import keep_freed_memory
from cyto_dl.bundle.format import FORMAT_VERSION
from cyto_dl.bundle.targets import check_targets, instantiate
from cyto_dl.data.stages import for_source, readers, stages
from cyto_dl.data.transforms import ReadImaged, Transform
from cyto_dl.errors import BundleError, ConfigError
from cyto_dl.inference.predictor import InputSpec, Predictor
from cyto_dl.inference.sliding_window import SlidingWindow
from cyto_dl.model.network import Ensemble, TaskNetwork
from cyto_dl.model.tasks import Task, build_tasks
from cyto_dl.model.utils.postprocessing import default_prediction, gives_labels

_LOAD_ARGUMENTS = ("spatial_dims", "channels", "z", "scene", "timepoint")


def parts_with_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes of an experiment that evaluation and export turn into objects, by their key."""
    return {
        "data.transforms": config["data"]["transforms"],
        "model.backbone": config["model"]["backbone"],
        "model.task_heads": config["model"]["task_heads"],
        "model.postprocessing.prediction": _prediction(config),
    }


def document_from_config(config: Mapping[str, Any], *, allow: Iterable[str] = ()) -> dict[str, Any]:
    """What a bundle says about the model of a resolved experiment; the network is described, not built.

    Args:
        config: The resolved experiment, plain values.
        allow: Dotted names of code beyond the list that the experiment may use.

    Raises:
        ConfigError: The experiment lacks what a prediction needs.
        BundleError: It asks for code that is not allowed.
    """
    allow = tuple(allow)
    for key, node in parts_with_code(config).items():
        check_targets(node, allow=allow, where=key)
    model, key = config["model"], config["model"]["x_key"]
    reader, preprocess = _source_transforms(config["data"]["transforms"], key, allow)
    tasks = _tasks(config, allow)
    chosen = _prediction(config)
    postprocess = {name: chosen.get(name) or _default_node(task) for name, task in tasks.items()}
    return {
        "format_version": FORMAT_VERSION,
        "name": config.get("run_name") or config.get("experiment_name") or "model",
        "input": {
            "name": key,
            "axes": "CZYX" if reader.spatial_dims == 3 else "CYX",
            "channels": _num_channels(reader, config),
            "dtype": "float32",
            "spacing_um": None,
            "load": {name: _plain(getattr(reader, name)) for name in _LOAD_ARGUMENTS},
        },
        "preprocess": preprocess,
        "model": {
            "backbone": model["backbone"],
            "heads": {name: head["head"] for name, head in model["task_heads"].items()},
        },
        "postprocess": postprocess,
        "inference": dict(model.get("inference") or {}),
        "outputs": {
            name: {
                "kind": task.kind,
                "activation": task.activation,
                "values": _values(task, instantiate(postprocess[name], allow=allow)),
            }
            for name, task in tasks.items()
        },
    }


def build_predictor(
    document: Mapping[str, Any],
    state_dict: Mapping[str, Tensor] | None = None,
    *,
    allow: Iterable[str] = (),
    device: str | torch.device = "cpu",
) -> Predictor:
    """The Predictor that a document describes, with the weights of `state_dict` (None: random ones).

    Args:
        document: As `document_from_config` makes it; with `ensemble`, a list of files, of as many networks.
        state_dict: Weights by name; those of an ensemble's member begin with `members.<number>.`.
        allow: Further dotted names that are allowed.
        device: Where the network runs.

    Raises:
        BundleError: The document asks for code that is not allowed, or does not fit together or to the weights.
        ConfigError: There is no such device.
    """
    allow, place = tuple(allow), _device(device)
    for part in ("model", "preprocess", "postprocess"):
        check_targets(document[part], allow=allow, where=part)
    try:
        keep_freed_memory()
        if place.type == "cuda":  # TF32 in convolutions is off by 1e-3: more than a replay tolerates
            torch.backends.cudnn.allow_tf32 = False
        network = _build_network(document, allow)
        _check_heads(document)
        if state_dict is not None:
            network.load_state_dict(state_dict)
        return Predictor(
            name=str(document["name"]),
            input=_input_spec(document["input"]),
            outputs={head: dict(output) for head, output in document["outputs"].items()},
            network=network.to(place).eval(),
            preprocess=tuple(instantiate(document["preprocess"], allow=allow, where="preprocess")),
            postprocess={
                head: instantiate(document["postprocess"][head], allow=allow, where=f"postprocess.{head}")
                for head in document["outputs"]
            },
            window=SlidingWindow(**document["inference"]),
            metadata=dict(document),
            device=place,
        )
    except ConfigError as error:
        raise BundleError(f"the model cannot be built: {error}") from error
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(
            f"the model cannot be built from its description and weights: {type(error).__name__}: {error}. "
            "Was it trained with the configuration that it carries, and with the same MONAI and torch?"
        ) from error


def _device(name: str | torch.device) -> torch.device:
    """The device of a name, if this machine has it: the processor, or what torch finds beside it (cuda, mps, xpu)."""
    there = ["cpu"]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        numbers = range(torch.accelerator.device_count())
        there += [accelerator.type, *(f"{accelerator.type}:{number}" for number in numbers)]
    if str(name) in there:
        return torch.device(name)
    reason = ""
    if str(name).startswith("cuda") and torch.version.cuda is None:
        reason = f" PyTorch {torch.__version__} is built without CUDA; a GPU needs a build that has it."
    raise ConfigError(f"there is no device {str(name)!r} here. Choose {' or '.join(there)}.{reason}")


def _check_heads(document: Mapping[str, Any]) -> None:
    """Heads name folders of predictions: a bundle's "/etc/x" must not become one."""
    heads = document["model"]["heads"]
    if wrong := [head for head in heads if not str(head).isidentifier()]:
        raise BundleError(f"model.heads: {wrong[0]!r} cannot name a head; letters, digits and _ can.")
    for part in ("outputs", "postprocess"):
        if set(document[part]) != set(heads):
            raise BundleError(f"{part} has {', '.join(document[part])}, but model.heads has {', '.join(heads)}.")


def _build_network(document: Mapping[str, Any], allow: Sequence[str]) -> TaskNetwork | Ensemble:
    if files := document.get("ensemble"):
        return Ensemble([_build_member(document["model"], allow) for _ in files])
    return _build_member(document["model"], allow)


def _build_member(model: Mapping[str, Any], allow: Sequence[str]) -> TaskNetwork:
    backbone = instantiate(model["backbone"], allow=allow, where="model.backbone")
    heads = {name: instantiate(node, allow=allow, where=f"model.heads.{name}") for name, node in model["heads"].items()}
    for name, module in {"model.backbone": backbone, **heads}.items():
        if not isinstance(module, nn.Module):
            raise BundleError(f"{name} is no torch module but a {type(module).__name__}.")
    return TaskNetwork(backbone, heads)


def _input_spec(described: Mapping[str, Any]) -> InputSpec:
    spacing_um = described.get("spacing_um")
    return InputSpec(
        name=described["name"],
        spatial_dims=len(described["axes"]) - 1,
        num_channels=described["channels"],
        load=dict(described["load"]),
        spacing_um=tuple(spacing_um) if spacing_um else None,
    )


def _source_transforms(
    transforms: Mapping[str, Any] | Sequence[Any], key: str, allow: Sequence[str]
) -> tuple[ReadImaged, list[dict[str, Any]]]:
    """How the source is read, and the nodes of what is done to it afterwards, as at predict time."""
    node_of: dict[int, dict[str, Any]] = {}

    def built(nodes: Sequence[dict[str, Any]]) -> list[Transform]:
        objects = [instantiate(node, allow=allow, where="data.transforms") for node in nodes]
        node_of.update({id(each): node for each, node in zip(objects, nodes, strict=True)})
        return objects

    made: Any = (
        {name: built(nodes or []) for name, nodes in transforms.items()}
        if isinstance(transforms, Mapping)
        else built(transforms)
    )
    found = stages(made, split="predict")
    if key not in readers(found.load):
        raise ConfigError(
            f"data.transforms.load has no cyto_dl.data.ReadImaged for '{key}', so a bundle cannot say how images are "
            f"read. Add {{_target_: cyto_dl.data.ReadImaged, keys: {key}, spatial_dims: ...}}."
        )
    after_reading = [each for each in found.load if not isinstance(each, ReadImaged)] + list(found.preprocess)
    return readers(found.load)[key], for_source([node_of[id(each)] for each in after_reading], key)


def _tasks(config: Mapping[str, Any], allow: Sequence[str]) -> dict[str, Task]:
    """The experiment's tasks without their metrics, for what they say about heads and activations."""
    nodes = {
        name: {part: task.get(part) for part in ("head", "loss")}
        for name, task in config["model"]["task_heads"].items()
    }
    return build_tasks(instantiate(nodes, allow=allow, where="model.task_heads"))


def _prediction(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict((config["model"].get("postprocessing") or {}).get("prediction") or {})


def _default_node(task: Task) -> dict[str, Any]:
    function = default_prediction(task.kind, task.activation)
    return {"_target_": f"{function.__module__}.{function.__qualname__}", "_partial_": True}


def _values(task: Task, postprocess: Callable[..., Any]) -> str:
    """Whether a head's image holds labels, which are names, or intensities."""
    if task.kind != "instances":
        return "labels" if gives_labels(postprocess) else "intensities"
    home = getattr(postprocess, "func", postprocess).__module__
    if home == default_prediction.__module__ and not gives_labels(postprocess):
        raise ConfigError(
            f"model.postprocessing.prediction.{task.name} makes no labels, and model.task_heads.{task.name} predicts "
            f"objects. Use {home}.instances, or leave it out."
        )
    return "labels"


def _num_channels(reader: ReadImaged, config: Mapping[str, Any]) -> int:
    if reader.num_channels is not None:
        return reader.num_channels
    if reader.channels is not None:
        return 1 if isinstance(reader.channels, int) else len(reader.channels)
    if config.get("raw_im_channels"):
        return int(config["raw_im_channels"])
    raise ConfigError(
        "the experiment does not say how many channels its source has. Set raw_im_channels, or num_channels of the "
        "source's ReadImaged in data.transforms.load."
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
