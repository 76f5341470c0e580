"""Evaluate or use a checkpoint:  python cyto_dl/eval.py experiment=im2im/segmentation ckpt_path=logs/.../best.ckpt

checkpoint -> Predictor (the code that also serves) --test=true--> metrics.json, intervals.json, images.csv, report.html
                                                    --test=false-> one image a head and row, predictions.csv
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the package beside this file's folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import logging
import math
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import yaml

from cyto_dl.check import check_experiment
from cyto_dl.config import differences, given_below, launch
from cyto_dl.errors import ConfigError, ManifestError, list_problems
from cyto_dl.run_folder import removed_if_refused
from cyto_dl.storage import atomic_path, exists, is_remote, localize

if TYPE_CHECKING:
    from cyto_dl.data.manifest import InMemory

logger = logging.getLogger(__name__)

# What evaluations may differ in that overwrite each other: how fast one is, and how its model was trained
_CHANGES_NO_RESULT = (
    *("data.cache_dir", "data.batch_size", "data.num_workers", "data.pin_memory", "data.persistent_workers"),
    *("data.prefetch_factor", "data.transforms.augment", "data.patch", "data.foreground", "data.seed"),
    *("model.optimizer", "model.lr_scheduler", "model.loss_weights", "model.postprocessing.input"),
)


def evaluate_checkpoint(
    checkpoint: str | Path,
    *,
    output_dir: str | Path,
    split: str = "test",
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    manifest: "str | PathLike[str] | InMemory | None" = None,
) -> dict[str, float]:
    """Measure a checkpoint on one split, exactly as its bundle would be served.

    Metrics and report also go to the MLflow run of the training, if it had one.

    Args:
        checkpoint: A .ckpt, or the folder of a run (its best checkpoint); with `config`, also a bundle.
        output_dir: Receives metrics.json, intervals.json (their 95 % intervals: [low, high] by the same names),
            images.csv (one row an image), confusion.json (what was taken for what, a head) and report.html.
        split: "test", or another split of the manifest.
        config: The resolved experiment, whose code is trusted; default: the one in the checkpoint.
        settings: What is chosen after training, by configuration key, e.g. {"model.inference.augment": "flips"}. A
            bundle keeps its own whatever `config` says, but not against these.
        manifest: A table of images, or rows in memory. Default: the experiment's own (data.path).

    Returns:
        Each metric, e.g. {"test/seg/dice": 0.93}: the mean over images, or of all images together (`_pooled`).

    Raises:
        ManifestError: The table is wrong, or has no image of this split.
        BundleError: The checkpoint is damaged, or names code that is not allowed.
    """
    from cyto_dl.bundle import predictor_from_checkpoint
    from cyto_dl.evaluation import evaluate, write_report
    from cyto_dl.evaluation.confusion import write_confusion
    from cyto_dl.evaluation.curves import read_curves
    from cyto_dl.tracking import log_evaluation

    predictor, _, experiment = predictor_from_checkpoint(
        checkpoint, config=config, settings=settings, device=_device(config)
    )
    images = experiment["data"]["path"] if manifest is None else manifest
    evaluation = evaluate(predictor, experiment, manifest=images, split=split)
    folder = Path(output_dir)
    write_metrics(evaluation.summary, folder / "metrics.json")
    with atomic_path(folder / "intervals.json") as temporary:
        temporary.write_text(json.dumps(evaluation.intervals, indent=2))
    with atomic_path(folder / "images.csv") as temporary:
        evaluation.images.to_csv(temporary, index=False)
    write_confusion(evaluation.confusion, folder / "confusion.json")
    run_dir = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent.parent
    report = write_report(
        evaluation,
        folder / "report.html",
        curves=read_curves(run_dir),
        fingerprint=evaluation.fingerprint or _fingerprint_beside(experiment["data"].get("path"), images),
    )
    others = [folder / name for name in ("intervals.json", "images.csv", "confusion.json")]
    log_evaluation(run_dir, evaluation.summary, [report, *others])
    logger.info("evaluated %d images", len(evaluation.images))
    return evaluation.summary


def write_metrics(metrics: Mapping[str, float], path: str | Path) -> dict[str, float]:
    """Write metrics as JSON; returns what was written. A value that is not finite is left out: JSON has none."""
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(finite, indent=2))
    return finite


def _fingerprint_beside(*manifests: Any) -> dict[str, Any]:
    """The fingerprint that lies beside the first of these manifests that has one; empty where none does."""
    for manifest in manifests:
        if isinstance(manifest, (str, PathLike)):
            folder = str(manifest).rpartition("/")[0] or "."
            fingerprint = f"{folder}/fingerprint.json"
            if exists(fingerprint) if is_remote(fingerprint) else Path(fingerprint).is_file():
                found: dict[str, Any] = json.loads(localize(fingerprint).read_text())
                return found
    return {}


def predict_checkpoint(
    checkpoint: str | Path,
    *,
    config: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    split: str,
    output_dir: str | Path,
) -> None:
    """Predict the images of one split: one image a head and row, and predictions.csv.

    Args:
        checkpoint: A .ckpt, or the folder of a run (its best checkpoint), or a bundle.
        config: The resolved experiment: where the images are.
        settings: As for `evaluate_checkpoint`.
        split: "predict", or another split of the manifest.
        output_dir: Receives the images and the table.

    Raises:
        ManifestError: The table is wrong, or has no image of this split.
        ImageError: Images failed; the others were predicted.
    """
    from cyto_dl.bundle import predictor_from_checkpoint
    from cyto_dl.data.manifest import read_manifest
    from cyto_dl.inference.batch import check_all_predicted, predict_images

    data, key = config["data"], config["model"]["x_key"]
    rows = read_manifest(data["path"], columns={key: data["columns"][key]}, split_column=data.get("split_column"))
    if not rows.get(split):
        raise ManifestError(
            f"{data['path']} has no image of the split '{split}'; it has {', '.join(rows)}. Choose one: split=..."
        )
    predictor, _, _ = predictor_from_checkpoint(checkpoint, config=config, settings=settings, device=_device(config))
    check_all_predicted(predict_images(predictor, [row[key] for row in rows[split]], output_dir), output_dir)


def _device(config: Mapping[str, Any] | None) -> str:
    """The GPU, if there is one and the experiment does not ask for the processor: volumes take hours there."""
    import torch

    wanted = config["trainer"].get("accelerator", "auto") if config else "auto"
    return "cuda" if wanted in ("gpu", "cuda", "auto") and torch.cuda.is_available() else "cpu"


def _remember(config: Mapping[str, Any], settings: Mapping[str, Any], split: str, output_dir: Path) -> None:
    """Write beside the results what they are of, and refuse a folder that holds the results of another evaluation.

    Raises:
        ConfigError: Lists what differs.
        BundleError: There is no such checkpoint.
    """
    from cyto_dl.bundle.checkpoint import find_checkpoint
    from cyto_dl.bundle.format import is_bundle

    given = localize(config["ckpt_path"])
    evaluated = given if is_bundle(given) else find_checkpoint(given)
    now = {"ckpt_path": str(evaluated.resolve()), "split": split, "data": config["data"], "model": config["model"]}
    if is_bundle(given):
        now["settings"] = dict(settings)  # a bundle's own win over the experiment's, but not over these
    path = output_dir / ("evaluation.yaml" if config["test"] else "predictions.yaml")
    if path.is_file():
        changed = differences(yaml.safe_load(path.read_text()), now)
        changed = [line for line in changed if not line.startswith(_CHANGES_NO_RESULT)]
        if changed:
            raise ConfigError(
                f"{output_dir} holds the results of another evaluation:\n{list_problems(changed)}\n"
                "Choose another run_name to keep both, e.g. run_name=second, or remove the folder."
            )
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(now, sort_keys=False))


def main() -> None:
    """Entry point of `python cyto_dl/eval.py` and `cyto-dl eval`."""

    def task(config: dict[str, Any]) -> None:
        from cyto_dl.bundle.checkpoint import CHOSEN_AFTER_TRAINING

        check_experiment(config)
        output_dir, given = Path(config["paths"]["output_dir"]), given_below(config, CHOSEN_AFTER_TRAINING)
        split = config["split"] or ("test" if config["test"] else "predict")
        result = output_dir / ("metrics.json" if config["test"] else "predictions.csv")
        with removed_if_refused(output_dir, has_begun=result.is_file):
            _remember(config, given, split, output_dir)
            chosen: dict[str, Any] = {"config": config, "settings": given, "split": split, "output_dir": output_dir}
            if config["test"]:
                evaluate_checkpoint(config["ckpt_path"], **chosen)
                logger.info("report: %s", output_dir / "report.html")
            else:
                predict_checkpoint(config["ckpt_path"], **chosen)
                logger.info("predictions in %s", output_dir)

    launch(task, "eval.yaml")


if __name__ == "__main__":
    main()
