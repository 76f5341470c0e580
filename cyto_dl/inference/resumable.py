"""Predict images into a folder, local or s3://, and go on where an earlier attempt stopped.

<output>/<head>/<stem>.ome.tif
        /.records/<stem>.json    written after an image's predictions: of which file, by which bundle, how large
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cyto_dl.errors import ConfigError
from cyto_dl.inference.batch import TABLE, claim_folder, predict_file
from cyto_dl.storage import NothingThereError, atomic_path, identity, is_remote, list_objects, remove, upload
from cyto_dl.storage.s3 import read

if TYPE_CHECKING:
    from cyto_dl.inference.predictor import Predictor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutputFolder:
    """A folder of predictions, local or s3://. A file appears in it whole or not at all."""

    address: str

    def place(self, name: str) -> str:
        """The address of a file in it."""
        return f"{self.address.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """The size in bytes of every file in it, by its name relative to the folder."""
        if is_remote(self.address):
            start = len(self.place(""))
            return {each.uri[start:]: each.size for each in list_objects(self.place(""))}
        folder = Path(self.address)
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}

    def claim(self, names: Sequence[str]) -> None:
        """Make it a folder of predictions, so that an attempt that is killed can be taken up again.

        Raises:
            ConfigError: It is none, and one of the files called `names` in it would be replaced.
        """
        if not is_remote(self.address):
            claim_folder(Path(self.address), names)
            return
        there = self.sizes()
        if TABLE in there:
            return
        if taken := [name for name in names if name in there]:
            raise ConfigError(
                f"{self.address} is no folder of earlier predictions, and {len(taken)} of its files would be "
                f"replaced, e.g. {self.place(taken[0])}. Choose another output folder."
            )
        self.write(TABLE, "path,status,seconds\n")

    def read(self, name: str) -> str:
        """The content of a small file in it."""
        if is_remote(self.address):
            return read(self.place(name))[0].decode()
        return Path(self.place(name)).read_text()

    def write(self, name: str, text: str) -> None:
        """Replace a small file in it."""
        with self.workplace() as folder:
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text)
            self.publish(folder, name)

    def forget(self, name: str) -> None:
        """Remove a file, if there is one."""
        if is_remote(self.address):
            remove(self.place(name))
        else:
            Path(self.place(name)).unlink(missing_ok=True)

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A local folder to write into before `publish`: itself when it is local."""
        if not is_remote(self.address):
            yield Path(self.address)
            return
        with tempfile.TemporaryDirectory(prefix="cyto-dl-predictions-") as folder:
            yield Path(folder)

    def publish(self, folder: Path, name: str) -> None:
        """Bring a file of the workplace to its place; nothing is to be done when they are the same."""
        if is_remote(self.address):
            upload(folder / name, self.place(name))


def predict_resumably(
    jobs: Sequence[tuple[str, str]],
    output: OutputFolder,
    *,
    heads: Sequence[str],
    made_by: Mapping[str, str],
    load: Callable[[], "Predictor"],
) -> pd.DataFrame:
    """Predict every image that is not done yet; a bad image is a failed row, and the others go on.

    An image is done if its record says that it was made of the same file, by the same maker, and if its predictions
    are there in the sizes of the record. A file is the same while its size and its time of change are, an object while
    its ETag is.

    Args:
        jobs: Path and stem of each image: local or s3://, and the name of its predictions, which no other image has.
        output: Receives the predictions and their records.
        heads: Of the model.
        made_by: What predictions depend on besides the image, e.g. {"bundle": sha256, "engine": "torch"}.
        load: Gives the model; called at the first image that is not done.

    Returns:
        One row an image: path, status ("ok" or "failed"), seconds that its prediction took, the output of each head,
        error, and whether it was kept from an earlier attempt.

    Raises:
        StorageError: The bucket of the images or of the predictions cannot be reached.
    """
    there = output.sizes()
    predictor: Predictor | None = None
    rows = []
    for path, stem in jobs:
        record = f".records/{stem}.json"
        made_of = {"path": path, "file": _version(path), **made_by}
        row = _kept_row(output, record, made_of, there)
        if row is None:
            predictor = load() if predictor is None else predictor
            if record in there:
                output.forget(record)  # first: it would vouch for a prediction that is replaced only in part
            row = _predict(predictor, path, stem, output)
            if row["status"] == "ok":
                _remember(output, record, made_of, row, heads)
        rows.append(row)
    return pd.DataFrame(rows, columns=["path", "status", "seconds", *heads, "error", "kept"])


def _predict(predictor: "Predictor", path: str, stem: str, output: OutputFolder) -> dict[str, Any]:
    """The image's row, with its predictions in their places and their sizes under "sizes"."""
    sizes = {}
    with output.workplace() as folder:
        row = predict_file(predictor, path, folder, stem) | {"kept": False}
        for head in predictor.outputs:
            name = f"{head}/{stem}.ome.tif"
            if row["status"] == "ok":
                sizes[name] = (folder / name).stat().st_size
                output.publish(folder, name)
                row[head] = output.place(name)
    return row | {"sizes": sizes}


def _remember(
    output: OutputFolder, record: str, made_of: Mapping[str, str], row: Mapping[str, Any], heads: Sequence[str]
) -> None:
    if not made_of["file"]:
        return  # it came while we worked: nobody knows which version was read
    content = {**made_of, "outputs": row["sizes"], "row": {key: row[key] for key in ("path", "seconds", *heads)}}
    output.write(record, json.dumps(content, indent=2) + "\n")


def _kept_row(
    output: OutputFolder, record: str, made_of: Mapping[str, str], there: Mapping[str, int]
) -> dict[str, Any] | None:
    """The row of an image that is done."""
    if record not in there or not made_of["file"]:
        return None
    content = json.loads(output.read(record))
    same = all(content[key] == value for key, value in made_of.items())
    whole = all(there.get(name) == size for name, size in content["outputs"].items())
    if not (same and whole):
        return None
    row: dict[str, Any] = {**content["row"], "status": "ok", "error": "", "kept": True}
    logger.debug("%s is done", row["path"])
    return row


def _version(path: str) -> str:
    """What changes when an image does; "" where there is none."""
    try:
        if is_remote(path):
            return identity(path)[0]
        found = Path(path).stat()
    except (NothingThereError, FileNotFoundError):
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"
