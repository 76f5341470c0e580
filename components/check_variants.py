"""Sweep, step 0: what would fail only after the trainings is refused before them."""

from components.image import component


@component
def check_variants(
    experiment: str,
    variants: list[list[str]],
    source_col: str,
    target_cols: list[str],
    spatial_dims: int,
    metric: str,
    mode: str,
) -> None:
    """Refuse a sweep that would end after its trainings: a variant that is no experiment, an unknown metric.

    Args:
        experiment: Name of an experiment, e.g. im2im/segmentation.
        variants: What each variant changes in it, in hydra's syntax.
        source_col: Column that holds the images which the model sees.
        target_cols: Columns that hold what it learns to predict; none where a training makes its own.
        spatial_dims: 2 for planes, 3 for volumes.
        metric: valid/<head>/<metric>; "" for the first that the models have.
        mode: max where more of the metric is better, min where less is.
    """
    from cyto_dl.steps import check_sweep_step

    check_sweep_step(
        experiment,
        variants,
        source_col=source_col,
        target_cols=target_cols,
        spatial_dims=spatial_dims,
        metric=metric,
        mode=mode,
    )
