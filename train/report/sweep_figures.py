"""Sweeps as pictures, after the paper's Figures 4 and 5: scores over timestep, scores by block (PNG bytes)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pathseg.train.report.figures import PALETTE, new_figure, plain, png
from pathseg.train.report.sweep_tables import NAMES
from pathseg.train.report.sweeps import Metric, Part, Sweep, seeds_label, value_label

CROWDED = 0.035  # of the axis: timesteps nearer than that cannot be labelled, so all are evenly spaced
SIDES: tuple[tuple[Part, int], ...] = (("val", -1), ("test", 1))
OVER_TIME: tuple[Metric, ...] = ("dice", "miou")
BY_BLOCK: tuple[Metric, ...] = ("accuracy", "dice")  # the paper's Figure 5 has the accuracy
# told apart by colour, mark and line
STYLES: dict[Part, tuple[str, str, str]] = {"val": (PALETTE[2], "o", "-"), "test": (PALETTE[5], "D", "--")}


def draw(sweep: Sweep, title: str) -> bytes | None:
    """The picture of a sweep over timesteps or blocks as a PNG file, None for learning rates: three rows say it all."""
    if sweep.axis == "lr":
        return None
    return over_timesteps(sweep, title) if sweep.axis == "t" else over_blocks(sweep, title)


def over_timesteps(sweep: Sweep, title: str) -> bytes:
    """Dice and mIoU, validation and test, over the timestep: mean, deviation and every head. PNG."""
    times = [point.value for point in sweep.points]
    span = times[-1] - times[0]
    to_scale = all(b - a >= CROWDED * span for a, b in pairwise(times))
    places = [float(t) for t in times] if to_scale else [float(i) for i in range(len(times))]
    figure = new_figure(9.0, 3.9)
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, OVER_TIME, strict=True):
        width = places[-1] - places[0]
        _series(axes, sweep, metric, places=places, apart=width / 150, joined=True)
        axes.set(xlabel="timestep t" + ("" if to_scale else " (evenly spaced, not to scale)"), ylabel=NAMES[metric])
        axes.set_xticks(places, [str(t) for t in times])
        axes.tick_params(axis="x", labelsize=8)
    _finish(figure, panels[0], sweep, f"Dice and mIoU over timestep, {title}")
    return png(figure)


def over_blocks(sweep: Sweep, title: str) -> bytes:
    """Accuracy (as in the paper) and Dice of each block alone, then of groups: mean, deviation and every head. PNG."""
    singles = sum(len(point.value) == 1 for point in sweep.points)
    gap = 0.6 if 0 < singles < len(sweep.points) else 0.0
    places = [i + (gap if i >= singles else 0.0) for i in range(len(sweep.points))]
    figure = new_figure(9.0, 5.4)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, metric in zip(panels, BY_BLOCK, strict=True):
        _series(axes, sweep, metric, places=places, apart=0.009 * len(places), joined=False)
        if gap:
            axes.axvline(singles - 0.5 + gap / 2, color="#c3c9cf", linewidth=1)
        axes.set(ylabel=NAMES[metric])
    panels[1].set_xticks(places, [value_label("blocks", point.value) for point in sweep.points])
    kinds = "block alone" if singles == len(sweep.points) else "group of blocks" if not singles else ""
    panels[1].set_xlabel(kinds or "block alone (0 = middle, 1–12 = upsampling in order)  |  groups of blocks")
    _finish(figure, panels[0], sweep, f"Accuracy and Dice by block, {title}")
    return png(figure)


def _series(axes: Any, sweep: Sweep, metric: Metric, *, places: Sequence[float], apart: float, joined: bool) -> None:
    """Draw validation and test side by side: every head, mean and deviation; the means of a course are joined."""
    split = sweep.runs[0].test_split
    for part, side in SIDES:
        colour, mark, line = STYLES[part]
        xs, means, deviations = [], [], []
        for place, point in zip(places, sweep.points, strict=True):
            spread = point.spread(part, metric)
            if spread is None:
                continue
            x = place + side * apart
            xs.append(x)
            means.append(spread.mean)
            deviations.append(float("nan") if spread.deviation is None else spread.deviation)
            heads = [score for score in point.scores(part, metric) if score is not None]
            if len(heads) > 1:
                beside = [place + 2 * side * apart] * len(heads)
                axes.plot(beside, heads, ".", color=colour, markersize=5, alpha=0.6, markeredgewidth=0, zorder=2)
        if xs:
            axes.errorbar(
                xs, means, yerr=deviations, fmt=mark, color=colour, linestyle=line if joined else "none",
                linewidth=1.6, elinewidth=1.3, capsize=3, markersize=6, zorder=3,
                label="validation" if part == "val" else f"test ({split})",
            )  # fmt: skip
    plain(axes)


def _finish(figure: Any, axes: Any, sweep: Sweep, title: str) -> None:
    several = any(len(point.runs) > 1 for point in sweep.points)
    shown = f"mean ± standard deviation, n = {seeds_label(sweep.points)}" if several else "one seed"
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False)
    warning = "" if sweep.trained else " · untrained model (random weights)"
    figure.suptitle(f"{title}\n{shown}{warning}", fontsize=10, x=0.01, ha="left", fontweight="bold")
