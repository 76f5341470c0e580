"""Numbers as drawings inside an HTML page: lines over epochs, how often a value occurs, gains of single images.

Inline SVG of bounded size: it scales with the page, a browser needs nothing to show it, and its text can be read.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from cyto_dl.evaluation.bootstrap import Interval

INK, SOFT, GRID, ACCENT, LOSS = "#1c2430", "#5d6b7e", "#e3e8ef", "#0b6e75", "#c2410c"
_WIDTH, _HEIGHT = 340, 210  # a phone's width: text of 11 units is readable there
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 22, 38
_MOST_POINTS = 250  # of a line or of bars: more than a chart has pixels for
_MOST_BINS = 20


@dataclass(frozen=True)
class Line:
    """One line of a chart; a value that is not finite is a gap that the line passes over."""

    name: str
    x: np.ndarray
    y: np.ndarray


def lines(drawn: Sequence[Line], *, title: str, x_label: str, marker: float | None = None) -> Markup:
    """Lines in one chart, the last one in the accent colour, the others dashed.

    Args:
        drawn: At least one, each with a finite value.
        title: What is shown, for those who cannot see it.
        x_label: Of the horizontal axis.
        marker: Where a vertical line stands, e.g. the epoch whose weights were chosen.
    """
    finite = [_finite(line) for line in drawn]
    axes = _Axes(_range([x for xs, _ in finite for x in xs]), _range([y for _, ys in finite for y in ys]))
    parts = [axes.grid(x_label, whole=True)]
    if marker is not None:
        parts.append(_vertical(axes, marker, dashes="2 3", colour=INK))
    for number, (line, (xs, ys)) in enumerate(zip(drawn, finite, strict=True)):
        is_last = number == len(drawn) - 1
        colour, dashes = (ACCENT, "none") if is_last else (SOFT, "5 3")
        points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        if len(xs) == 1:  # a line of one point is invisible
            parts.append(Markup('<circle cx="{}" cy="{}" r="3.5" fill="{}"/>').format(*points.split(","), colour))
        else:
            drawing = '<polyline points="{}" fill="none" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>'
            parts.append(Markup(drawing).format(points, colour, dashes))
        parts.append(_legend(number, line.name, colour, dashes))
    return _svg(title, parts)


def histogram(values: np.ndarray, *, title: str, x_label: str, mean: float, interval: Interval | None) -> Markup:
    """How many images have which value, with their mean and the interval of the mean.

    Args:
        values: Finite ones, shape (N,), N > 0.
        title: As for `lines`.
        x_label: The value's name.
        mean: Vertical line.
        interval: Bracket above the bars.
    """
    low, high = _range(values)
    counts, edges = np.histogram(values, bins=min(_MOST_BINS, max(5, 2 * math.isqrt(len(values)))), range=(low, high))
    axes = _Axes((low, high), (0, float(counts.max())), is_padded=False)
    parts = [axes.grid(x_label, y_label="images")]
    for count, start, end in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            plural = "s" if count > 1 else ""
            parts.append(_bar(axes, start, end, count, ACCENT, f"{count} image{plural}: {start:.4g} to {end:.4g}"))
    parts.append(_vertical(axes, mean, dashes="none", colour=INK))
    if interval is not None:
        left, right = axes.x(interval[0]), axes.x(interval[1])
        bracket = '<path d="M{0:.1f} {2}v-6H{1:.1f}v6" fill="none" stroke="{3}" stroke-width="1.5"/>'
        parts.append(Markup(bracket).format(left, right, _TOP - 4, INK))
    return _svg(title, parts)


def gains(values: np.ndarray, *, title: str, x_label: str, minimal: float) -> Markup:
    """The gain of every image from the greatest to the greatest loss, as a bar each.

    Args:
        values: Finite gains, shape (N,), N > 0; of more images than a chart has room for, evenly chosen ranks.
        title: As for `lines`.
        x_label: What is counted below.
        minimal: Dashed line: the gain that is asked for.
    """
    ordered = np.sort(values)[::-1]
    shown = ordered[_evenly(len(ordered))]
    low, high = _range([0.0, minimal, *values.tolist()])
    axes = _Axes((0, len(shown)), (low, high), x_ticks=())
    parts = [axes.grid(x_label, y_label="gain")]
    for number, value in enumerate(shown.tolist()):
        gap = 0.12 if len(shown) < _MOST_POINTS // 3 else 0.0
        edges = number + gap, number + 1 - gap
        parts.append(_bar(axes, *edges, value, ACCENT if value >= 0 else LOSS, f"gain {value:+.4g}"))
    horizontal = '<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" stroke="{}" stroke-dasharray="{}"/>'
    for height, dashes in ((0.0, "none"), *([(minimal, "4 3")] if minimal else [])):
        y = axes.y(height)
        parts.append(Markup(horizontal).format(_LEFT, _WIDTH - _RIGHT, y, y, INK, dashes))
    return _svg(title, parts)


class _Axes:
    """Places values in the drawing, and draws the grid with its numbers."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        is_padded: bool = True,
        x_ticks: Sequence[float] | None = None,
    ) -> None:
        pad = 0.04 * (y[1] - y[0]) if is_padded else 0.0
        self._x, self._y = x, (y[0] - pad, y[1] + pad)
        self._x_ticks = _ticks(*x) if x_ticks is None else x_ticks

    def x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self, x_label: str, *, y_label: str = "", whole: bool = False) -> Markup:
        parts = []
        for value in _ticks(*self._y):
            if y_label == "images" and value != round(value):
                continue
            rule = '<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" stroke="{}"/>'
            parts.append(Markup(rule).format(_LEFT, _WIDTH - _RIGHT, self.y(value), self.y(value), GRID))
            parts.append(_text(f"{value:.6g}", _LEFT - 6, self.y(value) + 4, anchor="end"))
        for value in self._x_ticks:
            if not whole or value == round(value):
                parts.append(_text(f"{value:.6g}", self.x(value), _HEIGHT - _BOTTOM + 15, anchor="middle"))
        parts.append(_text(x_label, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, anchor="middle"))
        parts.append(_text(y_label, _LEFT - 6, _TOP - 8, anchor="end"))
        return Markup("").join(parts)


def _svg(title: str, parts: Iterable[Markup]) -> Markup:
    opening = '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">'
    return Markup(opening).format(_WIDTH, _HEIGHT, title) + Markup("").join(parts) + Markup("</svg>")


def _text(text: str, x: float, y: float, *, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))


def _legend(number: int, name: str, colour: str, dashes: str) -> Markup:
    x = _LEFT + 100 * number
    stroke = '<line x1="{}" x2="{}" y1="10" y2="10" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>'
    return Markup(stroke).format(x, x + 22, colour, dashes) + _text(name, x + 28, 14)


def _bar(axes: _Axes, start: float, end: float, value: float, colour: str, hint: str) -> Markup:
    top, bottom = sorted((axes.y(value), axes.y(0)))
    left, width = axes.x(start) + 0.5, max(axes.x(end) - axes.x(start) - 1, 0.7)
    drawing = '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"><title>{}</title></rect>'
    return Markup(drawing).format(left, top, width, max(bottom - top, 0.7), colour, hint)


def _vertical(axes: _Axes, x: float, *, dashes: str, colour: str) -> Markup:
    line = '<line x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}" stroke="{3}" stroke-width="1.5" stroke-dasharray="{4}"/>'
    return Markup(line).format(axes.x(x), _TOP, _HEIGHT - _BOTTOM, colour, dashes)


def _finite(line: Line) -> tuple[list[float], list[float]]:
    """The points that have a value, so many as a chart has room for; the last always."""
    points = [(x, y) for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True) if math.isfinite(y)]
    xs, ys = zip(*[points[index] for index in _evenly(len(points))], strict=True)
    return list(xs), list(ys)


def _evenly(num: int) -> np.ndarray:
    return np.unique(np.linspace(0, num - 1, min(num, _MOST_POINTS)).round().astype(int))


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Least and greatest value; around a single one, some room."""
    found = list(values)
    low, high = float(min(found)), float(max(found))
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-300):
        return low, high
    room = 0.05 * abs(low) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers between two."""
    raw = (high - low) / 5
    step = 10.0 ** math.floor(math.log10(raw))
    step = next(step * factor for factor in (1, 2, 5, 10) if step * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, math.floor(high / step + 1e-9) + 1)]
