"""Step 1: a manifest of images becomes checked, split and measured data."""

from kfp.dsl import Dataset, Output

from components.image import component


@component
def prepare_data(
    manifest: str,
    source_col: str,
    target_cols: list[str],
    spatial_dims: int,
    num_channels: int,
    source_channel: list[int],
    target_channel: list[int],
    split_column: str,
    group_column: str,
    stratify_column: str,
    fractions: list[float],
    seed: int,
    evaluation_split: str,
    dataset: Output[Dataset],
) -> None:
    """Check a manifest of images, split it where it has no splits, and measure its intensities.

    Reports every problem at once, with its rows: missing columns and files, unreadable images, sizes and channels that
    do not fit, the same image or the same group in two splits.

    Args:
        manifest: A .csv or .parquet with one row per image, or a folder of train.csv, valid.csv and test.csv.
        source_col: Column that holds the images which the model sees.
        target_cols: Columns that hold what the model learns to predict; none where a training makes its own.
        spatial_dims: 2 for planes, 3 for volumes.
        num_channels: Channels of a source image, of those that are read; 0 accepts any number, if all images have the
            same.
        source_channel: Channels of the source that are read, counted from 0, in this order; [] for all.
        target_channel: Channels of every target that are read; [] for all.
        split_column: Column that says train, valid, test or predict; made where it does not exist.
        group_column: Rows that share a value in this column stay in one split, e.g. a donor or a plate; "" for none.
        stratify_column: Splits that are made get their share of the rows of each value here, e.g. a treatment; "" for
            none.
        fractions: Shares of train, valid and test where splits are made.
        seed: Makes the same splits again.
        evaluation_split: Split that the model will be measured on; it has to have rows.

    Returns:
        dataset: Folder with manifest.csv (absolute paths, column `split`) and fingerprint.json.
    """
    from cyto_dl.steps import prepare_step

    prepare_step(
        manifest,
        dataset.path,
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
    )
