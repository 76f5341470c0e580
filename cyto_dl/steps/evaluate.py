"""Measure a trained model on held-out images."""

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml

from cyto_dl.steps.console import quiet_libraries
from cyto_dl.steps.prepare import MANIFEST
from cyto_dl.storage import atomic_path

logger = logging.getLogger(__name__)


class Measured(NamedTuple):
    """What an orchestrator shows of an evaluation.

    Args:
        metrics: <split>/<head>/<metric> -> value.
        confusion: Categories and matrix of counts (rows: what is true) of the first head that has some.
    """

    metrics: dict[str, float]
    confusion: tuple[list[str], list[list[int]]] | None


def evaluate_step(
    dataset_dir: str,
    model_dir: str,
    split: str,
    *,
    report_path: str,
    metrics_path: str,
    images_path: str,
    confusion_path: str,
) -> Measured:
    """Measure the best checkpoint of a run on one split, and write the report, the metrics and a table of the images.

    All also go to the MLflow run of the training, if it had one. Where no image of the split has a target, the report
    says so and there are no metrics: the model can be exported all the same.

    Args:
        dataset_dir: Folder from `prepare_step`.
        model_dir: From `train_step`.
        split: E.g. "test".
        report_path: Receives the page.
        metrics_path: Receives the metrics as JSON.
        images_path: Receives a table with the values of every image.
        confusion_path: Receives what was taken for what, a head, as JSON.
    """
    quiet_libraries()
    from cyto_dl.eval import evaluate_checkpoint, write_metrics
    from cyto_dl.evaluation import NoTargetsError, write_unmeasured
    from cyto_dl.evaluation.curves import read_curves

    manifest = Path(dataset_dir) / MANIFEST
    with tempfile.TemporaryDirectory(prefix="cyto-dl-evaluation-") as folder:
        report, images, confusion = (Path(folder) / name for name in ("report.html", "images.csv", "confusion.json"))
        try:
            metrics = evaluate_checkpoint(model_dir, output_dir=folder, split=split, manifest=manifest)
        except NoTargetsError as error:
            logger.warning("the model is not measured: %s", error)
            curves = read_curves(model_dir)
            write_unmeasured(report, name=_name_of_run(model_dir), split=split, reason=str(error), curves=curves)
            images.write_text("path\n")
            confusion.write_text("{}")
            metrics = {}
        for made, wanted in ((report, report_path), (images, images_path), (confusion, confusion_path)):
            with atomic_path(wanted) as temporary:
                shutil.copyfile(made, temporary)
    matrices = json.loads(Path(confusion_path).read_text()).values()
    first = next(((head["categories"], head["matrix"]) for head in matrices), None)
    return Measured(write_metrics(metrics, metrics_path), first)


def _name_of_run(model_dir: str) -> str:
    return str(yaml.safe_load((Path(model_dir) / "config.yaml").read_text()).get("experiment_name") or "model")
