"""Where a model comes from: commit, data, tracking run and versions. No path, address or name of a person."""

import datetime
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cyto_dl import __version__
from cyto_dl.data.tables import SPLITS, TABLES
from cyto_dl.storage import localize, sha256

PIPELINE_RUN = "CYTO_DL_PIPELINE_RUN"  # environment variable: the pipeline run that a step belongs to
RUN_FILE = "mlflow.json"  # in a run's folder: which run of MLflow it is

# What decides the numbers that a model gives.
_PACKAGES = ("torch", "monai", "lightning", "numpy", "scikit-image", "safetensors", "onnxruntime")


def provenance(config: Mapping[str, Any], *, run_dir: Path) -> dict[str, Any]:
    """What a bundle and a report say about the origin of a model, beside the commits of the code.

    Args:
        config: The resolved experiment.
        run_dir: Folder of the training run; its mlflow.json names the run in MLflow, if there was one.
    """
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "experiment": config.get("experiment_name"),
        "seed": config.get("seed"),
        "manifest_sha256": manifest_sha256(config["data"].get("path")),
        "mlflow_run": _mlflow_run(run_dir),
        "packages": {"cyto-dl": __version__, **_versions()},
    }


def git_commit() -> str:
    """The commit of the code in use, or "unknown" outside a checkout (an image sets CYTO_DL_GIT_COMMIT)."""
    if commit := os.environ.get("CYTO_DL_GIT_COMMIT"):
        return commit
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # installed: git would name the repository around the environment
        return "unknown"
    try:
        command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def image_name() -> str | None:
    """The container image that the process runs in, with its tag or digest, as the compiled pipeline names it."""
    return os.environ.get("CYTO_DL_IMAGE") or None


def manifest_sha256(path: Any) -> str | None:
    """SHA-256 of a manifest: of the file, or of the split files of a folder; None for images in memory."""
    if not isinstance(path, (str, os.PathLike)):
        return None
    local = localize(path)
    if local.is_file():
        return sha256(local)
    tables = [local / f"{split}{suffix}" for split in SPLITS for suffix in TABLES]
    found = [f"{table.name} {sha256(table)}\n" for table in tables if table.is_file()]
    return hashlib.sha256("".join(found).encode()).hexdigest() if found else None


def _mlflow_run(run_dir: Path) -> str | None:
    remembered = run_dir / RUN_FILE
    return json.loads(remembered.read_text())["run_id"] if remembered.is_file() else None


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # an optional one
    return found
