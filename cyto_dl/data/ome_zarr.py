"""OME-Zarr, local folders: read the full resolution of NGFF 0.4 and 0.5, write NGFF 0.4.

<name>.ome.zarr/.zattrs     multiscales: axes, and per level the pixel size
               /0/          the full resolution, in chunks; only those that are wanted are read

Source: https://ngff.openmicroscopy.org/0.4 and /0.5
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyto_dl.data.formats import MICROMETRES, FileInMemory, Source, Stored, scene_index
from cyto_dl.errors import ImageError
from cyto_dl.storage import atomic_path

if TYPE_CHECKING:
    import zarr

# One of numcodecs' codecs unpickles, which runs the code in a file: only those that move numbers are used.
_CODECS = {
    "blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd",
    "delta", "fixedscaleoffset", "shuffle", "bytes", "crc32c", "sharding_indexed", "transpose",
}  # fmt: skip
_LARGEST_CHUNK = 2**30  # values: a chunk is decoded whole, however small the image is
_CHUNK_PX = (16, 512, 512)  # 4 to 16 MB: few enough files, and a plane is read without its whole stack
_UNITS = {"angstrom": 1e-4, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}


@contextmanager
def open_zarr(path: Source, scene: int | str | None) -> Iterator[Stored]:
    """One image of an OME-Zarr folder.

    Raises:
        ImageError: It is no OME-Zarr, or is packed with a codec that is not read here.
    """
    import zarr

    if isinstance(path, FileInMemory) or not path.is_dir():
        raise ImageError(f"{path}: an OME-Zarr is a folder. Unpack it, or give the folder.")
    try:
        group = zarr.open_group(path, mode="r")
    except FileNotFoundError as error:
        raise ImageError(f"{path}: the folder is no OME-Zarr: it has neither .zgroup nor zarr.json.") from error
    attributes: Mapping[str, Any] = group.attrs.asdict()
    images = attributes.get("ome", attributes).get("multiscales")
    if not images:
        raise ImageError(
            f"{path}: the folder is a Zarr without `multiscales`: no OME-Zarr, or a plate or a collection of several. "
            "Give the folder of one image, as plate.ome.zarr/A/1/0."
        )
    image = images[scene_index(path, [each.get("name", "") for each in images], scene)]
    level = image["datasets"][0]  # the standard says that the first is the largest
    array = group[level["path"]]
    assert isinstance(array, zarr.Array)
    _check_chunks(path, array)
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in image["axes"]]  # text in 0.3
    names = "".join(axis["name"].upper() if len(axis["name"]) == 1 else "?" for axis in axes)
    shape, dtype = tuple(array.shape), str(array.dtype)
    yield Stored(names, shape, dtype, partial(_read, array), _spacing_um(axes, level, image))


def write_ome_zarr(path: Path, array: np.ndarray, *, spacing_um: Sequence[float] | None) -> None:
    """Write an image C (Z) Y X as OME-Zarr, one resolution; the folder appears whole or not at all.

    Args:
        path: Should end in .ome.zarr.
        array: Of any integer or float type, or boolean.
        spacing_um: Pixel size in (Z)YX order, in µm.
    """
    import zarr

    names = "czyx" if array.ndim == 4 else "cyx"
    units = {"unit": "micrometer"} if spacing_um else {}
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", **units} for name in names[1:]]
    scale = [1.0, *(spacing_um or [1.0] * (array.ndim - 1))]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    image = {"version": "0.4", "name": path.name.partition(".")[0], "axes": axes, "datasets": [level]}
    chunks = tuple(min(size, most) for size, most in zip(array.shape[1:], _CHUNK_PX[1 - array.ndim :], strict=True))
    with atomic_path(path) as temporary:
        group = zarr.create_group(temporary, zarr_format=2, attributes={"multiscales": [image]})
        group.create_array("0", data=array, chunks=(1, *chunks), chunk_key_encoding={"name": "v2", "separator": "/"})


def _read(array: "zarr.Array[Any]", wanted: Mapping[int, list[int]]) -> np.ndarray:
    picked = [np.array(wanted[axis]) if axis in wanted else slice(None) for axis in range(array.ndim)]
    return np.asarray(array.oindex[tuple(picked)])


def _check_chunks(path: Path, array: "zarr.Array[Any]") -> None:
    document: dict[str, Any] = dict(array.metadata.to_dict())
    codecs: list[Any] = [document.get("compressor"), *(document.get("filters") or ()), *(document.get("codecs") or ())]
    names = [str(codec.get("id", codec.get("name"))) for codec in codecs if codec]
    refused = [name for name in names if name.removeprefix("numcodecs.") not in _CODECS]
    if refused or array.dtype.kind not in "buif":
        what = f"the codec {refused[0]}" if refused else f"values of the type {array.dtype}"
        raise ImageError(f"{path}: {what} is not read here. Save it as numbers, packed with blosc, zstd or gzip.")
    if math.prod(array.chunks) > _LARGEST_CHUNK:
        raise ImageError(f"{path}: its chunks have {array.chunks} values; save it with chunks of some million.")


def _spacing_um(axes: Sequence[Mapping[str, str]], *levels: Mapping[str, Any]) -> dict[str, float]:
    """The pixel size per axis that has a unit of length: the scales of a level and of its image, multiplied."""
    size = np.ones(len(axes))
    for each in levels:
        for change in each.get("coordinateTransformations", ()):
            if change["type"] == "scale":
                size = size * change["scale"]
    units = MICROMETRES | _UNITS
    return {
        axis["name"].upper(): float(each) * units[axis["unit"]]
        for axis, each in zip(axes, size, strict=True)
        if axis.get("unit") in units and axis["name"] in "zyx" and each > 0
    }
