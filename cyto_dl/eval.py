"""Evaluate or use a checkpoint:  python cyto_dl/eval.py experiment=im2im/segmentation ckpt_path=logs/.../best.ckpt

checkpoint -> Predictor (the code that also serves) --test=true--> metrics.json, images.csv, report.html
                                                    --test=false-> one image a head and row, predictions.csv
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the package beside this file's folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import logging
from collections.abc import Mapping
from typing import Any

from cyto_dl.config import launch
from cyto_dl.errors import ConfigError
from cyto_dl.storage import atomic_path

logger = logging.getLogger(__name__)


def evaluate_checkpoint(
    config: Mapping[str, Any], checkpoint: str | Path, *, split: str, output_dir: str | Path
) -> dict[str, float]:
    """Measure a checkpoint on one split, exactly as its bundle would be served.

    Args:
        config: The resolved experiment: where the images are and how their targets are read.
        checkpoint: A .ckpt, or the folder of a run (its best checkpoint).
        split: "test", or another split of the manifest.
        output_dir: Receives metrics.json, images.csv (one row an image) and report.html.

    Returns:
        Mean over images of each metric, e.g. {"test/seg/dice": 0.93}.
    """
    from cyto_dl.bundle import predictor_from_checkpoint
    from cyto_dl.evaluation import evaluate, write_report
    from cyto_dl.tracking import log_evaluation

    predictor, _, _ = predictor_from_checkpoint(checkpoint, config=config)
    evaluation = evaluate(predictor, config, manifest=config["data"]["path"], split=split)
    folder = Path(output_dir)
    with atomic_path(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(evaluation.summary, indent=2))
    with atomic_path(folder / "images.csv") as temporary:
        evaluation.images.to_csv(temporary, index=False)
    report = write_report(evaluation, folder / "report.html")
    run_dir = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent.parent
    log_evaluation(run_dir, evaluation.summary, [report, folder / "images.csv"])
    logger.info("evaluated %d images: %s", len(evaluation.images), report)
    return evaluation.summary


def predict_checkpoint(
    config: Mapping[str, Any], checkpoint: str | Path, *, split: str, output_dir: str | Path
) -> Path:
    """Predict the images of one split; returns the folder with one image a head and row, and predictions.csv."""
    from cyto_dl.bundle import predictor_from_checkpoint
    from cyto_dl.data.manifest import read_manifest
    from cyto_dl.inference import predict_images

    data = config["data"]
    source = {predictor_key: data["columns"][predictor_key] for predictor_key in [config["model"]["x_key"]]}
    rows = read_manifest(data["path"], columns=source, split_column=data.get("split_column"))
    if not rows.get(split):
        raise ConfigError(f"{data['path']} has no image with the split '{split}'. It has {', '.join(rows)}.")
    predictor, _, _ = predictor_from_checkpoint(checkpoint, config=config)
    predict_images(predictor, [row[predictor.input.name] for row in rows[split]], output_dir)
    return Path(output_dir)


def main() -> None:
    """Entry point of `python cyto_dl/eval.py` and `cyto-dl eval`."""

    def task(config: dict[str, Any]) -> None:
        from cyto_dl.train import check, print_tree

        check(config)
        if config["extras"]["print_config"]:
            print_tree(config)
        output_dir = config["paths"]["output_dir"]
        if config["test"]:
            split = config["split"] or "test"
            metrics = evaluate_checkpoint(config, config["ckpt_path"], split=split, output_dir=output_dir)
            for name, value in metrics.items():
                logger.info("%s %.4f", name, value)
        else:
            split = config["split"] or "predict"
            folder = predict_checkpoint(config, config["ckpt_path"], split=split, output_dir=output_dir)
            logger.info("predictions in %s", folder)

    launch(task, "eval.yaml")


if __name__ == "__main__":
    main()
