"""Is a new model better than the champion?

images.csv of the candidate -----------------------------------┐
champion's bundle, the candidate's experiment -> evaluation -> images.csv -> differences image by image -> bootstrap
"""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cyto_dl.errors import ConfigError, ManifestError
from cyto_dl.evaluation.bootstrap import Interval, inflated_interval

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Args:
        candidate: The metric's mean over the images that both define.
        champion: Likewise.
        gain: Mean difference over these images, positive where the candidate is better.
        interval: 95 % of the gain, by bootstrap over images; None for fewer than two images.
        minimal_gain: That a better model has to pass.
        num_images: That both define.
        num_undefined: That only one of them defines, as Dice of an empty image is defined only by a false positive.
        metric: <split>/<head>/<metric>; "" where values alone were compared.
        images: A row an image: path, candidate, champion, gain (NaN where one model has no value); empty likewise.
    """

    candidate: float
    champion: float
    gain: float
    interval: Interval | None
    minimal_gain: float
    num_images: int
    num_undefined: int
    metric: str = ""
    images: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)

    @property
    def better(self) -> bool:
        """Whether the whole interval of the gain is above the minimal gain; what cannot be known is not better."""
        return self.interval is not None and self.interval[0] > self.minimal_gain

    def __str__(self) -> str:
        """The comparison as a sentence."""
        if self.interval is None:
            return f"{self.num_images} images with values of both models are too few: it takes two"
        low, high = self.interval
        left_out = f" ({self.num_undefined} left out: one model has no value)" if self.num_undefined else ""
        return (
            f"{self.candidate:.4g} against {self.champion:.4g} on {self.num_images} images{left_out}: "
            f"gain {self.gain:.4g}, 95 % interval {low:.4g} to {high:.4g}, "
            f"{'above' if self.better else 'not wholly above'} {self.minimal_gain:g}"
        )


def compare_values(
    candidate: np.ndarray, champion: np.ndarray, *, higher_is_better: bool, minimal_gain: float = 0.0
) -> Comparison:
    """Compare two models by a paired bootstrap: how hard an image is concerns both, and cancels in the difference.

    Args:
        candidate: One value an image, shape (N,); not finite where there is none.
        champion: Of the same images in the same order.
        higher_is_better: Of the metric.
        minimal_gain: In the metric's unit; a better model's gain has its lower 95 % bound above.

    Raises:
        ValueError: The arrays differ in shape.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 8.
    """
    if candidate.shape != champion.shape or candidate.ndim != 1:
        raise ValueError(f"values of shape {candidate.shape} and {champion.shape} are no pairs: both must be (N,)")
    of_candidate, of_champion = np.isfinite(candidate), np.isfinite(champion)
    both = of_candidate & of_champion
    gains = (candidate[both] - champion[both]) * _sign(higher_is_better)
    return Comparison(
        candidate=_mean(candidate[both]),
        champion=_mean(champion[both]),
        gain=_mean(gains),
        interval=inflated_interval(gains),
        minimal_gain=minimal_gain,
        num_images=int(both.sum()),
        num_undefined=int((of_candidate ^ of_champion).sum()),
    )


def compare_with_bundle(
    images: pd.DataFrame,
    bundle: str | Path,
    config: Mapping[str, Any],
    *,
    manifest: str | PathLike[str],
    split: str,
    metric: str = "",
    minimal_gain: float = 0.0,
) -> Comparison:
    """Compare a model whose images were measured with a bundle, which is measured on the same images.

    Args:
        images: images.csv of the candidate's evaluation: a row an image, a column <head>/<metric> each.
        bundle: Of the champion.
        config: The candidate's resolved experiment, whose code is run: how targets are read and measured.
        manifest: That the candidate was evaluated on.
        split: Likewise.
        metric: <split>/<head>/<metric>, e.g. "test/seg/dice"; default: the first that the candidate has.
        minimal_gain: As for `compare_values`.

    Raises:
        ConfigError: There is no such metric of single images, or its direction is unknown.
        ManifestError: The manifest has other images than those that were measured.
    """
    column = _column(images, metric, split)
    higher_is_better = _higher_is_better(config, bundle, column)
    its_images = measure_images(bundle, manifest=manifest, split=split, config=config)
    if images["path"].tolist() != its_images["path"].tolist():
        raise ManifestError(
            f"{manifest}: its split '{split}' has other images than those that the candidate was measured on. "
            "Evaluate the candidate again, with this manifest."
        )
    if column not in its_images:
        raise ConfigError(
            f"the champion has no value of {column} on these images. Choose another comparison_metric, or another "
            "model_name for a model of another kind."
        )
    values = images[column].to_numpy(dtype=float), its_images[column].to_numpy(dtype=float)
    comparison = compare_values(*values, higher_is_better=higher_is_better, minimal_gain=minimal_gain)
    logger.info("%s/%s, candidate against champion: %s", split, column, comparison)
    of_candidate, of_champion = (np.where(np.isfinite(each), each, np.nan) for each in values)
    table = {"path": images["path"], "candidate": of_candidate, "champion": of_champion}
    gains = (of_candidate - of_champion) * _sign(higher_is_better)
    return replace(comparison, metric=f"{split}/{column}", images=pd.DataFrame({**table, "gain": gains}))


def measure_images(
    run_dir_or_bundle: str | Path,
    *,
    manifest: str | PathLike[str],
    split: str,
    config: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """The table of the images of one split, measured with a model.

    Args:
        run_dir_or_bundle: The model.
        manifest: With the columns that the experiment names.
        split: Of the manifest.
        config: The experiment that says how targets are read and measured; a run has its own.
    """
    from cyto_dl.eval import evaluate_checkpoint

    with tempfile.TemporaryDirectory(prefix="cyto-dl-measured-") as folder:
        evaluate_checkpoint(run_dir_or_bundle, output_dir=folder, split=split, config=config, manifest=manifest)
        return read_images(Path(folder) / "images.csv")


def read_images(path: str | PathLike[str]) -> pd.DataFrame:
    """The table images.csv of an evaluation, every number as it was written."""
    return pd.read_csv(path, float_precision="round_trip")


def _sign(higher_is_better: bool) -> int:
    return 1 if higher_is_better else -1


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _column(images: pd.DataFrame, metric: str, split: str) -> str:
    """The table's column of a metric's full name; the first metric for an empty one."""
    columns = [str(column) for column in images.columns if "/" in str(column)]
    column = metric.removeprefix(f"{split}/") if metric else next(iter(columns), "")
    if column not in columns:
        choices = ", ".join(f"{split}/{each}" for each in columns) or "none: no image has a target"
        raise ConfigError(f"comparison_metric: there is no '{metric}' of single images. Choose one of {choices}.")
    return column


def _higher_is_better(config: Mapping[str, Any], bundle: str | Path, column: str) -> bool:
    from cyto_dl.bundle.format import read_document
    from cyto_dl.evaluation.evaluate import head_metrics
    from cyto_dl.storage import localize

    head, _, name = column.partition("/")
    output = read_document(localize(bundle))["outputs"].get(head)
    if output is None:
        raise ConfigError(
            f"the champion has no head '{head}' to compare. Choose another model_name for a model of another kind."
        )
    metrics = head_metrics(head, output, config)
    # a metric of several classes has a column for each, e.g. dice_1
    known = [each for each in metrics if name == each or name.startswith(f"{each}_")]
    better = metrics[max(known, key=len)].higher_is_better if known else None
    if better is None:
        raise ConfigError(
            f"comparison_metric: whether more of {column} is better is not known. Choose one of "
            f"{', '.join(f'{head}/{each}' for each in metrics if not each.endswith('_pooled'))}, or set the class "
            "attribute higher_is_better of the metric."
        )
    return better
