"""From a table of microscope images to a bundle that can be served.

prepare_data -> train -> evaluate -> export
     |            |          |          |
  dataset       model      report     bundle
"""

from kfp import dsl

from components.evaluate import evaluate
from components.export import export
from components.prepare_data import prepare_data
from components.train import train
from pipelines import resources


@dsl.pipeline(name="cyto-dl-training", display_name="CytoDL training")
def training(
    manifest: str,
    source_col: str = "raw",
    target_cols: list[str] = ["nuclei"],
    experiment: str = "im2im/segmentation",
    overrides: list[str] = [],
    spatial_dims: int = 2,
    num_channels: int = 1,
    source_channel: list[int] = [],
    target_channel: list[int] = [],
    split_column: str = "split",
    group_column: str = "",
    fractions: list[float] = [0.7, 0.15, 0.15],
    seed: int = 0,
    evaluation_split: str = "test",
) -> None:
    """Train a model on a table of microscope images, measure it, and export a bundle that can be served.

    Args:
        manifest: A .csv or .parquet with one row per image, or a folder of train.csv, valid.csv and test.csv; local
            or s3://.
        source_col: Column that holds the images which the model sees.
        target_cols: Columns that hold what the model learns to predict; none where a training makes its own.
        experiment: Name of an experiment, e.g. im2im/segmentation, im2im/labelfree, im2im/multitask.
        overrides: Changes to the experiment in hydra's syntax, e.g. ["trainer=gpu", "trainer.max_epochs=50"].
        spatial_dims: 2 for planes, 3 for volumes.
        num_channels: Channels of a source image, of those that are read; 0 accepts what the images have and leaves what
            the experiment says.
        source_channel: Channels of the source that are read, counted from 0, in this order; [] for all.
        target_channel: Channels of every target that are read, where the experiment has a target_channel; [] for all.
        split_column: Column that says train, valid, test or predict; made where it does not exist.
        group_column: Rows that share a value in this column stay in one split, e.g. a donor or a plate; "" for none.
        fractions: Shares of train, valid and test where splits are made.
        seed: Makes the same splits again.
        evaluation_split: Split that the report and the bundle's metrics are about.
    """
    prepared = prepare_data(
        manifest=manifest,
        source_col=source_col,
        target_cols=target_cols,
        spatial_dims=spatial_dims,
        num_channels=num_channels,
        source_channel=source_channel,
        target_channel=target_channel,
        split_column=split_column,
        group_column=group_column,
        fractions=fractions,
        seed=seed,
    ).set_display_name("Prepare data")
    # The key of KFP's cache is the manifest's address, not its content: a cached step would miss a changed table.
    prepared.set_caching_options(False)
    resources.try_again(resources.small(prepared), times=2)

    trained = train(
        dataset=prepared.outputs["dataset"],
        experiment=experiment,
        overrides=overrides,
        source_col=source_col,
        target_cols=target_cols,
        spatial_dims=spatial_dims,
        num_channels=num_channels,
        source_channel=source_channel,
        target_channel=target_channel,
    ).set_display_name("Train")
    resources.try_again(resources.large(trained), times=2)

    evaluated = evaluate(
        dataset=prepared.outputs["dataset"],
        model=trained.outputs["model"],
        split=evaluation_split,
    ).set_display_name("Evaluate")
    resources.try_again(resources.large(evaluated), times=1)

    exported = export(
        dataset=prepared.outputs["dataset"],
        model=trained.outputs["model"],
        metrics=evaluated.outputs["metrics"],
    ).set_display_name("Export")
    resources.try_again(resources.small(exported), times=1)
