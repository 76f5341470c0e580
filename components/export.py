"""Step 4: a trained model becomes a bundle that can be served."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.image import component


@component
def export(
    dataset: Input[Dataset],
    model: Input[Model],
    metrics: Input[Metrics],
    bundle: Output[Model],
) -> None:
    """Export the best checkpoint as a bundle: weights, preprocessing, postprocessing and a replayed sample.

    Args:
        dataset: Folder from prepare_data; its fingerprint goes into the bundle.
        model: The run's folder from train.
        metrics: Metrics from evaluate; they go into the bundle's model card.

    Returns:
        bundle: Folder that `cyto-dl predict` and `python -m serving` take.
    """
    from cyto_dl.steps import export_step

    bundle.metadata.update(export_step(dataset.path, model.path, metrics.path, bundle.path))
