"""Step 3: a trained model is measured on images that it has not seen."""

from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.image import component


@component
def evaluate(
    dataset: Input[Dataset],
    model: Input[Model],
    split: str,
    report: Output[HTML],
    metrics: Output[Metrics],
    images: Output[Dataset],
    confusion: Output[ClassificationMetrics],
) -> None:
    """Measure the best checkpoint on one split, through the predictor that will also serve it.

    Args:
        dataset: Folder from prepare_data.
        model: The run's folder from train.
        split: train, valid or test.

    Returns:
        report: Page with tables, distributions and previews per head, learning curves, data, and one row per image.
        metrics: Mean over the images, named <split>/<head>/<metric>; beside them what Otsu's threshold reaches.
        images: Table with the values of every image, a .csv; a new model and the champion are compared by it.
        confusion: What was taken for what, true categories as rows: pixels of masks or classes, or objects, of the
            first head that has some. Empty where heads predict intensities.
    """
    from cyto_dl.steps import evaluate_step

    measured = evaluate_step(
        dataset.path,
        model.path,
        split,
        report_path=report.path,
        metrics_path=metrics.path,
        images_path=images.path,
        confusion_path=confusion.path,
    )
    for name, value in measured.metrics.items():
        metrics.log_metric(name, value)
    if measured.confusion:
        confusion.log_confusion_matrix(*measured.confusion)
