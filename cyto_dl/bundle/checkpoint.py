"""From a checkpoint of a training run to the Predictor that its bundle will hold."""

import copy
import logging
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from cyto_dl.bundle.build import build_predictor, document_from_config, parts_with_code
from cyto_dl.bundle.format import is_bundle
from cyto_dl.bundle.load import load_bundle
from cyto_dl.bundle.provenance import provenance
from cyto_dl.bundle.targets import foreign_targets, instantiate
from cyto_dl.config import differences, flatten
from cyto_dl.errors import BundleError, ConfigError, list_problems
from cyto_dl.inference.predictor import Predictor
from cyto_dl.inference.sliding_window import SlidingWindow
from cyto_dl.storage import localize

logger = logging.getLogger(__name__)

_PREFIX = "network."  # of the network's weights in a checkpoint
CHOSEN_AFTER_TRAINING = ("model.inference.", "model.postprocessing.prediction.")


def predictor_from_checkpoint(
    run_dir_or_ckpt: str | PathLike[str],
    *,
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    allow: Iterable[str] = (),
    device: str = "cpu",
) -> tuple[Predictor, dict[str, Any], dict[str, Any]]:
    """The Predictor of a checkpoint, its document, and the experiment that it was built from.

    Args:
        run_dir_or_ckpt: A .ckpt, or the folder of a run: its best checkpoint, else its last. Local or s3://. With
            `config`, also a bundle, which holds no experiment: so an ensemble is evaluated. A bundle predicts as it
            was exported, and `config` says the rest; what differs is logged.
        config: The resolved experiment, if the caller has it; the code that it names is the caller's own and trusted.
            Without it, the experiment in the checkpoint is used, and code beyond the list must be allowed.
        settings: What is chosen after training, by configuration key, e.g. {"model.inference.augment": "flips"}: all
            below model.inference and model.postprocessing.prediction. They win, over a bundle's own too.
        allow: Further dotted names that are allowed.
        device: Where the network runs, e.g. "cuda".

    Raises:
        BundleError: There is no checkpoint, it is damaged, or it names code that is not allowed.
        ConfigError: The experiment lacks what a prediction needs, or describes another network than the checkpoint
            holds, or a setting is none that can be chosen.
    """
    allowed = list(allow)
    if config is not None:
        allowed += [str(foreign["target"]) for foreign in foreign_targets(parts_with_code(config))]
        if is_bundle(localize(run_dir_or_ckpt)):
            predictor = _with_own_settings(
                load_bundle(run_dir_or_ckpt, allow=allowed, device=device), settings, allowed
            )
            return predictor, dict(predictor.metadata), _as_it_predicts(config, predictor)
    path = find_checkpoint(run_dir_or_ckpt)
    checkpoint = read_checkpoint(path)
    trained = checkpoint["config"]
    config = _with_settings(trained if config is None else config, settings or {})
    document = document_from_config(config, allow=allowed)
    document["provenance"] = {
        "checkpoint": {"file": path.name, "epoch": checkpoint.get("epoch"), "step": checkpoint.get("global_step")},
        "training_commit": checkpoint.get("git_commit"),
        **provenance(config, run_dir=path.parent.parent),
    }
    weights = network_weights(checkpoint)
    changed = differences(_trained_part(trained), _trained_part(config))
    try:
        predictor = build_predictor(document, weights, allow=allowed, device=device)
    except BundleError as error:
        if not changed:
            raise
        raise ConfigError(
            f"{path} is of another experiment than this one:\n{list_problems(changed)}\n"
            "Give the experiment, and the values on the command line, that it was trained with."
        ) from error
    if changed:
        logger.warning(
            "%s was trained with another experiment than it predicts with; its predictions may be wrong:\n%s",
            path,
            list_problems(changed),
        )
    return predictor, document, config


def _trained_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of an experiment, what has to be the same in training and prediction: the network and what it is shown."""
    model, transforms = config["model"], config["data"].get("transforms")
    if isinstance(transforms, Mapping):
        transforms = {stage: nodes for stage, nodes in transforms.items() if stage != "augment"}
    heads = {name: {"head": task.get("head")} for name, task in (model.get("task_heads") or {}).items()}
    return {"data": {"transforms": transforms}, "model": {"backbone": model.get("backbone"), "task_heads": heads}}


def _with_own_settings(predictor: Predictor, settings: Mapping[str, Any] | None, allow: Iterable[str]) -> Predictor:
    """The predictor of a bundle, with `settings` over those that it was exported with."""
    if not settings:
        return predictor
    changed = _with_settings(_settings_of(predictor), settings)["model"]
    drawn = changed["postprocessing"]["prediction"]
    for head, node in drawn.items():
        own = predictor.metadata["postprocess"].get(head)
        if not node or not own or node.get("_target_") != own["_target_"]:
            raise ConfigError(
                f"model.postprocessing.prediction.{head}: a bundle says what its outputs are, so that its functions "
                "cannot be exchanged, only their parameters. Evaluate the run's folder, and export with --set."
            )
    return replace(
        predictor,
        window=SlidingWindow(**changed["inference"]),
        postprocess={head: instantiate(node, allow=allow, where=f"postprocess.{head}") for head, node in drawn.items()},
        metadata={**predictor.metadata, "inference": changed["inference"], "postprocess": drawn},
    )


def _as_it_predicts(config: Mapping[str, Any], predictor: Predictor) -> dict[str, Any]:
    """The experiment with the settings of the bundle that it evaluates."""
    model, own = config["model"], _settings_of(predictor)["model"]
    drawing = model.get("postprocessing") or {}
    asked = {"inference": model.get("inference"), "postprocessing": {"prediction": drawing.get("prediction")}}
    has = flatten({"model": own})
    kept = [
        f"{key} {has.get(key)} (experiment: {value})"
        for key, value in flatten({"model": asked}).items()
        if value is not None and has.get(key) != value
    ]
    if kept:
        logger.info(
            "%s predicts as it was exported, unless the command line says so: %s", predictor.name, ", ".join(kept)
        )
    return {**config, "model": {**model, **own, "postprocessing": {**drawing, **own["postprocessing"]}}}


def _settings_of(predictor: Predictor) -> dict[str, Any]:
    """What a bundle says about how it predicts, by the keys of an experiment."""
    document = predictor.metadata
    return {"model": {"inference": document["inference"], "postprocessing": {"prediction": document["postprocess"]}}}


def _with_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    for key, value in settings.items():
        if not key.startswith(CHOSEN_AFTER_TRAINING):
            raise ConfigError(
                f"{key} cannot be changed after training; what can be begins with {' or '.join(CHOSEN_AFTER_TRAINING)}"
            )
        *path, last = key.split(".")
        node: Any = changed
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: there is no {'.'.join(path)}. Look at the run's config.yaml, or at bundle.yaml.")
        if path == ["model", "inference"] and last not in SlidingWindow.__dataclass_fields__:
            raise ConfigError(f"{key}: unknown, choose one of {', '.join(SlidingWindow.__dataclass_fields__)}.")
        node[last] = value
    return changed


def find_checkpoint(run_dir_or_ckpt: str | PathLike[str]) -> Path:
    """The checkpoint file that a path means: itself, or the best (else the last) one of a run's folder."""
    path = localize(run_dir_or_ckpt)
    if path.is_file():
        return path
    for candidate in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "best.ckpt", "last.ckpt"):
        if (path / candidate).is_file():
            return path / candidate
    raise BundleError(
        f"{run_dir_or_ckpt} is neither a checkpoint nor the folder of a run with checkpoints/best.ckpt or last.ckpt."
    )


def network_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's network, by their names in it."""
    return {
        name.removeprefix(_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_PREFIX)
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: weights and plain values; nothing in it is executed.

    Raises:
        BundleError: The file is damaged, or no checkpoint of CytoDL.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition(". ")[0]  # torch goes on about pickles
        raise BundleError(f"{path} cannot be read as a checkpoint: {reason}. Is the file complete?") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "config"} <= set(checkpoint):
        raise BundleError(f"{path} holds no state_dict and config: it is no checkpoint that CytoDL wrote.")
    return checkpoint
