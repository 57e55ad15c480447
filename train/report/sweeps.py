"""Runs that differ in one setting put together: sweeps over timestep, blocks and learning rate, means over seeds."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pathseg.store.blocks import BLOCKS, format_blocks
from pathseg.train.config import HeadConfig
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import natural_order

Axis = Literal["t", "blocks", "lr"]
Part = Literal["val", "test"]
Metric = Literal["accuracy", "dice", "miou", "f1"]
AXES: dict[Axis, str] = {"t": "timestep", "blocks": "blocks", "lr": "learning rate"}
DEFAULTS = dataclasses.asdict(HeadConfig())
SAID = ("t", "blocks", "head", "lr", "epochs")  # settings that a description always names; others if not the default
OF_SCORES = ("connectivity", "min_object_px")  # settings that count objects: no weight and no pixel depends on them
ELSEWHERE = ("key", "store", "channels")  # of a run's data: where it lies and what follows from the blocks


@dataclass(frozen=True)
class Spread:
    """The mean of a score over `count` heads and its sample standard deviation (ddof 1), None for one head."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of the values that are there; None where none is."""
        there = [value for value in values if value is not None]
        if not there:
            return None
        deviation = statistics.stdev(there) if len(there) > 1 else None
        return cls(statistics.fmean(there), deviation, len(there))


@dataclass(frozen=True)
class Repeat:
    """Runs that differ in nothing but their seed, in its order; `value` is that of the sweep's axis, if in one."""

    runs: tuple[FinishedRun, ...]
    value: Any = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each run."""
        return tuple(_settings(run)["seed"] for run in self.runs)

    def scores(self, part: Part, metric: Metric) -> tuple[float | None, ...]:
        """One score a run: `val` at the epoch that was kept (history.jsonl), `test` on the split that is quoted."""
        if part == "test":
            return tuple(getattr(run.quoted.scores, metric) for run in self.runs)
        return tuple(_validation(run, metric) for run in self.runs)

    def spread(self, part: Part, metric: Metric) -> Spread | None:
        """Mean and deviation of `scores`, None where no run has one."""
        return Spread.of(self.scores(part, metric))


@dataclass(frozen=True)
class Sweep:
    """All runs on the same features, images and settings that differ in `axis` alone (and in seed): two values or more.

    Points are in the order of their values: timesteps upwards, single blocks before groups, the highest rate first.
    `fixed` says in words what they share.
    """

    axis: Axis
    points: tuple[Repeat, ...]
    fixed: str

    @property
    def runs(self) -> tuple[FinishedRun, ...]:
        """The runs of all points."""
        return tuple(run for point in self.points for run in point.runs)

    @property
    def best(self) -> Repeat | None:
        """The point with the highest mean validation Dice, the first of equals; None without validation scores."""
        scored = [(spread.mean, point) for point in self.points if (spread := point.spread("val", "dice"))]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None

    @property
    def trained(self) -> bool:
        """Whether the features come from a trained model."""
        return bool(self.runs[0].data["model"]["trained"])


def sweeps(runs: Sequence[FinishedRun]) -> tuple[Sweep, ...]:
    """Every sweep in runs of one data set: over t, over blocks, over lr, the one with the most values first."""
    several = _several_data(runs)
    found = []
    for axis in AXES:
        made = []
        for alike in _alike(_first_of_twins(runs), free=(axis, "seed")):
            points = _points(alike, axis)
            if len(points) > 1:
                made.append(Sweep(axis, points, ", ".join(described(alike[0], leave_out=(axis,), place=several))))
        found += sorted(made, key=lambda sweep: (-len(sweep.points), -len(sweep.runs)))
    return tuple(found)


def repeats(runs: Sequence[FinishedRun], least: int = 2) -> tuple[tuple[tuple[str, ...], Repeat], ...]:
    """Settings as `described` and their runs, wherever at least so many runs differ in nothing but their seed."""
    several = _several_data(runs)
    return tuple(
        (described(alike[0], leave_out=(), place=several), Repeat(_by_seed(alike)))
        for alike in _alike(_first_of_twins(runs), free=("seed",))
        if len(alike) >= least
    )


def twins(runs: Sequence[FinishedRun]) -> tuple[tuple[str, str], ...]:
    """Pairs of a run's name and the name of an earlier one that is the same, seed included.

    Training the same seed again says nothing about the spread over seeds: sweeps and repeats leave these runs out.
    """
    return tuple((run.name, alike[0].name) for alike in _alike(runs, free=()) for run in alike[1:])


def described(run: FinishedRun, *, leave_out: Sequence[str], place: bool) -> tuple[str, ...]:
    """Model and settings of a run, each in words, but its seed; `place` adds store, number and size of training images.

    How its objects were counted is none of them.
    """
    model, settings = run.data["model"], _settings(run)
    named = {
        "t": f"t = {settings['t']}", "blocks": f"blocks {block_label(settings['blocks'])}",
        "head": f"head {settings['head']}", "lr": f"learning rate {settings['lr']:g}",
        "epochs": f"{settings['epochs']} epochs",
    }  # fmt: skip
    words = [f"model {model['name']}" + ("" if model["trained"] else " (untrained)"), f"condition {model['condition']}"]
    if run.is_baseline:
        words, leave_out = [], (*leave_out, "t", "blocks")
    words += [named[name] for name in SAID if name not in leave_out]
    words += [
        f"{name.replace('_', ' ')} {value}"
        for name, value in settings.items()
        if name not in (*SAID, *OF_SCORES, "seed") and value != DEFAULTS.get(name)
    ]
    if place:
        images = len(run.data["images"].get("train", ()))
        noun = f"training image{'' if images == 1 else 's'}"
        words.append(f"store {run.data['store']} with {images} {noun} of {run.size}")
    return tuple(words)


def block_label(blocks: Sequence[int]) -> str:
    """`4-6`, or `all` for all thirteen."""
    return "all" if tuple(sorted(blocks)) == BLOCKS else format_blocks(blocks)


def value_label(axis: Axis, value: Any) -> str:
    """A value of a sweep as tables and figures write it."""
    return block_label(value) if axis == "blocks" else f"{value:g}"


def seeds_label(points: Sequence[Repeat]) -> str:
    """How many seeds there are at each point: `3 seeds`, or `1–3 seeds` where it differs."""
    counts = sorted({len(point.runs) for point in points})
    if len(counts) > 1:
        return f"{counts[0]}–{counts[-1]} seeds"
    return f"{counts[0]} seed" + ("" if counts[0] == 1 else "s")


def _settings(run: FinishedRun) -> dict[str, Any]:
    """The settings of a run; one that was not there yet when it was trained has its default.

    A baseline has no timestep and no blocks.
    """
    return {**DEFAULTS, "t": None, "blocks": (), **run.head} if run.is_baseline else {**DEFAULTS, **run.head}


def _value(run: FinishedRun, axis: Axis) -> Any:
    value = _settings(run)[axis]
    return tuple(sorted(value)) if axis == "blocks" else value


def _order(axis: Axis, value: Any) -> Any:
    """Timesteps upwards; single blocks, then groups by their size; the highest learning rate first."""
    return (len(value), value) if axis == "blocks" else -value if axis == "lr" else value


def _identity(run: FinishedRun, free: Sequence[str]) -> str:
    """All that must be equal for two runs to be of one sweep, as text; how objects are counted makes no other run."""
    settings = {name: value for name, value in _settings(run).items() if name not in (*free, *OF_SCORES)}
    if "blocks" in settings:
        settings["blocks"] = sorted(settings["blocks"])
    return json.dumps([settings, _data(run)], sort_keys=True)


def _data(run: FinishedRun) -> dict[str, Any]:
    """What it was trained on: the store's key (its address, where a run does not know the key) and the images."""
    same = {name: value for name, value in run.data.items() if name not in ELSEWHERE}
    return {**same, "features": run.data.get("key") or run.data["store"]}


def _several_data(runs: Sequence[FinishedRun]) -> bool:
    """Whether a description must say on which features and images a run was trained."""
    return len({json.dumps(_data(run), sort_keys=True) for run in runs}) > 1


def _alike(runs: Iterable[FinishedRun], free: Sequence[str]) -> list[list[FinishedRun]]:
    """Runs that are equal but for the settings in `free`, together, in the order of their names.

    Those whose objects were counted otherwise than by default come last: of twins, the others are shown.
    """
    found: dict[str, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: (_counts_otherwise(run), natural_order(run.name))):
        found.setdefault(_identity(run, free), []).append(run)
    return list(found.values())


def _counts_otherwise(run: FinishedRun) -> bool:
    settings = _settings(run)
    return any(settings[name] != DEFAULTS[name] for name in OF_SCORES)


def _first_of_twins(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    return [alike[0] for alike in _alike(runs, free=())]


def _points(runs: Iterable[FinishedRun], axis: Axis) -> tuple[Repeat, ...]:
    found: dict[Any, list[FinishedRun]] = {}
    for run in runs:
        found.setdefault(_value(run, axis), []).append(run)
    return tuple(Repeat(_by_seed(found[value]), value) for value in sorted(found, key=lambda v: _order(axis, v)))


def _by_seed(runs: Sequence[FinishedRun]) -> tuple[FinishedRun, ...]:
    return tuple(sorted(runs, key=lambda run: _settings(run)["seed"]))


def _validation(run: FinishedRun, metric: Metric) -> float | None:
    return next((line.get(f"val_{metric}") for line in run.history if line["epoch"] == run.best_epoch), None)
