"""The learning curves of a run as an SVG file, written without matplotlib, which takes 0.3 s for each of many runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from pathseg.store.runtime.printable import printable
from pathseg.train.colours import PALETTE
from pathseg.train.report.figures import INK, QUIET
from pathseg.train.runs.record import Epoch

WIDTH, HEIGHT = 900, 310  # px, as all coordinates here; from the upper left corner
TOP, BOTTOM = 56, 262  # of the plots
LETTER = 7.2  # mean width of one, of 13 px
TICKS = 8  # at most, along an axis
GRID = "#e3e6ea"


def learning_curves(history: Sequence[Epoch], best_epoch: int, title: str) -> bytes:
    """Draw loss (training, validation), validation Dice and mIoU over the epochs; the best epoch is marked."""
    svg = Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": str(WIDTH),
        "height": str(HEIGHT), "font-family": "system-ui, sans-serif", "font-size": "13", "fill": INK,
    })  # fmt: skip
    SubElement(svg, "rect", width="100%", height="100%", fill="white")
    _text(svg, 12, 20, title, {"font-weight": "bold", "font-size": "14"})
    epochs = [float(line.epoch) for line in history]
    losses = {
        "training": [line.train_loss for line in history], "validation": [line.val_loss for line in history],
    }  # fmt: skip
    left = _Plot(svg, 72, 438, _around(epochs), _around([loss for values in losses.values() for loss in values]))
    right = _Plot(svg, 526, 892, left.x_range, (0.0, 1.0))
    for plot, name in ((left, "loss (cross-entropy)"), (right, "validation score")):
        plot.axes(name)
        x = plot.x(best_epoch)
        _line(svg, (x, TOP), (x, BOTTOM), {"stroke": QUIET, "stroke-width": "1.2", "stroke-dasharray": "2 3"})
    for (label, values), colour in zip(losses.items(), (PALETTE[2], PALETTE[5]), strict=True):
        left.curve(epochs, values, label, colour)
    dice = [line.val_dice for line in history]
    right.curve(epochs, dice, "Dice", PALETTE[0])
    right.curve(epochs, [line.val_miou for line in history], "mIoU", PALETTE[6], dashed=True)
    best = next((value for epoch, value in zip(epochs, dice, strict=True) if epoch == best_epoch), None)
    if best is not None:
        right.mark(best_epoch, best, f"best: epoch {best_epoch}, {best:.3f}", PALETTE[0])
    return ElementTree.tostring(svg)


@dataclass
class _Plot:
    """One plot of the picture, between x of `left` and `right`, with its ranges and the end of its legend so far."""

    svg: Element
    left: float
    right: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    legend_end: float = 0.0

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    def axes(self, name: str) -> None:
        """Draw grid, ticks, both axes and their names."""
        grid = {"stroke": GRID}
        for value, label in _ticks(*self.x_range, whole=True):
            _line(self.svg, (self.x(value), TOP), (self.x(value), BOTTOM), grid)
            _text(self.svg, self.x(value), BOTTOM + 18, label, {"text-anchor": "middle"})
        for value, label in _ticks(*self.y_range):
            _line(self.svg, (self.left, self.y(value)), (self.right, self.y(value)), grid)
            _text(self.svg, self.left - 7, self.y(value) + 4.5, label, {"text-anchor": "end"})
        _line(self.svg, (self.left, TOP), (self.left, BOTTOM), {"stroke": INK})
        _line(self.svg, (self.left, BOTTOM), (self.right, BOTTOM), {"stroke": INK})
        _text(self.svg, (self.left + self.right) / 2, BOTTOM + 38, "epoch", {"text-anchor": "middle"})
        x, y = self.left - 56, (TOP + BOTTOM) / 2
        _text(self.svg, x, y, name, {"text-anchor": "middle", "transform": f"rotate(-90 {x:g} {y:g})"})

    def curve(
        self,
        epochs: Sequence[float],
        values: Sequence[float | None],
        label: str,
        colour: str,
        *,
        dashed: bool = False,
    ) -> None:
        """Draw values over the epochs, with a gap where one is None and a dot where it stands alone."""
        ends = {"stroke-linecap": "round", "stroke-linejoin": "round"}
        line = {"fill": "none", "stroke": colour, "stroke-width": "2.2", **ends}
        line |= {"stroke-dasharray": "7 5"} if dashed else {}
        points = zip(epochs, values, strict=True)
        for known, part in groupby(points, key=lambda point: point[1] is not None):
            joined = [(self.x(epoch), self.y(value)) for epoch, value in part if value is not None]
            if len(joined) > 1:
                SubElement(self.svg, "polyline", {"points": " ".join(f"{x:.1f},{y:.1f}" for x, y in joined), **line})
            elif known:
                _dot(self.svg, *joined[0], colour, radius=3)
        start = self._legend(label, 26)
        _line(self.svg, (start, TOP - 16), (start + 26, TOP - 16), line)

    def mark(self, epoch: float, value: float, label: str, colour: str) -> None:
        """Draw a dot."""
        start = self._legend(label, 12)
        _dot(self.svg, self.x(epoch), self.y(value), colour)
        _dot(self.svg, start + 6, TOP - 16, colour)

    def _legend(self, label: str, symbol: float) -> float:
        """Write a label over the plot, right of the last one; return where its symbol of so many px starts."""
        start = max(self.left, self.legend_end)
        _text(self.svg, start + symbol + 6, TOP - 11.5, label, {})
        self.legend_end = start + symbol + 6 + LETTER * len(label) + 18
        return start


def _around(values: Sequence[float | None]) -> tuple[float, float]:
    """The range of the values with a margin of a twentieth; 0 to 1 without any."""
    known = [value for value in values if value is not None]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    margin = (high - low) / 20 or max(abs(high) / 20, 1e-9)
    return low - margin, high + margin


def _ticks(low: float, high: float, *, whole: bool = False) -> list[tuple[float, str]]:
    """Round values in a range, with their labels. whole: whole numbers alone."""
    power = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= (high - low) / TICKS)
    step = max(step, 1.0) if whole else step
    digits = max(0, -math.floor(math.log10(step * 1.001)))
    return [(n * step, f"{n * step:.{digits}f}") for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _dot(svg: Element, x: float, y: float, colour: str, *, radius: float = 5) -> None:
    SubElement(svg, "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{radius:g}", fill=colour)


def _line(svg: Element, start: tuple[float, float], end: tuple[float, float], style: dict[str, str]) -> None:
    (x1, y1), (x2, y2) = start, end
    SubElement(svg, "line", {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}", **style})


def _text(svg: Element, x: float, y: float, text: str, style: dict[str, str]) -> None:
    SubElement(svg, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **style}).text = printable(text)
