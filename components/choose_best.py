"""Sweep, step 4: of several trained models the best one."""

from typing import List  # noqa: UP035  # KFP 2.17 reads lists of artifacts only as typing.List

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.image import component


@component
def choose_best(
    models: Input[List[Model]],  # noqa: UP006
    metrics: Input[List[Metrics]],  # noqa: UP006
    variants: list[list[str]],
    metric: str,
    mode: str,
    model: Output[Model],
    comparison: Output[Dataset],
    chosen: Output[Metrics],
) -> None:
    """Choose the model whose metric is best, and write a table of all.

    Args:
        models: The runs' folders from train, one a variant.
        metrics: From evaluate, in the same order.
        variants: What each variant changes in the experiment.
        metric: <split>/<head>/<metric>, e.g. valid/seg/dice; "" for the first that the models have.
        mode: max where more of the metric is better, min where less is.

    Returns:
        model: The best run's folder.
        comparison: Table with a row a variant: its overrides, its metrics, whether it was chosen.
        chosen: The number of the best variant, counted from 0, and its value.
    """
    from cyto_dl.steps import choose_step

    values = choose_step(
        [each.path for each in models],
        [each.path for each in metrics],
        variants,
        metric=metric,
        mode=mode,
        model_dir=model.path,
        table_path=comparison.path,
        metrics_path=chosen.path,
    )
    for name, value in values.items():
        chosen.log_metric(name, value)
