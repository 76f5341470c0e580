"""Step 6: a bundle becomes a version of a registered model."""

from kfp.dsl import Input, Model

from components.image import component


@component
def register(bundle: Input[Model], model_name: str, champion: bool) -> str:
    """Register a bundle in MLflow: as a model that mlflow.pyfunc loads, with tags that say where it comes from.

    The same bundle is registered once, however often this step is started.

    Args:
        bundle: Folder from export.
        model_name: Name in MLflow's registry; made if it does not exist.
        champion: Whether it gets the alias champion, beside the alias challenger of every newest version.

    Returns:
        Output: The version, models:/<name>/<number>.
    """
    from cyto_dl.steps import register_step

    return register_step(bundle.path, model_name, champion=champion)
