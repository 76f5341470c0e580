"""Hydra configurations: find them, compose them, turn them into plain values and into objects.

configs/*.yaml + overrides --compose--> DictConfig --plain--> dict (resolved, without `_aux`) --instantiate--> objects
"""

import difflib
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cyto_dl.errors import ConfigError, CytoDLError, list_problems
from cyto_dl.run_folder import remove_if_empty

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent
# In a wheel the configurations lie inside the package; in a checkout they stand at the top of the repository.
CONFIG_DIR = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"

AUXILIARY = "_aux"


def launch(task: Callable[[dict[str, Any]], Any], config_name: str) -> None:
    """Run `task` on the configuration that the command line asks for, with hydra's flags and multirun.

    `sys.argv` holds hydra overrides and flags (`--config-dir`, `-m`, `--cfg job`, ...). A CytoDLError or a
    mistake in the configuration ends the process with one message and the error's exit code.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    def run(config: DictConfig) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            return task(plain(config))
        except CytoDLError as error:
            remove_if_empty(Path(HydraConfig.get().runtime.output_dir), OmegaConf.select(config, "paths.log_dir"))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # the sweeper decides whether a failed job ends a sweep
            exit_with(error)  # here, because hydra would add a message of its own

    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra raises instead of printing, so that the exit code is ours
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(run)()
    except CytoDLError as error:
        exit_with(error)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        exit_with(_config_error(error))


def exit_with(error: CytoDLError) -> NoReturn:
    """Print an error as one message on stderr and end the process with its exit code."""
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    raise SystemExit(error.exit_code)


def compose_experiment(
    overrides: Sequence[str], *, output_dir: str | os.PathLike[str], config_name: str = "train.yaml"
) -> dict[str, Any]:
    """The plain configuration that `overrides` describe, as `python cyto_dl/train.py OVERRIDES...` would see it.

    Args:
        overrides: As on the command line, e.g. ["experiment=im2im/segmentation", "trainer.max_epochs=2"].
        output_dir: The run's folder (hydra makes it on the command line; here the caller says).
        config_name: "train.yaml" or "eval.yaml".

    Raises:
        ConfigError: An unknown experiment or key, a value that is missing.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    folder = f"'{Path(output_dir).resolve()}'"  # quoted for hydra's grammar: a path may hold "=" or spaces
    try:
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            return plain(compose(config_name, overrides=[*overrides, f"paths.output_dir={folder}"]))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise _config_error(error) from error


def given_below(config: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """What the command line itself says about keys, e.g. {"model.inference.augment": "flips"}; for a task of `launch`.

    Args:
        config: The plain configuration of the task.
        prefixes: What the keys begin with, e.g. ("model.inference.",).

    Raises:
        ConfigError: Such a key is deleted (`~key`).
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        if not f"{override.key_or_group}.".startswith(prefixes):
            continue
        if override.is_delete():
            raise ConfigError(f"{override.input_line}: a key cannot be deleted here. Give it another value, as null.")
        given |= {key: _at(config, key) for key in flatten({override.key_or_group: override.value()})}
    return given


def plain(config: Any) -> dict[str, Any]:
    """The configuration as plain dicts and lists: interpolations resolved, every `_aux` removed.

    Raises:
        ConfigError: Values that the experiment must give (`???`) are missing; all of them are named.
    """
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(
            f"the experiment does not say:\n{list_problems(missing)}\n"
            "Set each in the experiment's file or on the command line, e.g. data.path=my_images.csv."
        )
    resolved = _without_auxiliary(OmegaConf.to_container(config, resolve=True))
    assert isinstance(resolved, dict)
    return resolved


def instantiate(node: Any, key: str, **arguments: Any) -> Any:
    """The object that a configuration node describes; containers inside arrive as plain dicts and lists.

    Args:
        node: A mapping with `_target_`.
        key: Where the node stands in the experiment, for messages, e.g. "model".
        arguments: Further keyword arguments for the target.

    Raises:
        ConfigError: The target does not exist or does not take these arguments; names the key.
    """
    import hydra.utils
    from hydra.errors import HydraException

    try:
        return hydra.utils.instantiate(node, _convert_="all", **arguments)
    except HydraException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, CytoDLError):
                raise cause from error
            cause = cause.__cause__
        raise ConfigError(f"{key}: {_located(_without_repr(error), key)}") from error


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots: {"data": {"seed": 1}} -> {"data.seed": 1}. Lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two configurations say differently, a line a key, e.g. "model.backbone.filters: [8, 16] there, [8] now"."""
    one, other = flatten(_indexed(before)), flatten(_indexed(now))
    return [
        f"{key.replace('.[', '[')}: {one.get(key)!r} there, {other.get(key)!r} now"
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key)
    ]


def experiments() -> list[str]:
    """Names of the shipped experiments, as `experiment=` takes them."""
    folder = CONFIG_DIR / "experiment"
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def print_tree(config: Mapping[str, Any]) -> None:
    """Show an experiment as a tree on the terminal, one branch a group."""
    import rich
    import yaml
    from rich.syntax import Syntax
    from rich.tree import Tree

    tree = Tree("experiment", style="dim", guide_style="dim")
    groups = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    plain_values = {key: value for key, value in config.items() if key not in groups}
    for name, group in [("", plain_values), *groups.items()]:
        branch = tree.add(name, style="dim", guide_style="dim") if name else tree
        text = yaml.safe_dump(dict(group), sort_keys=False).strip()
        branch.add(Syntax(text, "yaml", background_color="default", word_wrap=True))  # else long paths are cut off
    rich.print(tree)


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _indexed(node: Any) -> Any:
    """Lists of nodes, such as transforms, as mappings from "[0]", ...: one that differs is named alone."""
    if isinstance(node, list) and any(isinstance(each, Mapping) for each in node):
        node = {f"[{index}]": each for index, each in enumerate(node)}
    return {key: _indexed(value) for key, value in node.items()} if isinstance(node, Mapping) else node


def _without_auxiliary(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_auxiliary(value) for key, value in node.items() if key != AUXILIARY}
    if isinstance(node, list):
        return [_without_auxiliary(value) for value in node]
    return node


def _without_repr(error: Exception) -> str:
    """Hydra's message; what the target said, in its words instead of as `ValueError('...')`."""
    message, cause = str(error), error.__cause__
    if cause is None or " " not in str(cause):  # a KeyError's text is the key alone
        return message
    return message.replace(repr(cause), str(cause)).replace("Error in call to target", "cannot build")


def _located(message: str, key: str) -> str:
    """Hydra's message on one line, its `full_key` made relative to the whole experiment."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    where = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    text = " ".join(line for line in lines if not line.startswith("full_key: "))
    if unknown := re.match("Error locating target '(.*?)'", text):
        text = f"_target_ {unknown[1]} cannot be imported.{_similar(unknown[1])}"
    return f"{text} (at {key}.{where[0]})" if where else text


def _similar(target: str) -> str:
    """What a misspelt dotted name probably means, or what is wrong with it, as a sentence with a space before it."""
    module_name, _, name = target.rpartition(".")
    try:
        there = dir(importlib.import_module(module_name))
    except Exception as error:  # noqa: BLE001  # whatever a module raises when it is imported
        return f" {type(error).__name__}: {error}."
    return _did_you_mean(name, there) or f" {module_name} has no {name}."


def _did_you_mean(name: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(choices), n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _config_error(error: Exception) -> ConfigError:
    from hydra.errors import MissingConfigException
    from omegaconf import DictConfig
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError
    from yaml import YAMLError

    if isinstance(error, YAMLError):  # names the file, the line and the column
        return ConfigError(f"a configuration is not YAML: {' '.join(str(error).split())}.")
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and (name := error.missing_cfg_file):
        group, _, choice = name.partition("/")
        there = experiments() if group == "experiment" else error.options or ()
        choices = f" Choose one of {', '.join(there)}" if there else " Check its name"
        return ConfigError(
            f"{group}={choice}: there is no such configuration.{_did_you_mean(choice, map(str, there))}{choices}, "
            f"or add --config-dir DIR with {name}.yaml."
        )
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and "Could not override" in str(error):
        key, parent = str(cause.full_key), cause.parent_node
        there = [str(each) for each in parent] if isinstance(parent, DictConfig) else []
        return ConfigError(
            f"{key}: the experiment has no such key.{_did_you_mean(key.rpartition('.')[2], there)} "
            f"To add one that its class takes, write +{key}=..."
        )
    message = str(error).split("\nSet the environment variable")[0]
    added = f" {cause}" if cause is not None and str(cause) not in message else ""
    return ConfigError(f"{message.strip()}{added}")
