"""From a measured model to one that others use: export, is it better than the champion, register."""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from cyto_dl.errors import ConfigError
from cyto_dl.steps.console import quiet_libraries
from cyto_dl.steps.prepare import FINGERPRINT, MANIFEST
from cyto_dl.storage import atomic_path

if TYPE_CHECKING:
    from cyto_dl.comparison import Comparison

logger = logging.getLogger(__name__)


def export_step(dataset_dir: str, model_dir: str, metrics_path: str, bundle_dir: str) -> dict[str, str]:
    """Export the best checkpoint of a run as a bundle that carries its metrics and the data's fingerprint.

    Returns:
        What the bundle is, for the orchestrator's list of models.
    """
    quiet_libraries()
    from cyto_dl.bundle.export import export_bundle

    metrics = json.loads(Path(metrics_path).read_text())
    fingerprint = json.loads((Path(dataset_dir) / FINGERPRINT).read_text())
    export_bundle(model_dir, bundle_dir, metrics=metrics, fingerprint=fingerprint)
    return {"framework": "cyto-dl bundle"}


def compare_step(
    dataset_dir: str,
    model_dir: str,
    images_path: str,
    *,
    model_name: str,
    metric: str,
    split: str,
    minimal_gain: float,
    report_path: str,
    frozen_manifest: str = "",
) -> bool:
    """Whether a model is better than the champion of `model_name`, measured on the same images.

    Without a champion it is. What nobody measured is not. The gain also goes to the MLflow run of the training, with a
    page that shows it image by image.

    Args:
        dataset_dir: Folder from `prepare_step`.
        model_dir: The candidate's folder, from `train_step`.
        images_path: The candidate's table of images, from `evaluate_step`.
        model_name: In MLflow's registry.
        metric: <split>/<head>/<metric>, e.g. "test/seg/dice"; "" for the first that the candidate has.
        split: That the candidate was measured on.
        minimal_gain: In the metric's unit.
        report_path: Receives the page.
        frozen_manifest: Images that both are measured on instead, the same in every run; "" for those of the candidate.
    """
    quiet_libraries()
    from cyto_dl.comparison import compare_with_bundle, measure_images, read_images
    from cyto_dl.evaluation.comparison_page import write_comparison
    from cyto_dl.tracking import download_bundle, find_champion

    tracking_uri = registry_address()
    champion = find_champion(model_name, tracking_uri=tracking_uri)
    images = read_images(images_path)
    if champion is None:
        reason = f"{model_name} has no champion yet: this model becomes it."
        logger.info("%s", reason)
        write_comparison(None, report_path, name=model_name, champion=None, reason=reason)
        return True
    if images.empty:
        reason = f"No image of the split '{split}' has a target: {champion.uri} stays the champion."
        logger.warning("%s", reason)
        write_comparison(None, report_path, name=model_name, champion=champion.uri, reason=reason)
        return False
    manifest = frozen_manifest or str(Path(dataset_dir) / MANIFEST)
    logger.info("measuring the champion, %s, on the images of the split '%s' of %s", champion.uri, split, manifest)
    if frozen_manifest:
        images = measure_images(model_dir, manifest=manifest, split=split)
    config = yaml.safe_load((Path(model_dir) / "config.yaml").read_text())
    with tempfile.TemporaryDirectory(prefix="cyto-dl-champion-") as folder:
        comparison = compare_with_bundle(
            images,
            download_bundle(champion, folder, tracking_uri=tracking_uri),
            config,
            manifest=manifest,
            split=split,
            metric=metric,
            minimal_gain=float(minimal_gain),
        )
        page = write_comparison(comparison, Path(folder) / "comparison.html", name=model_name, champion=champion.uri)
        _log_comparison(model_dir, comparison, page)
        with atomic_path(report_path) as temporary:
            shutil.copyfile(page, temporary)
    return comparison.better


def register_step(bundle_dir: str, model_name: str, *, champion: bool) -> str:
    """Register a bundle in MLflow as the challenger, and as the champion too if it is to be; returns its address.

    The address, models:/<name>/<version>, is what MLflow's loaders take.
    """
    quiet_libraries()
    from cyto_dl.tracking import promote, register_bundle

    tracking_uri = registry_address()
    version = register_bundle(bundle_dir, model_name, tracking_uri=tracking_uri)
    if champion:
        promote(version, tracking_uri=tracking_uri)
    return version.uri


def _log_comparison(model_dir: str, comparison: "Comparison", page: Path) -> None:
    from cyto_dl.tracking import log_evaluation

    metrics = {"comparison/champion": comparison.champion, "comparison/gain": comparison.gain}
    if comparison.interval is not None:
        metrics |= dict(zip(("comparison/gain_low", "comparison/gain_high"), comparison.interval, strict=True))
    log_evaluation(model_dir, metrics, [page])


def registry_address() -> str:
    """Where MLflow is.

    Raises:
        ConfigError: Nobody said so: MLflow would write a file that vanishes with the step.
    """
    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        return address
    raise ConfigError(
        "model_name asks for MLflow's registry, and MLFLOW_TRACKING_URI is not set. Set it (on Kubernetes in the "
        "config map cyto-dl-environment), or leave model_name empty."
    )
