"""What each step of the pipeline batch_prediction does; an orchestrator's component is one call to it.

    manifest -> plan_step -> shards -> predict_step, one a shard -> tables -> collect_step -> predictions.csv, counts

No step but `predict_step` loads the network, and that only where an image is not done yet.
"""

import heapq
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cyto_dl.errors import ConfigError, ImageError, list_problems
from cyto_dl.steps.console import quiet_libraries
from cyto_dl.storage import NothingThereError, atomic_path, identity, is_remote, localize, sha256

if TYPE_CHECKING:
    from cyto_dl.inference.predictor import Predictor

logger = logging.getLogger(__name__)

_NUM_CONNECTIONS = 8  # that ask for sizes at once: a bucket answers one in 10 to 50 ms
_NUM_SHOWN = 5  # failures in a message: enough to see whether they are of one kind


def plan_step(
    manifest: str, bundle: str, output: str, *, column: str = "", num_shards: int = 4, plan_dir: str
) -> list[str]:
    """Deal the images of a manifest out to shards of about the same size in bytes.

    Images that do not exist are dealt out too: they become failed rows.

    Args:
        manifest: A .csv or .parquet, local or s3://. All its splits are predicted.
        bundle: Folder of a bundle, local or s3://.
        output: Folder for the predictions, local or s3://.
        column: That holds the images; "" for the name of the bundle's input.
        num_shards: How many at most; there are no empty ones.
        plan_dir: Receives a table for each shard: index in the manifest, path, stem of its predictions.

    Returns:
        The names of the shards' tables.

    Raises:
        ConfigError: The number of shards is not positive, or files in `output` would be replaced that are none of ours.
        ManifestError: The manifest cannot be read or has no such column.
        BundleError: There is no such bundle.
    """
    from cyto_dl.bundle.format import read_document
    from cyto_dl.data.manifest import read_column
    from cyto_dl.inference.batch import unique_stems
    from cyto_dl.inference.resumable import OutputFolder

    if num_shards < 1:
        raise ConfigError(f"num_shards is {num_shards}: set it to 1 or more.")
    document = read_document(localize(bundle))
    paths = read_column(manifest, column or document["input"]["name"])
    images = pd.DataFrame({"path": paths, "stem": unique_stems(paths)}).rename_axis("index").reset_index()
    OutputFolder(output).claim([f"{head}/{stem}.ome.tif" for head in document["outputs"] for stem in images["stem"]])
    with ThreadPoolExecutor(_NUM_CONNECTIONS) as pool:
        shards = balanced_shards(list(pool.map(_num_bytes, paths)), num_shards)
    names = [f"shard-{number:04}.csv" for number in range(len(shards))]
    with atomic_path(plan_dir) as temporary:
        temporary.mkdir()
        for name, shard in zip(names, shards, strict=True):
            images.iloc[shard].to_csv(temporary / name, index=False)
    logger.info("%d images in %d shards", len(images), len(shards))
    return names


def balanced_shards(sizes: Sequence[int], num_shards: int) -> list[list[int]]:
    """The positions of the sizes in at most `num_shards` groups of about the same sum, none of them empty.

    Source: R. L. Graham, Bounds on Multiprocessing Timing Anomalies (1969): the largest first, each to the smallest
    group; no group gets more than 4/3 of the best solution's largest one.
    """
    groups: list[tuple[int, int, list[int]]] = [(0, number, []) for number in range(min(num_shards, len(sizes)))]
    for position in sorted(range(len(sizes)), key=lambda each: -sizes[each]):
        total, number, members = groups[0]
        # an image of no bytes takes its time too: without the one they would all be in one group
        heapq.heapreplace(groups, (total + max(sizes[position], 1), number, [*members, position]))
    return [sorted(members) for _, _, members in sorted(groups, key=lambda group: group[1])]


def predict_step(
    plan_dir: str, shard: str, bundle: str, output: str, *, engine: str = "torch", table_path: str
) -> dict[str, int]:
    """Predict the images of one shard that are not done yet; see `cyto_dl.inference.resumable`.

    Args:
        plan_dir: Folder from `plan_step`.
        shard: Name of a table in it.
        bundle: Folder of the bundle, local or s3://.
        output: Folder for the predictions, local or s3://.
        engine: torch or torch-mixed (on a GPU if there is one), onnxruntime, openvino, openvino-bf16, or auto: the
            fastest that the bundle has measured, which is what the table of predictions then names.
        table_path: Receives a row an image.

    Returns:
        How many images were predicted, were kept from an earlier attempt, and failed.
    """
    quiet_libraries()
    from cyto_dl.bundle.format import DOCUMENT, read_document
    from cyto_dl.inference.resumable import OutputFolder, predict_resumably

    images = pd.read_csv(Path(plan_dir) / shard, dtype={"path": str, "stem": str}, keep_default_na=False)
    folder = localize(bundle)
    document = read_document(folder)
    if engine == "auto":
        from cyto_dl.bundle.engines import choose_engine

        engine = choose_engine(engine, document, _device(engine))

    def load() -> "Predictor":
        from cyto_dl.bundle import load_bundle

        return load_bundle(folder, engine=engine, device=_device(engine))

    table = predict_resumably(
        list(zip(images["path"], images["stem"], strict=True)),
        OutputFolder(output),
        heads=list(document["outputs"]),
        # the document has the hash of each of the bundle's files
        made_by={"bundle": sha256(folder / DOCUMENT), "engine": engine},
        load=load,
    )
    table.insert(0, "index", images["index"])
    _write(table, table_path)
    return _counts(table)


def _device(engine: str) -> str:
    """Where an engine runs: those of torch on a GPU if there is one."""
    import torch

    return "cuda" if engine in ("torch", "torch-mixed", "auto") and torch.cuda.is_available() else "cpu"


def collect_step(table_paths: Sequence[str], output: str, *, table_path: str, metrics_path: str) -> dict[str, int]:
    """One table of all shards in the order of the manifest: predictions.csv in the output folder, and at `table_path`.

    Returns:
        How many images there are, were predicted, were kept from an earlier attempt, and failed.

    Raises:
        ImageError: None of the images could be predicted; the tables are there all the same.
    """
    from cyto_dl.inference.batch import TABLE
    from cyto_dl.inference.resumable import OutputFolder

    tables = [pd.read_csv(path, float_precision="round_trip") for path in table_paths]
    table = pd.concat(tables, ignore_index=True).sort_values("index").drop(columns="index")
    _write(table, table_path)
    OutputFolder(output).write(TABLE, table.to_csv(index=False))
    counts = {"images": len(table), **_counts(table)}
    with atomic_path(metrics_path) as temporary:
        temporary.write_text(json.dumps(counts))
    logger.info(
        "%d images: %d predicted, %d kept from an earlier run, %d failed; %s", *counts.values(), f"{output}/{TABLE}"
    )
    if counts["failed"] == counts["images"]:
        raise ImageError(
            f"none of the {len(table)} images could be predicted, the reasons are in {output}/{TABLE}:\n"
            f"{list_problems(list(table['error']), limit=_NUM_SHOWN)}"
        )
    return counts


def _counts(table: pd.DataFrame) -> dict[str, int]:
    kept, failed = table["kept"].astype(bool), table["status"] == "failed"
    return {"predicted": int((~kept & ~failed).sum()), "kept": int(kept.sum()), "failed": int(failed.sum())}


def _write(table: pd.DataFrame, path: str) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def _num_bytes(path: str) -> int:
    try:
        return identity(path)[1] if is_remote(path) else Path(path).stat().st_size
    except (NothingThereError, FileNotFoundError):
        return 0
