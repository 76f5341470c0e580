"""Refuse an experiment that cannot work, before its first step and before anything is written.

config --what is missing? is a value of another type than its class asks for?--> data module --are the images right?-->
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from cyto_dl.argument_types import in_words, is_of, parameters
from cyto_dl.config import experiments
from cyto_dl.errors import ConfigError, list_problems

if TYPE_CHECKING:
    from lightning import LightningDataModule, LightningModule

# Keys that no class takes; those of configs/train.yaml and configs/eval.yaml, and those that all experiments share
_OWN_KEYS: dict[str, Any] = {
    "train": bool,
    "test": bool,
    "resume": bool,
    "ckpt_path": str | None,
    "split": str | None,
    "seed": int,
    "optimized_metric": str,
    "optimized_mode": Literal["min", "max"],
    "spatial_dims": Literal[2, 3],
    "raw_im_channels": int,
    "source_channel": int | list[int] | None,
    "target_channel": int | list[int] | None,
}
# Keys of some experiments that arguments are made of
_SPREAD_KEYS: dict[str, Any] = {
    "scale": int | list[int],
    "num_classes": int,
    "num_planes": int,
    "target_mean": float | None,
    "target_std": float | None,
    "intensity_offset": float | None,
    "intensity_scale": float | None,
}
_EXTRAS: dict[str, Any] = {"print_config": bool, "matmul_precision": Literal["highest", "high", "medium"]}
_CHECKED_GROUPS = ("data", "model", "callbacks", "trainer")


def check_experiment(config: Mapping[str, Any]) -> None:
    """Refuse an experiment that cannot work, all problems at once.

    Raises:
        ConfigError: Lists what is missing or wrong, by key.
    """
    if not config.get("data") or not config.get("model"):
        raise ConfigError(
            "no experiment is chosen: add experiment=NAME, where NAME is one of "
            f"{', '.join(experiments())}, or a file of your own in --config-dir DIR (DIR/experiment/NAME.yaml)."
        )
    problems = []
    for group in ("data", "model", "trainer"):
        if "_target_" not in (config.get(group) or {}):
            problems.append(f"{group}._target_: the class to build is missing")
    model = config["model"]
    for key in ("optimizer", "lr_scheduler"):
        if key in model and not (model[key] or {}).get("generator"):
            problems.append(f"model.{key}.generator: required, e.g. {{_target_: ..., _partial_: true}}")
    for name, task in (model.get("task_heads") or {}).items():
        problems += [
            f"model.task_heads.{name}.{part}: required" for part in ("head", "loss") if not (task or {}).get(part)
        ]
        if name not in config["data"].get("columns", {name: None}):
            problems.append(f"data.columns: no column is named for the head '{name}', e.g. {{{name}: my_column}}")
    problems += _half_denormalized(model)
    problems += wrong_types(config)
    if problems:
        raise ConfigError(f"the experiment is wrong:\n{list_problems(problems)}")


def wrong_types(config: Mapping[str, Any]) -> list[str]:
    """Values of another type than the class that receives them asks for, a sentence a key.

    The types are those of the classes' signatures. Of classes that are not CytoDL's, only text where numbers belong is
    refused; the rest they say themselves when they are built. A value that several arguments take from one key at the
    top is named once, by that key.
    """
    own = {**_OWN_KEYS, **{f"extras.{key}": kind for key, kind in _EXTRAS.items()}}
    values = {**config, **{f"extras.{key}": value for key, value in (config.get("extras") or {}).items()}}
    wrong = [each for group in _CHECKED_GROUPS for each in _wrong_arguments(config.get(group), group)]
    refused = [key for key, kind in own.items() if key in values and not is_of(kind, values[key])]
    refused += [
        key
        for key, kind in _SPREAD_KEYS.items()  # an experiment of a user's own may mean something else by such a key
        if key in values and not is_of(kind, values[key]) and any(_is_in(values[key], given) for _, given, _ in wrong)
    ]
    kinds = {**own, **_SPREAD_KEYS}
    return [f"{key} is {values[key]!r}; give {in_words(kinds[key])}" for key in refused] + [
        f"{key} is {given!r}; {taken}"
        for key, given, taken in wrong
        if not any(_is_in(values[each], given) for each in refused)
    ]


def check_accelerator(trainer: Mapping[str, Any]) -> None:
    """Refuse an accelerator that this machine does not have.

    Args:
        trainer: The configuration's group `trainer`.

    Raises:
        ConfigError: Names those that there are.
    """
    from lightning.pytorch.accelerators import AcceleratorRegistry

    there = [
        name
        for name in AcceleratorRegistry.available_accelerators()
        if AcceleratorRegistry[name]["accelerator"].is_available()
    ]
    there += ["gpu"] if {"cuda", "mps"} & set(there) else []
    asked = trainer.get("accelerator", "auto")
    if isinstance(asked, str) and asked not in ("auto", *there):
        raise ConfigError(
            f"trainer.accelerator is {asked!r}, which this machine does not have: it has {', '.join(sorted(there))}. "
            "Choose e.g. trainer=cpu."
        )


def check_data(config: Mapping[str, Any], datamodule: "LightningDataModule") -> None:
    """Look at every image's header before the network is built: wrong data then leaves no files and no MLflow run.

    Raises:
        ManifestError: With everything that is wrong with the table and its images.
    """
    from cyto_dl.data import DataframeDatamodule

    if config["train"] and isinstance(datamodule, DataframeDatamodule):
        validates = config["trainer"].get("limit_val_batches") != 0
        datamodule.require("train", *["valid"] * validates)
        datamodule.setup("fit")
        if config["test"]:
            datamodule.setup("test")  # else a training ends with test images that turn out to be damaged


def check_labels(config: Mapping[str, Any], datamodule: "LightningDataModule", model: "LightningModule") -> None:
    """Look at the labels that the model learns, of all splits: one that is none would end a training late.

    Raises:
        ManifestError: With all label images that cannot be used.
    """
    from cyto_dl.data import DataframeDatamodule

    if config["train"] and isinstance(datamodule, DataframeDatamodule):
        datamodule.check_labels(getattr(model, "labels", ()))  # a model of a user's own may not say


def _half_denormalized(model: Mapping[str, Any]) -> list[str]:
    """Heads whose prediction has a mean without a standard deviation: half of the way back to grey values."""
    drawn = (model.get("postprocessing") or {}).get("prediction") or {}
    return [
        f"model.postprocessing.prediction.{name}: mean is {node['mean']} and std is {node['std']}; give both "
        "(target_mean and target_std, or intensity_offset and intensity_scale), or neither"
        for name, node in drawn.items()
        if node and {"mean", "std"} <= set(node) and (node["mean"] is None) != (node["std"] is None)
    ]


def _wrong_arguments(node: Any, key: str) -> Iterator[tuple[str, Any, str]]:
    """Key, value and what is taken instead, of the arguments of all targets in a node that cannot be meant."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield from _wrong_arguments(child, f"{key}[{index}]")
    if not isinstance(node, Mapping):
        return
    for name, child in node.items():
        yield from _wrong_arguments(child, f"{key}.{name}")
    if isinstance(node.get("_target_"), str):
        known = parameters(node["_target_"])
        for name in known.keys() & node.keys():
            if not known[name].takes(node[name]):
                target = node["_target_"].rpartition(".")[2]
                yield f"{key}.{name}", node[name], f"{target} takes {in_words(known[name].annotation)}"


def _is_in(value: Any, given: Any) -> bool:
    """Whether a value is what is given, or stands in it, as that of `scale` in `data.scales`."""
    return bool(given == value) or (isinstance(given, Mapping) and value in given.values())
