"""Batch prediction, step 1: a manifest of images becomes shards."""

from kfp.dsl import Dataset, Output

from components.image import component


@component
def plan_shards(
    manifest: str,
    bundle: str,
    output: str,
    column: str,
    num_shards: int,
    plan: Output[Dataset],
) -> list[str]:
    """Deal the images of a manifest out to shards of about the same size in bytes.

    Args:
        manifest: A .csv or .parquet with one row per image, local or s3://.
        bundle: Folder of the bundle, local or s3://.
        output: Folder for the predictions, local or s3://.
        column: Column that holds the images; "" for the name of the bundle's input.
        num_shards: How many shards there are at most.

    Returns:
        plan: Folder with a table for each shard.
        Output: The names of these tables.
    """
    from cyto_dl.steps import plan_step

    return plan_step(manifest, bundle, output, column=column, num_shards=num_shards, plan_dir=plan.path)
