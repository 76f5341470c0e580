"""The file formats that CytoDL reads: one function per format, in the table `READERS` (readers.py).

A reader opens one scene of a file, says what its header says, and reads the planes that are asked for. To add a format,
write such a function and enter its suffix in `READERS`; nothing else in CytoDL knows about formats.
"""

import io
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyto_dl.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

UNKNOWN_AXIS = "QI"  # tifffile's letters for an axis without a name
MICROMETRES = {
    "µm": 1.0,
    "μm": 1.0,
    "\\u00b5m": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}  # both of Unicode's mu


@dataclass(frozen=True)
class Stored:
    """One scene of an open file: what its header says, and how its planes are read.

    `read` takes, per position in `axes`, the indices that are wanted (all of an axis that is left out); it keeps every
    axis.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Mapping[int, list[int]]], np.ndarray]
    spacing_um: Mapping[str, float] = field(default_factory=dict)


class TooManyValuesError(ImageError):
    """A file unfolds to more values than are wanted in memory."""


class FileInMemory(io.BytesIO):
    """A file whose bytes somebody sent; messages call it by its name, and what it is, its first bytes say.

    Nothing on the disk is read for it, whatever its metadata name.

    Args:
        content: The bytes.
        name: For messages.
        max_values: More values than this are not decoded: a small file can unfold to a very large image.
    """

    def __init__(self, content: bytes, name: str, *, max_values: int) -> None:
        super().__init__(content)
        self.name = name
        self._max_values = max_values
        self.suffix = next((suffix for start, suffix in BEGINNINGS.items() if content.startswith(start)), "")

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__  # what Pillow's messages say of a file: they must not tell a memory address

    def check_size(self, shape: Iterable[int]) -> None:
        """Refuse what is too large, by what its header says.

        Raises:
            TooManyValuesError: It is.
        """
        if math.prod(shape) > self._max_values:
            raise TooManyValuesError(
                f"{self}: its header tells of an image of the shape {tuple(shape)}, and {self._max_values} values are "
                "taken at most. Cut the image."
            )


BEGINNINGS = {
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"II+\0": ".tif",  # with offsets of 64 bits
    b"MM\0+": ".tif",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
}
# Codecs whose data say themselves how large they are: what the file's header says is no bound.
_CODECS_WITH_SIZES = "image codecs (JPEG, JPEG 2000, JPEG XR, JPEG XL, WebP, PNG, EER)"

Source = Path | FileInMemory
Reader = Callable[[Source, int | str | None], AbstractContextManager[Stored]]


def stored_array(array: np.ndarray) -> Stored:
    """An array in memory, or mapped into it, as if it were stored in a file: YX, and axes without a name before it."""
    axes = ("Q" * (array.ndim - 2) + "YX")[: array.ndim]
    return Stored(axes, tuple(array.shape), str(array.dtype), partial(_take, array))


def _take(array: np.ndarray, wanted: Mapping[int, list[int]]) -> np.ndarray:
    for position, indices in wanted.items():
        array = np.take(array, indices, axis=position)
    return array


@contextmanager
def open_npy(path: Source, scene: int | str | None) -> Iterator[Stored]:
    """A NumPy file: YX, then upwards (Z)YX and C(Z)YX; the leading axes carry no name."""
    _refuse_scene(path, scene)
    yield stored_array(np.load(path, mmap_mode="r", allow_pickle=False))


@contextmanager
def open_picture(path: Source, scene: int | str | None) -> Iterator[Stored]:
    """A PNG or JPEG. A palette is not applied: in masks its indices are the labels."""
    from PIL import Image

    _refuse_scene(path, scene)
    if path.suffix.lower() == ".png" and not _ends_as_png(path):
        with _opened_picture(path) as picture:
            picture.verify()  # its header is read without looking at the rest; this raises
    with _opened_picture(path) as picture:
        num_samples = len(picture.getbands())
        array = np.asarray(Image.new(picture.mode, (1, 1)))
        size = (picture.height, picture.width)
        if isinstance(path, FileInMemory):
            path.check_size((*size, num_samples))
        shape, axes = ((*size, num_samples), "YXS") if num_samples > 1 else (size, "YX")
        dtype = "uint8" if array.dtype == bool else str(array.dtype)

        def read(wanted: Mapping[int, list[int]]) -> np.ndarray:
            return _take(np.asarray(picture).astype(dtype, copy=False), wanted)

        yield Stored(axes, shape, dtype, read)


def _opened_picture(path: Source) -> "PillowImage":
    from PIL import Image

    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise TooManyValuesError(f"{path}: {error} Save it as TIFF.") from error


def _ends_as_png(path: Source) -> bool:
    with nullcontext(path) if isinstance(path, FileInMemory) else path.open("rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - 12))
        return file.read(12)[4:8] == b"IEND"


def _refuse_scene(path: Source, scene: int | str | None) -> None:
    if scene not in (None, 0):
        raise ImageError(f"{path}: scene {scene!r} was asked for, but this format holds one image. Remove `scene`.")


@contextmanager
def open_tiff(path: Source, scene: int | str | None) -> Iterator[Stored]:
    """A TIFF: OME-TIFF, ImageJ's hyperstacks and plain ones."""
    import tifffile

    with _refusing_damage(path), tifffile.TiffFile(path) as tif:
        index = scene_index(path, [series.name for series in tif.series], scene)
        series = tif.series[index]
        if isinstance(path, FileInMemory):
            _check_decoding(path, series)
        _refuse_cut_off(path, series)
        read = partial(_read_series, tif, index)
        yield Stored(series.axes, tuple(series.shape), str(series.dtype), read, _spacing_um(tif, index))


@contextmanager
def _refusing_damage(path: Source) -> Iterator[None]:
    """Raise what tifffile only logs: a file cut off at its end loses planes, or the names of its axes."""
    complaints: list[str] = []
    reader = threading.get_ident()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if record.thread == reader and (
                "invalid page offset" in message
                or "invalid value offset" in message
                or "corrupted" in message
                or "failed to read" in message  # another file of an OME-TIFF in several: its planes would be zeros
            ):
                complaints.append(message)

    tifffile_logger, listener = logging.getLogger("tifffile"), Listener(logging.WARNING)
    tifffile_logger.addHandler(listener)
    try:
        yield
    finally:
        tifffile_logger.removeHandler(listener)
    if complaints:
        raise ImageError(f"{path}: the file is damaged or cut off ({complaints[0]}). Copy it again from its source.")


def _refuse_cut_off(path: Source, series: Any) -> None:
    """Raise when the last plane lies beyond the end of its file, which the header alone does not show."""
    page = series.pages[-1]
    if page is None:  # a plane that was never written is read as zeros
        return
    size = page.parent.filehandle.size
    if series.dataoffset is not None:
        end = series.dataoffset + series.nbytes
    else:
        end = max((offset + 1 for offset in page.dataoffsets), default=0)  # how long compressed data are is a claim
    if end > size:
        raise ImageError(f"{path}: the file is cut off: it has {size} of {end} bytes. Copy it again from its source.")


def _check_decoding(file: FileInMemory, series: Any) -> None:
    """See that decoding a file that somebody sent takes the memory that its header tells of."""
    import tifffile

    file.check_size(series.shape)
    file.check_size(series.keyframe.chunks)  # its tiles, decoded whole, may be larger than the image
    if int(series.keyframe.compression) in tifffile.TIFF.IMAGE_COMPRESSIONS:
        raise ImageError(
            f"{file}: it is compressed with {series.keyframe.compression.name}, one of the {_CODECS_WITH_SIZES} that "
            "are not decoded here. Save it without compression, or with Deflate, LZW or Zstandard."
        )


def scene_index(path: Source, names: list[str], scene: int | str | None) -> int:
    """Which of several images in a file is wanted, by number or name."""
    if not names:
        raise ImageError(f"{path}: the file holds no image. Is it damaged?")
    choices = ", ".join(f"{index} ({name})" if name else str(index) for index, name in enumerate(names))
    if isinstance(scene, str) and scene in names:
        return names.index(scene)
    if isinstance(scene, int) and 0 <= scene < len(names):
        return scene
    if scene is None and len(names) == 1:
        return 0
    wish = "holds several scenes" if scene is None else f"has no scene {scene!r}"
    raise ImageError(f"{path}: the file {wish}. Choose with `scene` of the image's reader: {choices}.")


def _read_series(tif: Any, index: int, wanted: Mapping[int, list[int]]) -> np.ndarray:
    """Read only the pages that hold what is wanted, where pages and planes agree; otherwise everything."""
    series = tif.series[index]
    page_axes = series.keyframe.axes
    leading_shape = series.shape[: -len(page_axes)]
    if not series.axes.endswith(page_axes) or len(series.pages) != math.prod(leading_shape):
        return _take(series.asarray(), wanted)
    picks = [wanted.get(position, range(length)) for position, length in enumerate(leading_shape)]
    keys = np.ravel_multi_index(np.meshgrid(*picks, indexing="ij"), leading_shape).ravel() if picks else [0]
    array = tif.asarray(key=[int(key) for key in keys], series=index)
    array = array.reshape(*(len(pick) for pick in picks), *series.keyframe.shape)
    return _take(array, {position: indices for position, indices in wanted.items() if position >= len(picks)})


def _spacing_um(tif: Any, index: int) -> dict[str, float]:
    """The pixel size per axis that OME or ImageJ metadata give, where they give it with a unit of length."""
    if tif.is_ome:
        return _ome_spacing_um(tif.ome_metadata, index)
    if tif.is_imagej:
        metadata, tags = tif.imagej_metadata or {}, tif.pages[0].tags
        scale = MICROMETRES.get(str(metadata.get("unit", "")).lower())
        resolutions = {axis: tags.valueof(f"{axis}Resolution") for axis in "XY"}
        if scale is not None:
            spacing = {axis: scale * value[1] / value[0] for axis, value in resolutions.items() if value and value[0]}
            step = abs(float(metadata.get("spacing", 0)))  # negative where the stack was taken downwards
            return spacing | ({"Z": scale * step} if step else {})
    return {}


def _ome_spacing_um(ome_xml: str, index: int) -> dict[str, float]:
    from xml.etree import ElementTree

    try:
        pixels = ElementTree.fromstring(ome_xml).findall("{*}Image/{*}Pixels")[index].attrib
    except (ElementTree.ParseError, IndexError):  # tifffile reads images whose metadata are wrong
        return {}
    spacing = {}
    for axis in "ZYX":
        scale = MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size = float(pixels.get(f"PhysicalSize{axis}") or 0)
        if scale is not None and size > 0:
            spacing[axis] = scale * size
    return spacing
