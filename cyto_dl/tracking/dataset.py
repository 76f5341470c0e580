"""The data set of a training as MLflow shows it: where its table is, the table's digest, and its fingerprint."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyto_dl.bundle.provenance import manifest_sha256
from cyto_dl.storage import is_remote

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

DATA_FOLDER = "data"  # of a run's artifacts
_FINGERPRINT = "fingerprint.json"  # beside a prepared manifest
_MAX_DIGEST = 36  # letters that MLflow takes; the tag manifest_sha256 has all of them


def dataset_input(manifest: Any) -> "DatasetInput | None":
    """A manifest as an input of a run; None for images in memory.

    Args:
        manifest: The experiment's data.path.

    Raises:
        StorageError: It lies on S3, which cannot be read.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    digest = manifest_sha256(manifest)
    if digest is None:
        return None
    address = str(manifest) if is_remote(manifest) else str(Path(manifest).resolve())
    measured = fingerprint_file(manifest)
    profile = {} if measured is None else json.loads(measured.read_text())
    return DatasetInput(
        Dataset(
            name=Path(address).stem,
            digest=digest[:_MAX_DIGEST],
            source_type="s3" if is_remote(manifest) else "local",
            source=json.dumps({"uri": address}),
            profile=json.dumps(profile),
        ),
        [InputTag("mlflow.data.context", "training")],
    )


def data_tags(manifest: Any) -> dict[str, str]:
    """The whole digest, to find all runs on the same table."""
    digest = manifest_sha256(manifest)
    return {} if digest is None else {"manifest_sha256": digest}


def fingerprint_file(manifest: Any) -> Path | None:
    """What was measured when the manifest was prepared; None for one that was not."""
    if is_remote(manifest):
        return None
    found = Path(manifest).with_name(_FINGERPRINT)
    return found if found.is_file() else None
