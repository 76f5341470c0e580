"""The bundle as a function of MLflow: this file is copied into a registered model, and run where that is loaded."""

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

BUNDLE = "bundle"  # name of the artifact that holds the bundle's files


class BundleModel(PythonModel):
    """One image in, one image per head out, as `Predictor.predict` does."""

    def load_context(self, context: PythonModelContext) -> None:
        """Check the bundle's files and replay its sample."""
        from cyto_dl.bundle import load_bundle  # with torch; MLflow runs this file when a bundle is registered, too

        self.predictor = load_bundle(context.artifacts[BUNDLE])

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """One image C (Z) Y X per head, of an image C (Z) Y X."""
        return self.predictor.predict(np.asarray(model_input))


set_model(BundleModel())
