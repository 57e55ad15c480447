"""Learning curves and the comparison of runs as SVG files, which take a hundredth of the time of matplotlib's."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from pathseg.train.colours import PALETTE
from pathseg.train.report.figures import INK, QUIET, shortened
from pathseg.train.runs.record import Epoch

# coordinates are px from the upper left corner
WIDTH, HEIGHT = 900, 310  # of learning curves
SCALE_WIDTH, ROW = 420, 22  # of the comparison: from Dice 0 to 1, from run to run
LETTER = 7.4  # mean width of one, of 13 px
TICKS = 8  # at most, along an axis
GRID = "#e3e6ea"
DASHED, DOTTED = {"stroke-dasharray": "7 5"}, {"stroke-dasharray": "2 3"}
Style = dict[str, str]
Curve = tuple[str, str, Style, list[float | None]]  # label, colour, style, value of each epoch


@dataclass(frozen=True)
class DiceOfRun:
    """One line of the comparison: the mean Dice of a run and that of each class, None where there is no value."""

    name: str
    dice: float | None
    classes: tuple[float | None, ...]


def learning_curves(history: Sequence[Epoch], best_epoch: int, title: str) -> bytes:
    """Draw loss (training, validation), validation Dice and mIoU over the epochs; the best epoch is marked."""
    svg = _picture(WIDTH, HEIGHT, title)
    epochs = [float(line.epoch) for line in history]
    dice = [line.val_dice for line in history]
    losses: tuple[Curve, ...] = (
        ("training", PALETTE[2], {}, [line.train_loss for line in history]),
        ("validation", PALETTE[5], {}, [line.val_loss for line in history]),
    )
    scores: tuple[Curve, ...] = (
        ("Dice", PALETTE[0], {}, dice), ("mIoU", PALETTE[6], DASHED, [line.val_miou for line in history]),
    )  # fmt: skip
    loss_range = _around([loss for _, _, _, values in losses for loss in values])
    left = _Plot(svg, 72, 56, 438, 262, _around(epochs), loss_range)
    right = _Plot(svg, 526, 56, 892, 262, left.x_range, (0.0, 1.0))
    best = next((value for epoch, value in zip(epochs, dice, strict=True) if epoch == best_epoch), None)
    for plot, name, curves in ((left, "loss (cross-entropy)", losses), (right, "validation score", scores)):
        plot.x_axis("epoch", whole=True)
        plot.y_axis(name)
        plot.vertical(best_epoch, {"stroke": QUIET, **DOTTED})
        for _, colour, style, values in curves:
            plot.curve(epochs, values, colour, style)
        entries = [_Entry(label, colour, style) for label, colour, style, _ in curves]
        if best is not None and plot is right:
            plot.dot(best_epoch, best, PALETTE[0])
            entries.append(_Entry(f"best: epoch {best_epoch}, {best:.3f}", PALETTE[0], mark="dot"))
        _legend(svg, entries, plot.left, plot.top - 16, plot.right)
    return ElementTree.tostring(svg)


def comparison(
    runs: Sequence[DiceOfRun], classes: Sequence[tuple[str, str]], *, constant: float | None,
    paper: tuple[str, float] | None, title: str,
) -> bytes:  # fmt: skip
    """Draw the Dice of each run (dark) and of its classes (coloured), of the constant prediction and of the paper.

    classes: name and colour of each class, in the order of the runs' values. paper: a name and its Dice.
    """
    names = [shortened(run.name, 80).replace("\n", " ") for run in runs]
    left = max(200.0, 24 + max(map(_width, names)))
    right, bottom = left + SCALE_WIDTH, 40.0 + ROW * len(runs)
    entries = [_Entry(name, colour, mark="dot") for name, colour in classes] + [
        _Entry("mean Dice", INK, mark="diamond")
    ]
    if constant is not None:
        entries.append(_Entry(f"constant prediction, {constant:.3f}", QUIET, DOTTED))
    if paper is not None:
        entries.append(_Entry(f"{paper[0]}, {paper[1]:.3f}", PALETTE[5], DASHED))
    svg = _picture(right + 60, bottom + 60, title)
    plot = _Plot(svg, left, 40, right, bottom, (-0.01, 1.01), (len(runs) - 0.5, -0.5))
    plot.x_axis("Dice")
    if constant is not None:
        plot.vertical(constant, {"stroke": QUIET, "stroke-width": "1.5", **DOTTED})
    if paper is not None:
        plot.vertical(paper[1], {"stroke": PALETTE[5], "stroke-width": "1.5", **DASHED})
    for row, (run, name) in enumerate(zip(runs, names, strict=True)):
        _text(svg, left - 8, plot.y(row) + 4.5, name, {"text-anchor": "end"})
        for value, (_, colour) in zip(run.classes, classes, strict=True):
            if value is not None:
                plot.dot(value, row, colour, radius=4.5)
        if run.dice is not None:
            _diamond(svg, plot.x(run.dice), plot.y(row))
            _text(svg, right + 8, plot.y(row) + 4.5, f"{run.dice:.3f}", {"font-weight": "bold"})
    end = _legend(svg, entries, 12, bottom + 62, right + 60)
    svg.set("height", f"{end + 16:g}")
    svg.set("viewBox", f"0 0 {right + 60:g} {end + 16:g}")
    return ElementTree.tostring(svg)


@dataclass(frozen=True)
class _Plot:
    """An area of the picture, from (left, top) to (right, bottom), with the values at its sides."""

    svg: Element
    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def x_axis(self, name: str, *, whole: bool = False) -> None:
        """Draw both axes, the ticks along x with their grid, and the name. whole: ticks at whole numbers alone."""
        for value, label in _ticks(*self.x_range, whole=whole):
            self.vertical(value, {"stroke": GRID})
            _text(self.svg, self.x(value), self.bottom + 18, label, {"text-anchor": "middle"})
        _line(self.svg, (self.left, self.top), (self.left, self.bottom), {"stroke": INK})
        _line(self.svg, (self.left, self.bottom), (self.right, self.bottom), {"stroke": INK})
        _text(self.svg, (self.left + self.right) / 2, self.bottom + 38, name, {"text-anchor": "middle"})

    def y_axis(self, name: str) -> None:
        """Draw the ticks along y with their grid, and the name."""
        for value, label in _ticks(*self.y_range):
            _line(self.svg, (self.left, self.y(value)), (self.right, self.y(value)), {"stroke": GRID})
            _text(self.svg, self.left - 7, self.y(value) + 4.5, label, {"text-anchor": "end"})
        x, y = self.left - 56, (self.top + self.bottom) / 2
        _text(self.svg, x, y, name, {"text-anchor": "middle", "transform": f"rotate(-90 {x:g} {y:g})"})

    def vertical(self, value: float, style: Style) -> None:
        """Draw a line from the bottom to the top."""
        _line(self.svg, (self.x(value), self.top), (self.x(value), self.bottom), style)

    def dot(self, x: float, y: float, colour: str, *, radius: float = 5) -> None:
        """Draw a dot at these values."""
        _dot(self.svg, self.x(x), self.y(y), colour, radius=radius)

    def curve(self, xs: Sequence[float], ys: Sequence[float | None], colour: str, style: Style) -> None:
        """Draw a line through values, with a gap where one is None or infinite and a dot where it stands alone."""
        line = {"fill": "none", **_stroke(colour), "stroke-linejoin": "round", **style}
        finite = [None if y is None or not math.isfinite(y) else y for y in ys]
        for known, part in groupby(zip(xs, finite, strict=True), key=lambda point: point[1] is not None):
            points = [(self.x(x), self.y(y)) for x, y in part if y is not None]
            if len(points) > 1:
                SubElement(self.svg, "polyline", {"points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points), **line})
            elif known:
                _dot(self.svg, *points[0], colour, radius=3)


@dataclass(frozen=True)
class _Entry:
    """A line of a legend: a label beside a line, a dot or a diamond."""

    label: str
    colour: str
    style: Style | None = None
    mark: str = "line"


def _legend(svg: Element, entries: Sequence[_Entry], left: float, y: float, right: float) -> float:
    """Write a legend from left to right, in as many lines as it needs; return the y of the last."""
    x = left
    for entry in entries:
        label = shortened(entry.label, 60).replace("\n", " ")
        symbol = 26 if entry.mark == "line" else 12
        width = symbol + 6 + _width(label)
        if x > left and x + width > right:
            x, y = left, y + 22
        if entry.mark == "line":
            _line(svg, (x, y), (x + symbol, y), {**_stroke(entry.colour), **(entry.style or {})})
        elif entry.mark == "dot":
            _dot(svg, x + 6, y, entry.colour)
        else:
            _diamond(svg, x + 6, y)
        _text(svg, x + symbol + 6, y + 4.5, label, {})
        x += width + 18
    return y


def _width(text: str) -> float:
    """About how wide a text is; letters of East Asian scripts are as wide as they are high."""
    return sum(13 if unicodedata.east_asian_width(letter) in "WF" else LETTER for letter in text)


def _around(values: Sequence[float | None]) -> tuple[float, float]:
    """The range of the values with a margin of a twentieth; 0 to 1 without any."""
    known = [value for value in values if value is not None and math.isfinite(value)]
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
    values = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    labels, short = [f"{value:.{digits}f}" for value in values], [f"{value:.3g}" for value in values]
    fits = max(map(len, labels), default=0) <= 6 or len(set(short)) < len(short)
    return list(zip(values, labels if fits else short, strict=True))


def _picture(width: float, height: float, title: str) -> Element:
    """A white picture with a title."""
    svg = Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}",
        "height": f"{height:g}", "font-family": "system-ui, sans-serif", "font-size": "13", "fill": INK,
    })  # fmt: skip
    SubElement(svg, "rect", width="100%", height="100%", fill="white")
    _text(svg, 12, 20, shortened(title, 300), {"font-weight": "bold", "font-size": "14"})
    return svg


def _stroke(colour: str) -> Style:
    return {"stroke": colour, "stroke-width": "2.2", "stroke-linecap": "round"}


def _line(svg: Element, start: tuple[float, float], end: tuple[float, float], style: Style) -> None:
    (x1, y1), (x2, y2) = start, end
    SubElement(svg, "line", {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}", **style})


def _dot(svg: Element, x: float, y: float, colour: str, *, radius: float = 5) -> None:
    SubElement(svg, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{radius:g}", "fill": colour})


def _diamond(svg: Element, x: float, y: float) -> None:
    SubElement(svg, "path", {"d": f"M{x - 6:.1f} {y:.1f}l6 -6l6 6l-6 6z", "fill": INK})


def _text(svg: Element, x: float, y: float, text: str, style: Style) -> None:
    SubElement(svg, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **style}).text = text
