"""Step 0: what would fail only after the training is refused before it."""

from components.image import component


@component
def check_settings(
    experiment: str,
    overrides: list[str],
    source_col: str,
    target_cols: list[str],
    spatial_dims: int,
    evaluation_split: str,
    model_name: str,
    comparison_metric: str,
    comparison_manifest: str,
    minimal_gain: float,
    deploy_target: str,
    canary_percent: int,
    deploy_timeout_s: int,
) -> None:
    """Refuse a run that would end after its training: an unknown metric, no registry, no right to deploy.

    Args:
        experiment: Name of an experiment, e.g. im2im/segmentation.
        overrides: Changes to it in hydra's syntax.
        source_col: Column that holds the images which the model sees.
        target_cols: Columns that hold what it learns to predict; none where a training makes its own.
        spatial_dims: 2 for planes, 3 for volumes.
        evaluation_split: Split that the comparison is about.
        model_name: Name in MLflow's registry; "" to register nothing.
        comparison_metric: <split>/<head>/<metric>; "" for the first that the model has.
        comparison_manifest: Table of the images that candidate and champion are compared on; "" for those of the run.
        minimal_gain: That a better model has to pass, in the metric's unit.
        deploy_target: namespace/name of the InferenceService that serves a better model; "" for none.
        canary_percent: Share of the requests that the new model gets there, 1 to 100.
        deploy_timeout_s: Seconds until it has to be ready.
    """
    from components.cluster.deployment import deployment_checks
    from cyto_dl.steps import check_step

    check_step(
        experiment,
        overrides,
        source_col=source_col,
        target_cols=target_cols,
        spatial_dims=spatial_dims,
        model_name=model_name,
        comparison_metric=comparison_metric,
        comparison_manifest=comparison_manifest,
        evaluation_split=evaluation_split,
        minimal_gain=minimal_gain,
        deploy_target=deploy_target,
        further=deployment_checks(deploy_target, canary_percent=canary_percent, timeout_s=deploy_timeout_s),
    )
