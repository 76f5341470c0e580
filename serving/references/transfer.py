"""An image by its address, and results that are written where the client wants them.

    {"image_uri": "s3://plates/a.ome.tif", "output_uri": "s3://results/a", "outputs": ["seg"], "parameters": {...}}

    address -> allowed? -> how large is the file? -> its bytes -> read as if they had been sent -> predict -> write

A file at an address is read by the code that reads one in a body (`serving.messages.files`): the result is the same.
Without `output_uri` the answer is the one to a file in a body. With it, the folder gets one file per head, each whole
or not at all; what has its name is replaced.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from kserve.errors import InvalidInput

from cyto_dl.data.image import Image, describe_image, write_image
from cyto_dl.data.ome_zarr import write_ome_zarr
from cyto_dl.errors import ImageError, StorageError
from cyto_dl.inference import Predictor
from cyto_dl.inference.batch import spacing_of
from cyto_dl.storage import NothingThereError, identity, is_remote, localized, upload
from serving.errors import TooLarge
from serving.limits import Limits
from serving.messages.files import FILE_BEGINNINGS, read_file
from serving.messages.parameters import Asked, read_asked
from serving.messages.requests import choose_heads
from serving.references.addresses import Addresses

KEYS = ("image_uri", "output_uri", "format", "outputs", "parameters")
FORMATS = ("ome.tif", "ome.zarr")  # of results
ZARR = ".zarr"
_LARGEST_VOXEL_BYTES = 8
_HEADER_BYTES = 2**20  # of metadata, beside the pixels of an image that is not compressed


@dataclass(frozen=True)
class Reference:
    """A request whose image is a file, understood.

    Args:
        image: Address of the file.
        output: Address of the folder for results; None: they are wanted in the answer.
        suffix: Of the results' files: their format.
        heads: That are wanted, in this order.
        asked: Its parameters.
    """

    image: str
    output: str | None
    suffix: str
    heads: list[str]
    asked: Asked


def read_reference(
    document: Mapping[str, Any], *, predictor: Predictor, limits: Limits, addresses: Addresses
) -> Reference:
    """A request by reference, checked; nothing is read yet.

    Raises:
        InvalidInput: It is wrong; the message names the key.
        Closed: An address is not allowed.
    """
    if unknown := sorted(set(document) - set(KEYS)):
        raise InvalidInput(f"{unknown[0]}: a request by reference has the keys {', '.join(KEYS)}, and no others")
    output = document.get("output_uri")
    return Reference(
        image=addresses.to_read(document.get("image_uri")),
        output=None if output is None else addresses.to_write(output),
        suffix=read_format(document),
        heads=choose_heads(document.get("outputs") or [], list(predictor.outputs)),
        asked=read_asked(document.get("parameters"), predictor, limits),
    )


def read_format(document: Mapping[str, Any]) -> str:
    """The format of the results.

    Raises:
        InvalidInput: There is no such format, or the results are not written anywhere.
    """
    suffix = document.get("format", FORMATS[0])
    if suffix not in FORMATS or (suffix != FORMATS[0] and document.get("output_uri") is None):
        raise InvalidInput(f"format: with output_uri, it is one of {', '.join(FORMATS)}")
    return str(suffix)


def read_image_at(address: str, asked: Asked, *, predictor: Predictor, limits: Limits) -> Image:
    """The image at an address, of a size that the server takes.

    Raises:
        InvalidInput: There is none, or it is damaged, or of another kind than the model takes.
        TooLarge: Its file is larger than the largest image, or its header tells of too many voxels.
    """
    _check_file(address, limits)
    if address.lower().endswith(ZARR):
        return _read_zarr(address, asked, predictor=predictor, limits=limits)
    try:
        with localized(address) as path:
            content = path.read_bytes()
    except (NothingThereError, FileNotFoundError) as error:  # removed meanwhile
        raise _nothing_there() from error
    if not content.startswith(FILE_BEGINNINGS):
        raise InvalidInput("image_uri: the file is no image: TIFF, PNG, JPEG, .npy and OME-Zarr are")
    return read_file(content, asked, predictor=predictor, limits=limits, name="image_uri")


def _read_zarr(address: str, asked: Asked, *, predictor: Predictor, limits: Limits) -> Image:
    if not is_remote(address) and any(path.is_symlink() for path in Path(address).rglob("*")):
        raise InvalidInput("image_uri: the OME-Zarr has links inside, which may lead out of what is allowed")
    try:
        limits.check_voxels(describe_image(address, **predictor.input.load).shape, name="image_uri")
        image = predictor.read(address)
    except ImageError as error:
        raise InvalidInput(str(error).replace(address, "image_uri")) from error
    return replace(image, spacing_um=asked.spacing_um or image.spacing_um or predictor.input.spacing_um)


def _check_file(address: str, limits: Limits) -> None:
    try:
        size = identity(address)[1] if is_remote(address) else _size(Path(address))
    except NothingThereError as error:
        raise _nothing_there() from error
    most = limits.voxels * _LARGEST_VOXEL_BYTES + _HEADER_BYTES
    if size > most:
        raise TooLarge(f"image_uri: the file has {size} bytes, and this server reads up to {most}. Cut the image.")


def _size(path: Path) -> int:
    if path.suffix.lower() == ZARR and path.is_dir():
        return 0  # its metadata say how large the image is, and only that is read
    if not path.is_file():
        raise _nothing_there()
    return path.stat().st_size


def _nothing_there() -> InvalidInput:
    return InvalidInput("image_uri: there is no file at this address")


def write_results(
    predictions: Mapping[str, np.ndarray], image: Image, folder: str, *, suffix: str, labels: frozenset[str]
) -> list[dict[str, Any]]:
    """Write one OME-TIFF or OME-Zarr per head into a folder, local or s3://.

    Args:
        predictions: Head -> C (Z) Y X.
        image: That was predicted: its pixel size is theirs.
        folder: Its address.
        suffix: ome.tif or ome.zarr.
        labels: Heads that give labels.

    Returns:
        Per head: name, uri, shape, datatype, and of labels how many different ones there are: the
        objects of a head of objects.

    Raises:
        StorageError: The folder cannot be written.
    """
    written = []
    for head, array in predictions.items():
        uri = f"{folder}/{head}.{suffix}"
        spacing_um = spacing_of(array, image.array, image.spacing_um)
        try:
            _write(uri, array, spacing_um)
        except (OSError, ImageError) as error:
            raise StorageError(f"{uri} cannot be written: {error}") from error
        described: dict[str, Any] = {"name": head, "uri": uri, "shape": list(array.shape), "datatype": str(array.dtype)}
        if head in labels:
            described["num_labels"] = int(np.count_nonzero(np.unique(array)))
        written.append(described)
    return written


def _write(uri: str, array: np.ndarray, spacing_um: tuple[float, ...] | None) -> None:
    if not is_remote(uri):
        _write_file(Path(uri), array, spacing_um)
        return
    with tempfile.TemporaryDirectory(prefix="cyto-dl-results-") as folder:
        path = Path(folder) / uri.rpartition("/")[2]
        _write_file(path, array, spacing_um)
        if path.is_file():
            upload(path, uri)
            return
        files = [each for each in path.rglob("*") if each.is_file()]
        # what makes it an OME-Zarr comes last: without it, nobody takes a part for the whole
        for each in sorted(files, key=lambda each: len(each.relative_to(path).parts), reverse=True):
            upload(each, f"{uri}/{each.relative_to(path).as_posix()}")


def _write_file(path: Path, array: np.ndarray, spacing_um: tuple[float, ...] | None) -> None:
    if path.suffix == ZARR:
        write_ome_zarr(path, array, spacing_um=spacing_um)
    else:
        write_image(path, array, spacing_um=spacing_um)
