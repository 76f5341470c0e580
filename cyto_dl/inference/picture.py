"""Arrays as pictures for people: previews of bundles, figures of reports. 8-bit RGB, Y X 3."""

import base64
import colorsys
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

Picture = np.ndarray

# Dim and bright ends of what is shown: a few hot pixels must not make the rest black.
_PERCENTILES = (0.5, 99.8)
_MISSED, _FALSE = (0, 190, 220), (255, 90, 60)  # told apart also by the colour-blind
_GAP_PX, _TITLE_PX = 12, 26


def plane(array: np.ndarray, index: int | None = None) -> np.ndarray:
    """One plane, C Y X, of an array C (Z) Y X: number `index`, or the middle one."""
    if array.ndim == 3:
        return array
    return array[:, array.shape[1] // 2 if index is None else index]


def busiest_plane(array: np.ndarray) -> int | None:
    """The plane of a stack C Z Y X where the most is to be seen; None for C Y X."""
    return int(array.std(axis=(0, 2, 3)).argmax()) if array.ndim == 4 else None


def window_of(array: np.ndarray) -> tuple[float, float]:
    """The values that become black and white when an array is shown by itself."""
    low, high = np.percentile(array, _PERCENTILES)
    return float(low), float(high)


def grey(plane_CYX: np.ndarray, window: tuple[float, float] | None = None) -> Picture:
    """Intensities as grey values; three channels as red, green and blue, any other number by its first."""
    shown = plane_CYX if len(plane_CYX) == 3 else plane_CYX[:1]
    scaled = []
    for channel in shown.astype(np.float64):
        low, high = window or window_of(channel)
        scaled.append(np.clip((channel - low) / max(high - low, 1e-12), 0, 1) * 255)
    picture = np.stack(scaled, axis=-1).round().astype(np.uint8)
    return np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture


def coloured_labels(plane_CYX: np.ndarray) -> Picture:
    """Labels in colours, background black; a mask in white."""
    labels = plane_CYX[0].astype(np.int64)
    if labels.max(initial=0) <= 1:
        return grey(plane_CYX[:1], (0, 1))
    hues = (np.arange(255) * 0.618) % 1  # the golden ratio sets neighbours far apart
    table = np.array([(0, 0, 0), *(colorsys.hsv_to_rgb(hue, 0.65, 1.0) for hue in hues)])
    return (table[np.where(labels > 0, (labels - 1) % 255 + 1, 0)] * 255).astype(np.uint8)


def mistakes(prediction: np.ndarray, target: np.ndarray) -> Picture:
    """Two masks Y X on top of each other: grey where both are, blue what was missed, red what is not there."""
    picture = np.zeros((*target.shape, 3), np.uint8)
    picture[prediction & target] = (200, 200, 200)
    picture[target & ~prediction] = _MISSED
    picture[prediction & ~target] = _FALSE
    return picture


def fitted(picture: Picture, side_px: int) -> Pillow.Image:
    """A picture whose longer side is about `side_px`; small ones grow by a whole factor, so that pixels stay square."""
    image = Pillow.fromarray(picture)
    longest = max(image.size)
    if longest > side_px:
        width, height = (max(1, round(length * side_px / longest)) for length in image.size)
        return image.resize((width, height), Pillow.Resampling.BOX)
    factor = side_px // longest
    return image.resize((image.width * factor, image.height * factor), Pillow.Resampling.NEAREST)


def strip(pictures: Sequence[tuple[str, Picture]], *, side_px: int = 400) -> Pillow.Image:
    """Titled pictures side by side on white."""
    panels = [(title, fitted(picture, side_px)) for title, picture in pictures]
    width = sum(panel.width + _GAP_PX for _, panel in panels) + _GAP_PX
    height = max(panel.height for _, panel in panels) + _TITLE_PX + _GAP_PX
    canvas = Pillow.new("RGB", (width, height), "white")
    draw, font, left = ImageDraw.Draw(canvas), ImageFont.load_default(size=15), _GAP_PX
    for title, panel in panels:
        draw.text((left, 5), title, fill=(60, 60, 60), font=font)
        canvas.paste(panel, (left, _TITLE_PX))
        left += panel.width + _GAP_PX
    return canvas


def data_uri(image: Pillow.Image) -> str:
    """A picture as the text of a PNG that stands in an HTML page."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
