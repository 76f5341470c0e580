"""What a run asks for that would fail only after its training, checked at the run's beginning.

experiment, overrides -> composed -> has the model the metric that decides?
comparison_manifest   -> read     -> does it have the columns and the split?
model_name            -> MLflow   -> does it answer, and take the name?
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cyto_dl.errors import ConfigError, ManifestError, list_problems
from cyto_dl.steps.console import quiet_libraries
from cyto_dl.steps.release import registry_address
from cyto_dl.steps.sweep import check_mode
from cyto_dl.steps.train import training_words


def check_step(
    experiment: str,
    overrides: Sequence[str],
    *,
    model_name: str,
    comparison_metric: str,
    comparison_manifest: str,
    evaluation_split: str,
    minimal_gain: float,
    deploy_target: str,
    further: Sequence[Callable[[], None]] = (),
    **described: Any,
) -> None:
    """Refuse a run that would end after its training, by all that is wrong with it at once.

    Args:
        experiment, overrides: As for `cyto_dl.steps.train_step`.
        model_name: In MLflow's registry; "" registers nothing, and all that follows has to be empty too.
        comparison_metric: As for `cyto_dl.steps.compare_step`.
        comparison_manifest: Likewise its `frozen_manifest`.
        evaluation_split: That is compared on.
        minimal_gain: In the metric's unit.
        deploy_target: Where a better model is served; "" for nowhere.
        further: Other checks of the same run, which raise a ConfigError.
        **described: The other arguments of `cyto_dl.steps.train.training_words`.

    Raises:
        ConfigError: With every fault, one a line.
        StorageError: MLflow or the store of the comparison's manifest does not answer.
    """
    config = _compose(experiment, overrides, **described)
    checks: list[Callable[[], None]] = [partial(_check_gain, minimal_gain), *further]
    if comparison_metric:
        given = ("comparison_metric", comparison_metric, evaluation_split)
        checks.append(partial(_check_metric, *given, config["model"]["task_heads"], of_images=True))
    if comparison_manifest:
        made = not described["target_cols"]
        checks.append(partial(_check_manifest, comparison_manifest, evaluation_split, config, targets_are_made=made))
    if model_name:
        checks.append(partial(_check_registry, model_name))
    elif deploy_target:
        checks.append(_refuse_deployment)
    _raise_faults(checks)


def check_sweep_step(
    experiment: str, variants: Sequence[Sequence[str]], *, metric: str, mode: str, **described: Any
) -> None:
    """`check_step` of a sweep: every variant is an experiment, and has the head that decides.

    Args:
        experiment: As for `cyto_dl.steps.train_step`.
        variants: The overrides of each.
        metric, mode: As for `cyto_dl.steps.choose_step`.
        **described: As for `check_step`.

    Raises:
        ConfigError: With every fault, one a line.
    """
    checks: list[Callable[[], None]] = [partial(check_mode, mode)]
    for variant in variants:
        checks.append(partial(_check_variant, experiment, variant, metric, described))
    if not variants:
        raise ConfigError('variants is empty: give the changes of each, e.g. [["model.optimizer.generator.lr=0.001"]].')
    _raise_faults(checks)


def _compose(experiment: str, overrides: Sequence[str], **described: Any) -> dict[str, Any]:
    quiet_libraries()
    from cyto_dl.config import compose_experiment

    words = [f"experiment={experiment}", "data.path=manifest.csv", *training_words(overrides, **described)]
    return compose_experiment(words, output_dir=".")


def _check_variant(experiment: str, variant: Sequence[str], metric: str, described: dict[str, Any]) -> None:
    try:
        config = _compose(experiment, variant, **described)
        if metric:
            _check_metric("metric", metric, "valid", config["model"]["task_heads"], of_images=False)
    except ConfigError as error:
        raise ConfigError(f"variant {list(variant)}: {error}") from error


def _raise_faults(checks: Sequence[Callable[[], None]]) -> None:
    if problems := [str(error) for check in checks if (error := _fault(check)) is not None]:
        raise ConfigError("this run would fail later:\n" + list_problems(problems))


def _fault(check: Callable[[], None]) -> ConfigError | ManifestError | None:
    try:
        check()
    except (ConfigError, ManifestError) as error:
        return error
    return None


def _check_gain(minimal_gain: float) -> None:
    if not math.isfinite(minimal_gain):
        raise ConfigError(f"minimal_gain is {minimal_gain}; give a number in the metric's unit, e.g. 0.01.")


def _check_metric(parameter: str, metric: str, split: str, heads: dict[str, Any], *, of_images: bool) -> None:
    """Refuse a metric that the model will not have.

    `of_images`: or that single images do not have, or of which it is not known whether more is better.
    """
    head, _, name = metric.removeprefix(f"{split}/").partition("/")
    if head not in heads:
        raise ConfigError(
            f"{parameter} is '{metric}'; write {split}/<head>/<metric> with one of the experiment's heads "
            f"({', '.join(heads)}), e.g. {split}/{next(iter(heads))}/dice, or leave it empty for the first metric."
        )
    metrics = _metrics(head, heads[head])
    known = list(metrics)
    if of_images:
        known = [each for each in metrics if metrics[each] is not None and not each.endswith("_pooled")]
    # a metric of several classes has one for each, e.g. dice_1
    if not any(name == each or name.startswith(f"{each}_") for each in known) or (
        of_images and name.endswith("_pooled")
    ):
        choices = ", ".join(f"{split}/{head}/{each}" for each in known)
        raise ConfigError(f"{parameter} is '{metric}'; choose one of {choices}, or leave it empty for the first.")


def _metrics(head: str, node: dict[str, Any]) -> dict[str, bool | None]:
    """The metrics of a head, and whether more of each is better; None where nobody says."""
    from cyto_dl.config import instantiate
    from cyto_dl.model.tasks import build_tasks

    parts = {part: instantiate(each, f"model.task_heads.{head}.{part}") for part, each in node.items()}
    metrics = build_tasks({head: parts})[head].metrics
    return {name: metric.higher_is_better for name, metric in metrics.items()}


def _check_manifest(manifest: str, split: str, config: dict[str, Any], *, targets_are_made: bool) -> None:
    from cyto_dl.data.manifest import read_manifest

    columns, source = config["data"]["columns"], config["model"]["x_key"]
    found = read_manifest(
        manifest,
        columns=columns,
        split_column=config["data"].get("split_column") or "split",
        source_key=source,
        optional=set(columns) - {source} if targets_are_made else (),
    )
    if split not in found:
        raise ManifestError(
            f"comparison_manifest {manifest} has no image of the split '{split}' (evaluation_split); it has "
            f"{', '.join(found)}."
        )


def _check_registry(model_name: str) -> None:
    from cyto_dl.tracking import find_champion

    address = registry_address()
    if set("/:'") & set(model_name):
        raise ConfigError(f"model_name is '{model_name}'; MLflow's registry takes names without /, : and '.")
    find_champion(model_name, tracking_uri=address)


def _refuse_deployment() -> None:
    raise ConfigError("deploy_target needs a model_name: what is served is the champion of MLflow's registry.")
