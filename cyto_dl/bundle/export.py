"""Write a bundle:  checkpoints -> weights, sample, ONNX, card -> load again and replay bit for bit -> rename

Everything happens in a temporary folder beside the target, which appears whole or not at all.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from cyto_dl.bundle.agreement import measure_engines
from cyto_dl.bundle.card import write_card
from cyto_dl.bundle.checkpoint import find_checkpoint, predictor_from_checkpoint
from cyto_dl.bundle.ensemble import predictor_of_ensemble
from cyto_dl.bundle.format import ONNX, SAMPLE, is_bundle, write_document
from cyto_dl.bundle.load import load_bundle
from cyto_dl.bundle.onnx import export_onnx
from cyto_dl.bundle.provenance import git_commit
from cyto_dl.bundle.sample import EXACT, Sample, crop_for_sample, make_sample, read_sample, replay, write_sample
from cyto_dl.bundle.targets import foreign_targets
from cyto_dl.bundle.weights import write_weights
from cyto_dl.data.image import Image
from cyto_dl.data.manifest import read_manifest
from cyto_dl.data.transforms import as_meta_tensor
from cyto_dl.errors import BundleError, ConfigError, ManifestError
from cyto_dl.inference.geometry import check_geometry
from cyto_dl.inference.predictor import Predictor
from cyto_dl.model.network import Ensemble, TaskNetwork
from cyto_dl.storage import atomic_path, is_remote, localize

logger = logging.getLogger(__name__)

_SAMPLE_SPLITS = ("test", "valid", "predict", "train")  # in this order: an image that the model has not seen


def export_bundle(
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    output_dir: str | PathLike[str],
    *,
    name: str | None = None,
    metrics: Mapping[str, float] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    sample: str | PathLike[str] | np.ndarray | None = None,
    settings: Mapping[str, Any] | None = None,
    allow: Iterable[str] = (),
) -> Path:
    """Export a checkpoint as a bundle that predicts the same, bit for bit; or several as one that averages them.

    Args:
        source: A .ckpt, or the folder of a run (its best checkpoint). Several of these or of bundles, of trainings that
            differ in their weights only, become an ensemble.
        output_dir: The new bundle. An older bundle there is replaced; another folder with content is refused.
        name: Of the model. Default: the run's name.
        metrics: For the model card, e.g. {"test/seg/dice": 0.93}. Default: test/metrics.json of the run's folder;
            those of an ensemble have to be measured first (`cyto-dl eval` takes a bundle).
        fingerprint: Of the training data, from `prepare_data`.
        sample: An image of which a crop becomes the bundle's sample: a path, or an array C (Z) Y X. Default: the first
            test (else validation) image of the run's manifest; of bundles the first one's sample.
        settings: What is chosen after training, by configuration key: thresholds of a postprocessing, windows,
            test-time augmentation. Of one checkpoint; members of an ensemble bring theirs.
        allow: Dotted names of own code that the experiment uses; the bundle lists them.

    Returns:
        The bundle's folder.

    Raises:
        BundleError: The checkpoint is damaged, asks for code that is not allowed, or does not repeat its predictions;
            or the members of an ensemble differ in more than their weights.
        ConfigError: The preprocessing cannot be undone, or there is no image to make the sample of.
    """
    target, allow = Path(output_dir), tuple(allow)
    _check_target(output_dir)
    sources = [source] if isinstance(source, str | PathLike) else list(source)
    if len(sources) == 1:
        predictor, document, config = predictor_from_checkpoint(sources[0], settings=settings, allow=allow)
        metrics = _run_metrics(sources[0]) if metrics is None and not settings else metrics
    elif settings:
        raise ConfigError(
            "settings are of one checkpoint. Export each member with them, and then the bundles together."
        )
    else:
        predictor, document, config = predictor_of_ensemble(sources, allow=allow)
    image = _sample_image(predictor, config, sample, sources)
    check_geometry(predictor.preprocess, as_meta_tensor(predictor.checked(image)), key=predictor.input.name)
    made = make_sample(predictor, crop_for_sample(image, predictor.window.roi_size))

    document["name"] = _model_name(name or document["name"])
    document["input"]["spacing_um"] = list(image.spacing_um) if image.spacing_um else None
    document["outputs"] = _describe_outputs(predictor, made)
    document["metrics"] = dict(metrics or {})
    document["fingerprint"] = dict(fingerprint or {})
    document["provenance"]["export_commit"] = git_commit()
    document["foreign_targets"] = _foreign_targets(document)
    with atomic_path(target) as folder:
        folder.mkdir()
        _write(folder, predictor, document, made)
        again = load_bundle(folder, allow=allow, replay=False)
        replay(again, read_sample(folder / SAMPLE), tolerance=EXACT)
    logger.info("exported %s", target)
    return target


def _write(folder: Path, predictor: Predictor, document: dict[str, Any], sample: Sample) -> None:
    network = predictor.network
    assert isinstance(network, TaskNetwork | Ensemble)  # exports begin with trained weights, not with an engine
    write_weights(folder, network)
    write_sample(folder / SAMPLE, sample)
    document["engines"] = {"onnx": export_onnx(predictor, folder, sample.image)}
    if (folder / ONNX).exists():
        document["engines"]["measured"] = measure_engines(predictor, folder, sample.image)
    write_card(folder, document, sample)
    write_document(folder, document)


def _check_target(output_dir: str | PathLike[str]) -> None:
    if is_remote(output_dir):
        raise ConfigError(f"{output_dir}: export writes to a local folder. Copy it to the bucket afterwards.")
    target = Path(output_dir)
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not is_bundle(target)):
        raise ConfigError(f"{output_dir} exists and is no bundle. Choose a new folder, so that nothing is lost.")


def _sample_image(
    predictor: Predictor,
    config: Mapping[str, Any],
    sample: str | PathLike[str] | np.ndarray | None,
    sources: Sequence[str | PathLike[str]],
) -> Image:
    if isinstance(sample, np.ndarray):
        return predictor.checked(sample)
    bundles = [folder for folder in map(localize, sources) if is_bundle(folder)]
    if sample is None and bundles:
        return predictor.checked(read_sample(bundles[0] / SAMPLE).image)
    return predictor.read(sample or _first_image(predictor, config))


def _first_image(predictor: Predictor, config: Mapping[str, Any]) -> str:
    data, key = config["data"], predictor.input.name
    if not isinstance(data.get("path"), str) or key not in data.get("columns", {}):
        raise ConfigError("the experiment has no manifest to take a sample image from. Give one: sample=IMAGE.")
    source_column = {key: data["columns"][key]}
    try:
        rows = read_manifest(data["path"], columns=source_column, split_column=data.get("split_column"))
    except ManifestError as error:  # the run was made elsewhere, say
        raise ConfigError(f"{error}\nOr give an image for the bundle's sample: --sample IMAGE.") from error
    return str(next(rows[split][0][key] for split in _SAMPLE_SPLITS if rows.get(split)))


def _describe_outputs(predictor: Predictor, sample: Sample) -> dict[str, Any]:
    described = {}
    for head, array in sample.images.items():
        axes = "CZYX" if array.ndim == 4 else "CYX"
        described[head] = {
            **predictor.outputs[head],
            "dtype": str(array.dtype),
            "channels": array.shape[0],
            "axes": axes,
        }
    return described


def _foreign_targets(document: Mapping[str, Any]) -> list[dict[str, str | None]]:
    found = foreign_targets([document["model"], document["preprocess"], document["postprocess"]])
    for each in found:
        logger.warning(
            "the bundle needs %s (package %s): install it where the model is served, and allow it there with "
            "--allow-target %s",
            each["target"],
            each["package"],
            each["target"],
        )
    return found


def _run_metrics(run_dir_or_ckpt: str | PathLike[str]) -> dict[str, float]:
    written = find_checkpoint(run_dir_or_ckpt).parent.parent / "test" / "metrics.json"
    return json.loads(written.read_text()) if written.is_file() else {}


def _model_name(name: str) -> str:
    """A name that can stand in the address of a server."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if not safe:
        raise BundleError(f"the name {name!r} has no letter or digit that an address can hold. Give another.")
    return safe
