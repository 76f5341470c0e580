"""What each step of a pipeline does with the paths of its artifacts; an orchestrator's component is one call to it.

    manifest -> prepare_step -> dataset_dir -> (train_steps) -> model_dir -> evaluate_step -> report, metrics, images
                                                                       -> export_step   -> bundle_dir
    images, champion -> compare_step -> better?      bundle_dir -> register_step -> version in MLflow's registry

A step's metrics are returned, and written as JSON too: KFP's cache takes only artifacts that exist as files.
"""

import atexit
import gc
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from cyto_dl.errors import ConfigError
from cyto_dl.storage import atomic_path

if TYPE_CHECKING:
    from cyto_dl.comparison import Comparison

logger = logging.getLogger(__name__)

MANIFEST = "manifest.csv"
FINGERPRINT = "fingerprint.json"


class Measured(NamedTuple):
    """What an orchestrator shows of an evaluation.

    Args:
        metrics: <split>/<head>/<metric> -> value.
        confusion: Categories and matrix of counts (rows: what is true) of the first head that has some.
    """

    metrics: dict[str, float]
    confusion: tuple[list[str], list[list[int]]] | None


def prepare_step(
    manifest: str,
    dataset_dir: str,
    *,
    source_col: str,
    target_cols: Sequence[str],
    spatial_dims: int,
    num_channels: int = 0,
    source_channel: Sequence[int] = (),
    target_channel: Sequence[int] = (),
    split_column: str = "split",
    group_column: str = "",
    stratify_column: str = "",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> dict[str, Any]:
    """Check, split and measure a manifest of images; see `cyto_dl.data.prepare.prepare_data`.

    An orchestrator's parameters have no null: 0 channels means any number, an empty selection means all channels, an
    empty group or stratify column means none, and no target columns mean that the training makes its own targets.

    Returns:
        The data's fingerprint, as written to fingerprint.json.
    """
    from cyto_dl.data.prepare import prepare_data

    train, valid, test = _three_fractions(fractions)
    return prepare_data(
        manifest,
        dataset_dir,
        source_col=source_col,
        target_cols=list(target_cols),
        spatial_dims=int(spatial_dims),
        num_channels=int(num_channels) or None,
        source_channel=whole_numbers(source_channel) or None,
        target_channel=whole_numbers(target_channel) or None,
        split_column=split_column,
        group_column=group_column or None,
        stratify_column=stratify_column or None,
        fractions=(train, valid, test),
        seed=int(seed),
    )


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
        model_dir: From `cyto_dl.train_steps.train_step`.
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
        model_dir: The candidate's folder, from `cyto_dl.train_steps.train_step`.
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
    from cyto_dl.registry import download_bundle, find_champion

    tracking_uri = _tracking_uri()
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
    from cyto_dl.registry import promote, register_bundle

    tracking_uri = _tracking_uri()
    version = register_bundle(bundle_dir, model_name, tracking_uri=tracking_uri)
    if champion:
        promote(version, tracking_uri=tracking_uri)
    return version.uri


def _name_of_run(model_dir: str) -> str:
    return str(yaml.safe_load((Path(model_dir) / "config.yaml").read_text()).get("experiment_name") or "model")


def _log_comparison(model_dir: str, comparison: "Comparison", page: Path) -> None:
    from cyto_dl.tracking import log_evaluation

    metrics = {"comparison/champion": comparison.champion, "comparison/gain": comparison.gain}
    if comparison.interval is not None:
        metrics |= dict(zip(("comparison/gain_low", "comparison/gain_high"), comparison.interval, strict=True))
    log_evaluation(model_dir, metrics, [page])


def _tracking_uri() -> str:
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


def quiet_libraries() -> None:
    """A step's launcher shows every library's INFO; these fill screens, the first already when it is imported.

    And what they hold is not searched for cycles as the process ends: after torch and MONAI that takes 1.4 s.
    """
    atexit.register(gc.freeze)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a log is no terminal
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the run is named where it begins
    names = ("alembic", "botocore", "lightning.pytorch.utilities.rank_zero", "mlflow.pyfunc", "mlflow.store.db.utils")
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)


def _three_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    if len(fractions) != 3:
        raise ConfigError(
            f"fractions has {len(fractions)} values: give the shares of train, valid and test, e.g. [0.7, 0.15, 0.15]."
        )
    train, valid, test = (float(fraction) for fraction in fractions)
    return train, valid, test


def whole_numbers(channels: Sequence[float]) -> list[int]:
    """The channels as whole numbers: an orchestrator's lists may hold 1.0 for 1."""
    return [int(channel) for channel in channels]
