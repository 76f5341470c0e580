"""From a table of microscope images and several variants of an experiment to the bundle of the best one.

check_variants -> prepare_data -> train -> evaluate, one a variant -> choose_best -> evaluate -> export
                       |            |          |                          |              |          |
                    dataset       model     metrics                     model         report     bundle
"""

from kfp import dsl

from components.check_variants import check_variants
from components.choose_best import choose_best
from components.evaluate import evaluate
from components.export import export
from components.prepare_data import prepare_data
from components.train import train
from pipelines import resources

# Of the variants, however many there are: each asks for a large node. KFP takes no parameter for it.
MAX_AT_ONCE = 4


@dsl.pipeline(name="cyto-dl-sweep", display_name="CytoDL sweep", pipeline_config=resources.LIFETIME)
def sweep(
    manifest: str,
    variants: list[list[str]],
    source_col: str = "raw",
    target_cols: list[str] = ["nuclei"],
    experiment: str = "im2im/segmentation",
    spatial_dims: int = 2,
    num_channels: int = 1,
    source_channel: list[int] = [],
    target_channel: list[int] = [],
    split_column: str = "split",
    group_column: str = "",
    stratify_column: str = "",
    fractions: list[float] = [0.7, 0.15, 0.15],
    seed: int = 0,
    metric: str = "",
    mode: str = "max",
    evaluation_split: str = "test",
) -> None:
    """Train several variants of an experiment, choose the best on validation images, measure it, and export it.

    Args:
        manifest: A .csv or .parquet with one row per image, or a folder of train.csv, valid.csv and test.csv; local
            or s3://.
        variants: Each variant's changes to the experiment in hydra's syntax, e.g.
            [["model.optimizer.generator.lr=0.001"], ["model.optimizer.generator.lr=0.003"]].
        source_col: Column that holds the images which the model sees.
        target_cols: Columns that hold what the model learns to predict; none where a training makes its own.
        experiment: Name of an experiment, e.g. im2im/segmentation, im2im/labelfree, im2im/multitask.
        spatial_dims: 2 for planes, 3 for volumes.
        num_channels: Channels of a source image, of those that are read; 0 accepts what the images have and leaves what
            the experiment says.
        source_channel: Channels of the source that are read, counted from 0, in this order; [] for all.
        target_channel: Channels of every target that are read, where the experiment has a target_channel; [] for all.
        split_column: Column that says train, valid, test or predict; made where it does not exist.
        group_column: Rows that share a value in this column stay in one split, e.g. a donor or a plate; "" for none.
        stratify_column: Splits that are made get their share of the rows of each value here, e.g. a treatment; "" for
            none.
        fractions: Shares of train, valid and test where splits are made.
        seed: Makes the same splits again.
        metric: What decides, on the split valid, e.g. valid/seg/dice; "" for the first that the model has.
        mode: max where more of the metric is better, min where less is.
        evaluation_split: Split that the report and the bundle's metrics are about; no variant was chosen by it.
    """
    checked = check_variants(
        experiment=experiment,
        variants=variants,
        source_col=source_col,
        target_cols=target_cols,
        spatial_dims=spatial_dims,
        metric=metric,
        mode=mode,
    ).set_display_name("Check variants")
    resources.try_again(resources.small(checked), times=2)

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
        stratify_column=stratify_column,
        fractions=fractions,
        seed=seed,
        evaluation_split=evaluation_split,
    ).set_display_name("Prepare data")
    # The key of KFP's cache is the manifest's address, not its content: a cached step would miss a changed table.
    prepared.set_caching_options(False)
    resources.try_again(resources.small(prepared), times=2).after(checked)

    with dsl.ParallelFor(variants, name="variants", parallelism=MAX_AT_ONCE) as overrides:
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
        measured = evaluate(dataset=prepared.outputs["dataset"], model=trained.outputs["model"], split="valid")
        resources.try_again(resources.large(measured.set_display_name("Evaluate")), times=1)

    best = choose_best(
        models=dsl.Collected(trained.outputs["model"]),
        metrics=dsl.Collected(measured.outputs["metrics"]),
        variants=variants,
        metric=metric,
        mode=mode,
    ).set_display_name("Choose the best")
    resources.try_again(resources.small(best), times=2)

    evaluated = evaluate(
        dataset=prepared.outputs["dataset"],
        model=best.outputs["model"],
        split=evaluation_split,
    ).set_display_name("Evaluate the best")
    resources.try_again(resources.large(evaluated), times=1)

    exported = export(
        dataset=prepared.outputs["dataset"],
        model=best.outputs["model"],
        metrics=evaluated.outputs["metrics"],
    ).set_display_name("Export")
    resources.try_again(resources.small(exported), times=1)
