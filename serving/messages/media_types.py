"""The formats of the answer to a file: which one the client asks for, and how its bytes are made.

    application/x-npy    one head, as numpy.save writes it
    application/x-npz    any heads, one array each; labels are compressed
    image/tiff           one head, OME-TIFF with its pixel size, compressed: what `cyto-dl predict` writes
    image/png            one head in 2-D of 8 or 16 bits, grey or RGB
    application/json     {"predictions": [{head: nested list}]}

Without a wish it is .npy for one head and .npz for several.
"""

import io
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from cyto_dl.data.image import write_image
from serving.errors import NotAcceptable

NPY, NPZ, TIFF, PNG, JSON = "application/x-npy", "application/x-npz", "image/tiff", "image/png", "application/json"
_MOST_GREY_VALUES = 2**16
_FAST = 1  # labels are so repetitive that more effort gains little

Output = Mapping[str, Any]  # of `Predictor.outputs`


def choose_media_type(accept: str, outputs: Mapping[str, Output]) -> str:
    """The format that a client likes best among those that its heads can have.

    Args:
        accept: The header Accept, as "image/tiff, */*;q=0.1".
        outputs: The heads that it wants, as the bundle describes them.

    Raises:
        NotAcceptable: There is none; lists those that there are.
    """
    possible = _possible(outputs)
    for wish in _wishes(accept or "*/*"):
        for media_type in possible:
            if wish in (media_type, "*/*", f"{media_type.partition('/')[0]}/*"):
                return media_type
    hint = "" if len(outputs) == 1 else f"; for one head (X-Outputs: {next(iter(outputs))}) there are more"
    raise NotAcceptable(f"Accept: {accept[:200]!r} is not possible: this answer comes as {', '.join(possible)}{hint}")


def write_file(
    prediction: Mapping[str, np.ndarray],
    media_type: str,
    *,
    spacing_um: Sequence[float] | None,
    labels: Collection[str],
) -> bytes:
    """The heads' images of one image, as a file.

    Args:
        prediction: Head -> C (Z) Y X.
        media_type: One of the above, but for JSON.
        spacing_um: Pixel size of the one head's image in a TIFF.
        labels: Heads that give labels.

    Raises:
        NotAcceptable: The labels are too many for a PNG.
    """
    if media_type == NPZ:
        return _npz(prediction, labels)
    (array,) = prediction.values()
    file = io.BytesIO()
    writers: dict[str, Callable[[], Any]] = {
        NPY: lambda: np.save(file, array),
        TIFF: lambda: write_image(file, array, spacing_um=spacing_um),
        PNG: lambda: _write_png(file, array),
    }
    writers[media_type]()
    return file.getvalue()


def _possible(outputs: Mapping[str, Output]) -> list[str]:
    """In the order of preference."""
    if len(outputs) > 1:
        return [NPZ, JSON]
    (output,) = outputs.values()
    fits_png = output["axes"] == "CYX" and (
        (output["channels"] == 1 and output["dtype"] in ("uint8", "uint16", "uint32"))
        or (output["channels"] == 3 and output["dtype"] == "uint8")
    )
    return [NPY, NPZ, TIFF, *([PNG] if fits_png else []), JSON]


def _wishes(accept: str) -> list[str]:
    """The media types of an Accept header, the most wanted first."""
    weighed = []
    for place, part in enumerate(accept.lower().split(",")):
        media_type, *options = (each.strip() for each in part.split(";"))
        weight = next((option[2:] for option in options if option.startswith("q=")), "1")
        try:
            quality = float(weight)
        except ValueError:
            quality = 0.0
        if quality > 0:
            weighed.append((-quality, place, media_type))
    return [media_type for _, _, media_type in sorted(weighed)]


def _npz(prediction: Mapping[str, np.ndarray], labels: Collection[str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for head, array in prediction.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array, allow_pickle=False)
            method = zipfile.ZIP_DEFLATED if head in labels else zipfile.ZIP_STORED  # noise hardly gets smaller
            archive.writestr(zipfile.ZipInfo(f"{head}.npy"), entry.getbuffer(), method, _FAST)
    return file.getvalue()


def _write_png(file: io.BytesIO, array: np.ndarray) -> None:
    from PIL import Image

    if array.dtype == np.uint32:
        if array.max(initial=0) >= _MOST_GREY_VALUES:
            raise NotAcceptable(f"Accept: a PNG holds 65535 objects, and here are {array.max()}: ask for {TIFF}")
        array = array.astype(np.uint16)
    pixels = np.moveaxis(array, 0, -1) if len(array) == 3 else array[0]
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png")
