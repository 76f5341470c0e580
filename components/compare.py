"""Step 5: a new model and the champion are compared on the same images."""

from kfp.dsl import HTML, Dataset, Input, Model, Output

from components.image import component


@component
def compare(
    dataset: Input[Dataset],
    model: Input[Model],
    images: Input[Dataset],
    model_name: str,
    metric: str,
    split: str,
    minimal_gain: float,
    comparison: Output[HTML],
    frozen_manifest: str = "",
) -> bool:
    """Say whether a model is better than the champion: by a paired bootstrap over the images of one split.

    It is where the lower 95 % bound of its mean gain is above the minimal gain, and where there is no champion yet.

    Args:
        dataset: Folder from prepare_data: the images that both models are measured on.
        model: The run's folder from train: how images are read and measured.
        images: Table of the images from evaluate.
        model_name: Name in MLflow's registry.
        metric: <split>/<head>/<metric>, e.g. test/seg/dice; "" for the first metric of the model.
        split: The split that evaluate measured.
        minimal_gain: That a better model has to pass, in the metric's unit.

        frozen_manifest: Table of images that both models are measured on instead, the same in every run; local or
            s3://, with the split's rows. "" for the images of this run.

    Returns:
        Output: Whether the model is better.
        comparison: Page that shows the gain, its interval and every image's part in it.
    """
    from cyto_dl.steps import compare_step

    return compare_step(
        dataset.path,
        model.path,
        images.path,
        model_name=model_name,
        metric=metric,
        split=split,
        minimal_gain=minimal_gain,
        report_path=comparison.path,
        frozen_manifest=frozen_manifest,
    )
