"""Batch prediction, step 3: the tables of the shards become one."""

from typing import List  # noqa: UP035  # KFP 2.17 reads lists of artifacts only as typing.List

from kfp.dsl import Dataset, Input, Metrics, Output

from components.image import component


@component
def collect(
    tables: Input[List[Dataset]],  # noqa: UP006
    output: str,
    predictions: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Write one table of all images, and count them. Fails if no image at all could be predicted.

    Args:
        tables: From predict, one a shard.
        output: Receives predictions.csv, local or s3://.

    Returns:
        predictions: The same table.
        metrics: Numbers of images: all, predicted now, kept from an earlier run, failed.
    """
    from cyto_dl.steps import collect_step

    counts = collect_step(
        [table.path for table in tables],
        output,
        table_path=predictions.path,
        metrics_path=metrics.path,
    )
    for name, count in counts.items():
        metrics.log_metric(name, count)
