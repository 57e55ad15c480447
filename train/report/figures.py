"""Figures of a report; those of sweeps and of learned weights as PNG files (matplotlib)."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from markupsafe import Markup
from PIL import Image

from pathseg.store.runtime.printable import printable
from pathseg.train.colours import PALETTE
from pathseg.train.report.sweeps import METRICS, Images, Metric, Sweep, seeds_label, value_label
from pathseg.train.report.table_formats import Spread

P = ParamSpec("P")
INK, QUIET = "#1d2733", "#5c6773"
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}  # of files by their suffix
CROWDED = 0.035  # of the axis: timesteps nearer than that cannot be labelled, so all are evenly spaced
OVER_TIMESTEPS: tuple[Metric, ...] = ("dice", "miou")
BY_BLOCK: tuple[Metric, ...] = ("accuracy", "dice")  # the paper's Figure 5 has the accuracy
# colour, marker, line and side of validation and test scores
STYLES: dict[Images, tuple[str, str, str, int]] = {
    "val": (PALETTE[2], "o", "-", -1),
    "test": (PALETTE[5], "D", "--", 1),
}


@dataclass(frozen=True)
class Figure:
    """A PNG, JPEG or SVG file of the report, its alternative text and its caption in the page."""

    file: str
    content: bytes
    alt: str
    caption: str = ""

    @property
    def uri(self) -> Markup:
        """The file as a data URI."""
        return data_uri(self.content, KINDS[Path(self.file).suffix])


def data_uri(content: bytes, kind: str) -> Markup:
    """Return an image file of a kind, as `image/png`, as a data URI, which has no letter that a page must escape."""
    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _plain_text(draw: Callable[P, bytes]) -> Callable[P, bytes]:
    """Draw every text as it is: a `$` in a name is a dollar sign, not the start of a formula."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        import matplotlib

        with matplotlib.rc_context({"text.parse_math": False}):
            return draw(*args, **kwargs)

    return drawn


def sweep_figure(sweep: Sweep, title: str) -> bytes | None:
    """Draw a sweep over timesteps or blocks; None for other settings.

    Of learning rates the table has a few rows only; `training_images_figure` draws numbers of training images.
    """
    if sweep.axis not in ("t", "blocks"):
        return None
    return _over_timesteps(sweep, title) if sweep.axis == "t" else _by_block(sweep, title)


@_plain_text
def _over_timesteps(sweep: Sweep, title: str) -> bytes:
    """Dice and mIoU over the timestep, after the paper's Figure 4: mean, deviation and every head."""
    timesteps = [point.value for point in sweep.points]
    numbers = all(isinstance(t, int) for t in timesteps)  # else several of joined stores
    span = timesteps[-1] - timesteps[0] if numbers else 0
    to_scale = numbers and all(b - a >= CROWDED * span for a, b in pairwise(timesteps))
    xs = [float(t) for t in timesteps] if to_scale else [float(i) for i in range(len(timesteps))]
    figure = _new_figure(9.0, 3.9)
    plots = figure.subplots(1, 2)
    for axes, metric in zip(plots, OVER_TIMESTEPS, strict=True):
        _plot_scores(axes, sweep, metric, xs=xs, offset=(xs[-1] - xs[0]) / 150, joined=True)
        axes.set(xlabel="timestep t" + ("" if to_scale else " (evenly spaced, not to scale)"), ylabel=METRICS[metric])
        axes.set_xticks(xs, [value_label(sweep, t) for t in timesteps])
        axes.tick_params(axis="x", labelsize=8)
    _sweep_title(figure, plots[0], sweep, f"Dice and mIoU over timestep, {title}")
    return _png(figure)


@_plain_text
def _by_block(sweep: Sweep, title: str) -> bytes:
    """Accuracy and Dice of each block alone, then of groups, after the paper's Figure 5."""
    singles = sum(len(point.value) == 1 for point in sweep.points)  # joined stores have at least two blocks
    gap = 0.6 if 0 < singles < len(sweep.points) else 0.0
    xs = [i + (gap if i >= singles else 0.0) for i in range(len(sweep.points))]
    figure = _new_figure(9.0, 5.4)
    plots = figure.subplots(2, 1, sharex=True)
    for axes, metric in zip(plots, BY_BLOCK, strict=True):
        _plot_scores(axes, sweep, metric, xs=xs, offset=0.009 * len(xs), joined=False)
        if gap:
            axes.axvline(singles - 0.5 + gap / 2, color="#c3c9cf", linewidth=1)
        axes.set(ylabel=METRICS[metric])
    plots[1].set_xticks(xs, [value_label(sweep, point.value) for point in sweep.points])
    kinds = "block alone" if singles == len(sweep.points) else "group of blocks" if not singles else ""
    key = sweep.runs[0].data.key
    numbering = "0 = first layer" if key.vit is not None else "0 = middle, 1–12 = upsampling in order"
    if key.diffusers is not None:  # has any number of blocks
        numbering = "0 = middle, then upsampling in order"
    plots[1].set_xlabel(kinds or f"block alone ({numbering})  |  groups of blocks")
    _sweep_title(figure, plots[0], sweep, f"Accuracy and Dice by block, {title}")
    return _png(figure)


@_plain_text
def mixing_figure(weights: Sequence[tuple[str, Spread]], title: str) -> bytes:
    """Draw the weight of each layer of a scalar mix as a bar, mean ± deviation over seeds; equal weights as a line."""
    figure = _new_figure(9.0, 3.6)
    axes = figure.subplots()
    deviations = [0.0 if spread.deviation is None else spread.deviation for _, spread in weights]
    positions = range(len(weights))
    axes.bar(positions, [spread.mean for _, spread in weights], yerr=deviations, color=PALETTE[2], capsize=3)
    axes.axhline(1 / len(weights), color=QUIET, linestyle=":", label="equal weights")
    labels = [shortened(label, 40) for label, _ in weights]
    turned = {"rotation": 30, "ha": "right"} if max(map(len, labels)) > 4 else {}
    axes.set_xticks(positions, labels, **turned)
    axes.set(xlabel="layer", ylabel="learned weight")
    _light_grid(axes)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower left", frameon=False)
    _title(figure, f"Learned weights of the layers, {title}")
    return _png(figure)


@_plain_text
def training_images_figure(sweeps: Sequence[Sweep], labels: Sequence[str], title: str) -> bytes:
    """Draw test Dice over the number of training images, log scale: mean and deviation, a line for each sweep."""
    figure = _new_figure(9.0, 4.0)
    axes = figure.subplots()
    for number, (sweep, label) in enumerate(zip(sweeps, labels, strict=True)):
        spreads = [(point.value, spread) for point in sweep.points if (spread := point.spread("test", "dice"))]
        deviations = [float("nan") if one.deviation is None else one.deviation for _, one in spreads]
        axes.errorbar(
            [count for count, _ in spreads], [one.mean for _, one in spreads], yerr=deviations,
            color=PALETTE[number % len(PALETTE)], marker="oDsv^P"[number % 6], markersize=6, linewidth=1.6,
            elinewidth=1.3, capsize=3, label=shortened(label, 110),
        )  # fmt: skip
    counts = sorted({point.value for sweep in sweeps for point in sweep.points})
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="training images", ylabel=f"Dice on {sweeps[0].runs[0].metrics.test_split}")
    _light_grid(axes)
    figure.legend(loc="outside lower left", ncols=1, frameon=False)
    _title(figure, f"Dice over number of training images, {title}")
    return _png(figure)


def _plot_scores(axes: Any, sweep: Sweep, metric: Metric, *, xs: Sequence[float], offset: float, joined: bool) -> None:
    """Plot validation and test scores side by side: every head, mean and deviation; a line joins means over time."""
    for images, (colour, mark, line, side) in STYLES.items():
        shown, means, deviations = [], [], []
        for x, point in zip(xs, sweep.points, strict=True):
            spread = point.spread(images, metric)
            if spread is None:
                continue
            shown.append(x + side * offset)
            means.append(spread.mean)
            deviations.append(float("nan") if spread.deviation is None else spread.deviation)
            heads = [score for score in point.scores(images, metric) if score is not None]
            if len(heads) > 1:
                beside = [x + 2 * side * offset] * len(heads)
                axes.plot(beside, heads, ".", color=colour, markersize=5, alpha=0.6, markeredgewidth=0, zorder=2)
        if shown:
            axes.errorbar(
                shown, means, yerr=deviations, fmt=mark, color=colour, linestyle=line if joined else "none",
                linewidth=1.6, elinewidth=1.3, capsize=3, markersize=6, zorder=3,
                label="validation" if images == "val" else f"test ({sweep.runs[0].metrics.test_split})",
            )  # fmt: skip
    _light_grid(axes)


def _sweep_title(figure: Any, axes: Any, sweep: Sweep, title: str) -> None:
    several = any(len(point.runs) > 1 for point in sweep.points)
    shown = f"mean ± standard deviation, n = {seeds_label(sweep.points)}" if several else "one seed"
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False)
    warning = " · untrained model (random weights)" if sweep.untrained else ""
    _title(figure, f"{title}\n{shown}{warning}")


def _new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches; without pyplot, so nothing global changes."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def shortened(name: str, letters: int) -> str:
    """Return a name with so many letters at most, printable."""
    name = printable(name)
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _title(figure: Any, text: str) -> None:
    figure.suptitle(shortened(text, 300), fontsize=10, x=0.01, ha="left", fontweight="bold")


def _light_grid(axes: Any) -> None:
    """A light grid, no frame at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)


def _png(figure: Any) -> bytes:
    """Render and encode a figure, the same bytes each time, in 96 colours."""
    buffer = io.BytesIO()
    _in_few_colours(_rendered(figure), 96).save(buffer, "PNG", dpi=(figure.dpi, figure.dpi))
    return buffer.getvalue()


def _rendered(figure: Any) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in any script; missing letters become boxes
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _in_few_colours(picture: Image.Image, colours: int) -> Image.Image:
    """Give an RGB picture so many colours, each the most frequent of those that it stands for.

    Flat areas, as the white ground and the colours of classes, so keep theirs, which the means of Pillow would change.
    """
    few = picture.quantize(colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    pixels = np.asarray(picture.convert("RGBX")).view(np.uint32).ravel()
    starts = np.flatnonzero(np.diff(pixels, prepend=~pixels[0]))  # of runs of one colour, which are far fewer
    lengths = np.diff(starts, append=pixels.size)
    _, first, of_run = np.unique(pixels[starts], return_index=True, return_inverse=True)
    order = np.argsort(np.bincount(of_run, weights=lengths), kind="stable")  # the most frequent last
    found = starts[first][order]  # a pixel of each colour
    palette = np.array(few.getpalette(), np.uint8).reshape(-1, 3)
    palette[np.asarray(few).ravel()[found]] = np.asarray(picture).reshape(-1, 3)[found]
    few.putpalette(palette.tobytes())
    return few
