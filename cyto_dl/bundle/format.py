"""The bundle's files and bundle.yaml: written once, and checked file by file before anything in it is used.

    bundle.yaml          the document: what the model takes and gives, how it is built, sha256 of every other file
    weights.safetensors  the network's weights; of an ensemble the first member's, then weights_2.safetensors, ...
    sample.npz           a small input and its outputs, replayed at export, at load and at server start
    model.onnx           the network for other engines (where it can be exported)
    preview.png, README.md   a model card that a person reads

Other files are none of the bundle's business: they are neither listed nor read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cyto_dl.errors import BundleError, list_problems
from cyto_dl.storage import atomic_path, sha256

FORMAT_VERSION = 1

DOCUMENT = "bundle.yaml"
WEIGHTS = "weights.safetensors"
SAMPLE = "sample.npz"
ONNX = "model.onnx"
PREVIEW = "preview.png"
CARD = "README.md"

_REQUIRED_KEYS = ("name", "input", "preprocess", "model", "postprocess", "inference", "outputs", "files")
_REQUIRED_FILES = (WEIGHTS, SAMPLE)


class _Loader(yaml.SafeLoader):
    """safe_load without aliases: a few lines of nested aliases expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """safe_dump without aliases: a list that is used twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle, whole or damaged."""
    return (folder / DOCUMENT).is_file()


def read_document(folder: Path) -> dict[str, Any]:
    """The bundle's document, of a format that this version understands and with every part that loading needs.

    Raises:
        BundleError: `folder` is not a bundle, bundle.yaml is damaged, or its format is newer than this program.
    """
    path = folder / DOCUMENT
    if not is_bundle(folder):
        raise BundleError(
            f"{folder} is not a bundle: it has no {DOCUMENT}. "
            "A bundle is the folder that `cyto-dl export CHECKPOINT --output FOLDER` writes."
        )
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}. Export or download the bundle again.") from error
    if not isinstance(document, dict) or not isinstance(document.get("format_version"), int):
        raise BundleError(f"{path} does not say its format_version: it is no bundle, or damaged.")
    if document["format_version"] > FORMAT_VERSION:
        raise BundleError(
            f"{path} has bundle format {document['format_version']}, and this CytoDL reads up to format "
            f"{FORMAT_VERSION}. Update CytoDL, or export the model again with this version."
        )
    missing = [key for key in _REQUIRED_KEYS if key not in document]
    if missing:
        raise BundleError(f"{path} lacks {', '.join(missing)}: it is damaged. Export the model again.")
    return document


def write_document(folder: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Write bundle.yaml with the sha256 of every other file in `folder`; returns what was written."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != DOCUMENT}
    complete = {**document, "files": files}
    with atomic_path(folder / DOCUMENT) as temporary:
        text = yaml.dump(complete, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        temporary.write_text(text, encoding="utf-8")
    return complete


def verify_files(folder: Path, document: Mapping[str, Any]) -> None:
    """Check that every file that the document lists is there, whole and unchanged.

    Raises:
        BundleError: Names every file that is missing or differs.
    """
    listed = document["files"]
    if not isinstance(listed, dict):
        raise BundleError(f"{folder / DOCUMENT}: `files` is not a mapping from file name to sha256.")
    members = document.get("ensemble") or []
    if not isinstance(members, list) or not all(isinstance(name, str) for name in members):
        raise BundleError(f"{folder / DOCUMENT}: `ensemble` is not a list of file names.")
    required = dict.fromkeys((*_REQUIRED_FILES, *members))
    problems = [f"{name}: not listed under `files`" for name in required if name not in listed]
    for name, expected in listed.items():
        path = folder / str(name)
        if Path(str(name)).name != name:
            problems.append(f"{name}: not a file name; a bundle's files lie in its own folder")
        elif not path.is_file():
            problems.append(f"{name}: missing")
        elif sha256(path) != expected:
            problems.append(f"{name}: truncated or changed ({path.stat().st_size} bytes; its sha256 differs)")
    if problems:
        raise BundleError(f"the bundle {folder} is damaged:\n{list_problems(problems)}\nDownload or export it again.")
