"""Read and write microscopy images as `Image`: an array in the axes C(Z)YX and its pixel size.

file -> READERS (formats.py) -> scene, timepoint, z and channel -> C(Z)YX
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np

from cyto_dl.data.formats import UNKNOWN_AXIS, FileInMemory, Stored, stored_array
from cyto_dl.data.readers import READERS
from cyto_dl.errors import ImageError, StorageError
from cyto_dl.storage import NothingThereError, atomic_path, localized

Place = str | PathLike[str] | FileInMemory
CLASSIC_TIFF_BYTES = 2**32 - 2**25  # offsets have 32 bits; the rest is for tags, as tifffile reckons


class SelectionError(ImageError):
    """A file holds another kind of image than was asked for: no such channel, a stack, a time series.

    The message says what to change in the configuration; `found` and `remedy` say what the file holds and what to
    change about it, for those who cannot change what is asked for.
    """

    def __init__(self, message: str, *, found: str, remedy: str) -> None:
        super().__init__(message)
        self.found = found
        self.remedy = remedy


@dataclass(frozen=True)
class ImageInfo:
    """What a file's header says about an image: shape C(Z)YX after the selection, dtype, pixel size in (Z)YX order."""

    shape: tuple[int, ...]
    dtype: str
    spacing_um: tuple[float, ...] | None
    num_channels_in_file: int


@dataclass(frozen=True)
class Image:
    """An image in memory: array C(Z)YX in the file's dtype, pixel size in (Z)YX order, and where it came from."""

    array: np.ndarray
    spacing_um: tuple[float, ...] | None
    path: str


@dataclass(frozen=True)
class _Selection:
    """Which indices of a stored array's axes are read, and what they make."""

    axes: str  # of the stored array, every axis with a name
    wanted: dict[int, list[int]]  # by position in `axes`; picked while reading
    channels: list[int] | None  # picked after reading: RGB samples are read together
    info: ImageInfo


def read_image(
    path: Place,
    *,
    spatial_dims: int,
    channels: int | Sequence[int] | None = None,
    z: int | None = None,
    scene: int | str | None = None,
    timepoint: int | None = None,
) -> Image:
    """An image of a file as C(Z)YX, in the dtype of the file.

    Args:
        path: Local or s3://; the suffix chooses the reader. Or a file that is in memory already.
        spatial_dims: 2 for CYX, 3 for CZYX.
        channels: Which channels, counted from 0, in which order; None for all. RGB samples are channels.
        z: Which plane of a stack, when spatial_dims is 2.
        scene: Number or name of one of several images in the file.
        timepoint: Which one of a time series.

    Raises:
        ImageError: The file is unreadable, or does not hold what is asked for (SelectionError); the message names it.
    """
    with _open(path, scene) as stored:
        selection = _select(stored, path, spatial_dims=spatial_dims, channels=channels, z=z, timepoint=timepoint)
        array = _arrange(stored.read(selection.wanted), selection)
    return Image(array, selection.info.spacing_um, str(path))


def describe_image(
    path: str | PathLike[str],
    *,
    spatial_dims: int,
    channels: int | Sequence[int] | None = None,
    z: int | None = None,
    scene: int | str | None = None,
    timepoint: int | None = None,
) -> ImageInfo:
    """What `read_image` with the same arguments would return, from the header alone."""
    with _open(path, scene) as stored:
        return _select(stored, path, spatial_dims=spatial_dims, channels=channels, z=z, timepoint=timepoint).info


def select_array(
    array: np.ndarray,
    *,
    name: str,
    spatial_dims: int,
    channels: int | Sequence[int] | None = None,
    z: int | None = None,
) -> Image:
    """An array in memory, (Z)YX or C(Z)YX, as an image: like reading it from a .npy file.

    Args:
        array: Its last axes are the spatial ones; one more in front is the channel.
        name: What error messages call it.
        spatial_dims: 2 or 3.
        channels: As in `read_image`.
        z: As in `read_image`: with it the axis before YX is Z.
    """
    stored = stored_array(array)
    selection = _select(stored, name, spatial_dims=spatial_dims, channels=channels, z=z, timepoint=None)
    return Image(_arrange(stored.read(selection.wanted), selection), None, name)


def describe_array(
    array: np.ndarray,
    *,
    name: str,
    spatial_dims: int,
    channels: int | Sequence[int] | None = None,
    z: int | None = None,
) -> ImageInfo:
    """What `select_array` with the same arguments would return, without copying the array."""
    return _select(stored_array(array), name, spatial_dims=spatial_dims, channels=channels, z=z, timepoint=None).info


def write_image(
    path: str | PathLike[str] | BinaryIO,
    array: np.ndarray,
    *,
    spacing_um: Sequence[float] | None = None,
    channel_names: Sequence[str] | None = None,
) -> None:
    """Write an array C(Z)YX as OME-TIFF with its axes and pixel size, compressed without loss.

    Args:
        path: Should end in .ome.tif. Or a file that is open.
        array: CYX or CZYX. Booleans become uint8; integers of 64 bits become uint32 or int32 if their values fit.
        spacing_um: Pixel size in (Z)YX order, in µm.
        channel_names: One per channel.

    Raises:
        ImageError: The array has other axes, or values that OME-TIFF cannot hold.
    """
    import tifffile

    if array.ndim not in (3, 4):
        raise ImageError(f"{path}: cannot write an array of shape {array.shape}: it must be CYX or CZYX.")
    axes = "CYX" if array.ndim == 3 else "CZYX"
    # tifffile's own identifier of the file would tell this machine's network address and the time
    metadata: dict[str, object] = {"axes": axes, "UUID": str(uuid4())}
    for axis, size in zip(axes[1:], spacing_um or (), strict=spacing_um is not None):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    if channel_names is not None:
        metadata["Channel"] = {"Name": list(channel_names)}
    with atomic_path(path) if isinstance(path, str | PathLike) else nullcontext(path) as file:
        tifffile.imwrite(
            file,
            _storable(array, path),
            ome=True,
            metadata=metadata,
            compression="zlib",
            photometric="minisblack",
            bigtiff=array.nbytes > CLASSIC_TIFF_BYTES,  # tifffile decides by itself only without compression
        )


def wrong_num_channels(path: str, key: str, found: int, expected: int | None) -> str:
    """The message for an image with another number of channels than the configuration says."""
    return (
        f"{path}: '{key}' has {found} channel{'s' if found != 1 else ''}, but the configuration expects {expected}. "
        "Set `channels` or `num_channels` of its reader in data.transforms.load (raw_im_channels for the source)."
    )


def _storable(array: np.ndarray, path: str | PathLike[str] | BinaryIO) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype in (np.int64, np.uint64):
        smaller = np.dtype(np.int32 if array.size and array.min() < 0 else np.uint32)
        if array.size and not (np.iinfo(smaller).min <= array.min() and array.max() <= np.iinfo(smaller).max):
            raise ImageError(f"{path}: OME-TIFF holds integers of at most 32 bits, but values reach {array.max()}.")
        return array.astype(smaller)
    return array


@contextmanager
def _open(path: Place, scene: int | str | None) -> Iterator[Stored]:
    suffix = path.suffix if isinstance(path, FileInMemory) else Path(str(path)).suffix.lower()
    if suffix not in READERS:
        raise ImageError(f"{path}: there is no reader for '{suffix}'. Readable formats: {', '.join(READERS)}.")
    try:
        with nullcontext(path) if isinstance(path, FileInMemory) else localized(path) as local:
            if isinstance(local, Path) and not (local.is_file() or (suffix == ".zarr" and local.is_dir())):
                raise ImageError(f"{path}: the file does not exist.")
            with READERS[suffix](local, scene) as stored:
                yield stored
    except NothingThereError as error:
        raise ImageError(str(error)) from error
    except (ImageError, StorageError):
        raise
    except Exception as error:  # decoders raise anything; whatever it is, the user needs the file's name
        reason = f"{type(error).__name__}: {error}"
        raise ImageError(f"{path}: the file cannot be read ({reason}). Is it damaged?") from error


def _select(
    stored: Stored,
    path: Place,
    *,
    spatial_dims: int,
    channels: int | Sequence[int] | None,
    z: int | None,
    timepoint: int | None,
) -> _Selection:
    """Which indices of the stored axes make the image that is asked for."""
    axes = _name_axes(stored, path, spatial_dims=spatial_dims, is_stack=z is not None)
    size = dict(zip(axes, stored.shape, strict=True))
    wanted = {}
    if size.get("T", 1) > 1 or timepoint is not None:
        wanted["T"] = [_index(path, "timepoint", timepoint, size.get("T", 1), "timepoints")]
    if spatial_dims == 2 and (size.get("Z", 1) > 1 or z is not None):
        wanted["Z"] = [_index(path, "z", z, size.get("Z", 1), "planes", hint=": give spatial_dims 3, or one plane")]
    if spatial_dims == 3 and z is not None:
        raise ImageError(f"{path}: `z` picks a plane for spatial_dims 2, but spatial_dims is 3. Remove `z`.")
    num_channels = size.get("C", 1) * size.get("S", 1)
    chosen = _channels(path, channels, num_channels)
    pages_are_channels = "C" in size and "S" not in stored.axes
    if pages_are_channels:
        wanted["C"] = chosen
    names = "ZYX"[-spatial_dims:]
    known = all(axis in stored.spacing_um for axis in names)
    spacing_um = tuple(stored.spacing_um[axis] for axis in names) if known else None
    shape = (len(chosen), *(size[axis] for axis in names))
    info = ImageInfo(shape, stored.dtype, spacing_um, num_channels)
    by_position = {axes.index(axis): picked for axis, picked in wanted.items() if axis in axes}
    return _Selection(axes, by_position, None if pages_are_channels else chosen, info)


def _name_axes(stored: Stored, path: Place, *, spatial_dims: int, is_stack: bool) -> str:
    """The stored axes, with a name for those that the file leaves without one."""
    axes = stored.axes
    for missing in reversed([axis for axis in axes if axis in UNKNOWN_AXIS]):
        stack_is_known = "Z" in axes or not (spatial_dims == 3 or is_stack)
        axes = ("C" if stack_is_known else "Z").join(axes.rsplit(missing, 1))
    if "S" in axes and "C" not in axes:
        axes = axes.replace("S", "C")
    described = f"the file holds the axes {stored.axes} of the shape {stored.shape}"
    if not {"Y", "X"} <= set(axes) or len(set(axes)) != len(axes) or not set(axes) <= set("TCZYXS"):
        raise ImageError(f"{path}: {described}; readable are T, C, Z, Y, X and RGB samples, each once.")
    if spatial_dims == 3 and "Z" not in axes:
        raise SelectionError(
            f"{path}: spatial_dims is 3, but {described}: a 2-D image. Give spatial_dims 2, or a stack.",
            found=f"{described}: a 2-D image",
            remedy="Give it stacks.",
        )
    if 0 in stored.shape:
        raise ImageError(f"{path}: the image is empty: {described}.")
    return axes


def _index(path: Place, name: str, index: int | None, length: int, things: str, *, hint: str = "") -> int:
    if index is None:
        raise SelectionError(
            f"{path}: the file has {length} {things}{hint}. Choose with `{name}`: 0 to {length - 1}.",
            found=f"the file has {length} {things}",
            remedy="Save one of them as a file of its own.",
        )
    if not 0 <= index < length:
        raise SelectionError(
            f"{path}: `{name}` is {index}, but the file has 0 to {length - 1}.",
            found=f"of the {things} the file has 0 to {length - 1}",
            remedy="Give it files with that many.",
        )
    return index


def _channels(path: Place, channels: int | Sequence[int] | None, num_channels: int) -> list[int]:
    if channels is None:
        return list(range(num_channels))
    chosen = [channels] if isinstance(channels, int) else list(channels)
    absent = [channel for channel in chosen if not 0 <= channel < num_channels]
    if absent or not chosen:
        there = "only channel 0" if num_channels == 1 else f"channels 0 to {num_channels - 1}"
        raise SelectionError(
            f"{path}: channel {absent[0] if absent else '[]'} was asked for, but the file has {there}. "
            "Change source_channel or target_channel (`channels` of the image's reader in data.transforms.load).",
            found=f"the file has {there}",
            remedy="Give it files with that channel.",
        )
    return chosen


def _arrange(array: np.ndarray, selection: _Selection) -> np.ndarray:
    """Bring what was read into the order C(Z)YX, contiguous."""
    order = [axis for axis in "TCSZYX" if axis in selection.axes]
    array = np.transpose(array, [selection.axes.index(axis) for axis in order])
    array = array.reshape(-1, *selection.info.shape[1:])  # a picked timepoint or plane has length 1
    return np.ascontiguousarray(array if selection.channels is None else array[selection.channels])
