"""Step 3: a trained model is measured on images that it has not seen."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components.image import component


@component
def evaluate(
    dataset: Input[Dataset],
    model: Input[Model],
    split: str,
    report: Output[HTML],
    metrics: Output[Metrics],
    images: Output[Dataset],
) -> None:
    """Measure the best checkpoint on one split, through the predictor that will also serve it.

    Args:
        dataset: Folder from prepare_data.
        model: The run's folder from train.
        split: train, valid or test.

    Returns:
        report: Page with a table per head, previews and one row per image.
        metrics: Mean over the images, named <split>/<head>/<metric>; beside them what Otsu's threshold reaches.
        images: Table with the values of every image, a .csv; a new model and the champion are compared by it.
    """
    from cyto_dl.steps import evaluate_step

    values = evaluate_step(
        dataset.path,
        model.path,
        split,
        report_path=report.path,
        metrics_path=metrics.path,
        images_path=images.path,
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
