"""Sweeps: runs that differ in one setting (timestep, blocks, rate, training images); repeats differ in their seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from pathseg.store.blocks import BLOCKS, format_blocks
from pathseg.store.key import StoreKey
from pathseg.train.config import HeadConfig, InitialWeights, per_store_text
from pathseg.train.report.table_formats import Spread
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import natural_order
from pathseg.train.runs.record import LayerWeight, Source

Axis = Literal["t", "blocks", "lr", "train_images"]
Images = Literal["val", "test"]
Metric = Literal["accuracy", "dice", "miou", "f1"]
AXES: dict[Axis, str] = {
    "t": "timestep", "blocks": "blocks", "lr": "learning rate", "train_images": "training images",
}  # fmt: skip
METRICS: dict[Metric, str] = {"accuracy": "accuracy", "dice": "Dice", "miou": "mIoU", "f1": "F1"}
OBJECT_SETTINGS = ("connectivity", "min_object_px")  # how objects are counted: no weight and no pixel depends on them
ALWAYS_DESCRIBED = ("t", "blocks", "head_type", "network", "lr", "epochs")  # other settings if not the default
DESCRIBE: dict[str, Callable[[Any, Sequence[Source]], str]] = {
    "t": lambda t, sources: f"t = {t_label(t)}",
    "blocks": lambda blocks, sources: f"blocks {blocks_label(blocks, sources)}",
    "head_type": lambda head_type, sources: f"head {head_type}",
    "network": lambda network, sources: f"network {network}",
    "lr": lambda lr, sources: f"learning rate {lr:g}",
    "epochs": lambda epochs, sources: f"{epochs} epochs",
}


@dataclass(frozen=True)
class Repeats:
    """Runs that differ in their seed only, in its order; `value` is that of the sweep's setting, None outside one."""

    runs: tuple[FinishedRun, ...]
    value: Any = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each run."""
        return tuple(run.settings.seed for run in self.runs)

    def scores(self, images: Images, metric: Metric) -> tuple[float | None, ...]:
        """Return one score per run: `val` at the epoch that was kept, `test` on the split that is quoted."""
        if images == "test":
            return tuple(getattr(run.test_scores.scores, metric) for run in self.runs)
        return tuple(_validation_score(run, metric) for run in self.runs)

    def spread(self, images: Images, metric: Metric) -> Spread | None:
        """Return mean and deviation of `scores`, None where no run has one."""
        return Spread.of(self.scores(images, metric))

    @property
    def mean_validation_dice(self) -> float:
        """The mean validation Dice, by which settings are chosen; -1 where no run has one."""
        spread = self.spread("val", "dice")
        return -1.0 if spread is None else spread.mean


@dataclass(frozen=True)
class Sweep:
    """Runs on the same features, images and settings that differ in `axis` (and in seed), with two values or more.

    Points are in the order of their values: timesteps and numbers of training images upwards, single blocks before
    groups, the highest rate first.
    fixed: the settings that they share, each in words.
    """

    axis: Axis
    points: tuple[Repeats, ...]
    fixed: tuple[str, ...]

    @property
    def runs(self) -> tuple[FinishedRun, ...]:
        """The runs of all points."""
        return tuple(run for point in self.points for run in point.runs)

    @property
    def best(self) -> Repeats | None:
        """The point with the highest mean validation Dice, the first of equals; None without validation scores."""
        scored = [(spread.mean, point) for point in self.points if (spread := point.spread("val", "dice"))]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None

    @property
    def untrained(self) -> bool:
        """Whether the features come from a model with random weights."""
        return is_untrained(self.runs[0])


def find_sweeps(runs: Sequence[FinishedRun]) -> tuple[Sweep, ...]:
    """Return every sweep in runs of one data set: over t, over blocks, over lr, the one with the most values first."""
    name_store = _several_data(runs)
    distinct = [same[0] for same in _grouped(runs, varying=())]
    found = []
    for axis in AXES:
        made = []
        for group in _grouped(distinct, varying=(axis, "seed")):
            points = _points(group, axis)
            if len(points) > 1:
                made.append(Sweep(axis, points, describe(group[0], leave_out=(axis,), store=name_store)))
        found += sorted(made, key=lambda sweep: (-len(sweep.points), -len(sweep.runs)))
    return tuple(found)


def distinct_settings(sweeps: Sequence[Sweep]) -> tuple[str, ...]:
    """Return the settings of each sweep in words, those aside that all share; all of them for a single sweep."""
    every = [sweep.fixed for sweep in sweeps]
    shared = [] if len(every) == 1 else [one for one in every[0] if all(one in settings for settings in every)]
    return tuple(", ".join(one for one in settings if one not in shared) for settings in every)


def find_repeats(runs: Sequence[FinishedRun], *, at_least: int = 2) -> tuple[tuple[tuple[str, ...], Repeats], ...]:
    """Return settings as `describe` and their runs, wherever so many runs or more differ in their seed only."""
    name_store = _several_data(runs)
    distinct = [same[0] for same in _grouped(runs, varying=())]
    return tuple(
        (describe(group[0], store=name_store), Repeats(_by_seed(group)))
        for group in _grouped(distinct, varying=("seed",))
        if len(group) >= at_least
    )


def duplicates(runs: Sequence[FinishedRun]) -> tuple[tuple[str, str], ...]:
    """Return the names of runs that repeat another one, seed included, each with the name of that run.

    The same seed trained again says nothing about the spread over seeds: sweeps and repeats leave these runs out.
    """
    return tuple((run.name, same[0].name) for same in _grouped(runs, varying=()) for run in same[1:])


def describe(run: FinishedRun, *, leave_out: Sequence[str] = (), store: bool = False) -> tuple[str, ...]:
    """Return model and settings of a run in words, its seed and its object rules aside.

    store: add the store, and the number and size of the training images.
    """
    described = [] if run.is_baseline else [f"model {model_label(run)}", f"condition {condition_label(run)}"]
    fields = {field.name: field.default for field in dataclasses.fields(run.settings)}
    described += [DESCRIBE[name](getattr(run.settings, name), run.data.sources) for name in ALWAYS_DESCRIBED
                  if name in fields and name not in leave_out]  # fmt: skip
    for name, default in fields.items():
        value = getattr(run.settings, name)
        if name not in (*ALWAYS_DESCRIBED, *OBJECT_SETTINGS, *leave_out, "seed") and value != default:
            described.append(name.replace("_", " ") + ("" if value is True else f" {value}"))
    if store:
        images = training_images(run)
        noun = f"training image{'' if images == 1 else 's'}"
        number = "images" if "train_images" in leave_out else f"{images} {noun}"
        stores = " + ".join(source.store for source in run.data.sources)
        described.append(f"store {stores} with {number} of {run.data.size_text}")
    return tuple(described)


def is_untrained(run: FinishedRun) -> bool:
    """Return whether a run learned from features of a model with random weights."""
    return bool(untrained_models(run))


def untrained_models(run: FinishedRun) -> tuple[str, ...]:
    """Return the models with random weights whose features a run learned from."""
    return () if run.is_baseline else tuple(one.key.model for one in run.data.sources if not one.model_trained)


def model_label(run: FinishedRun) -> str:
    """Return the models whose features a run learned from, with the surroundings they saw; `images` for a baseline."""
    if run.is_baseline:
        return "images"
    sources = run.data.sources
    return " + ".join(
        label + ("" if source.model_trained else " (untrained)")
        for label, source in zip(source_labels(sources), sources, strict=True)
    )


def block_label(blocks: Sequence[int], key: StoreKey) -> str:
    """Return `4-6`, or `all` for all thirteen blocks of a model that has no others, which a release's has not."""
    is_release = key.vit is None and key.diffusers is None
    return "all" if is_release and tuple(sorted(blocks)) == BLOCKS else format_blocks(blocks)


def blocks_label(blocks: Sequence[Any], sources: Sequence[Source]) -> str:
    """Return `block_label`, of joined stores that of each: `4-6 + 0`, or `4-6` where they are all equal."""
    of_stores = blocks if len(sources) > 1 else [blocks]
    return joined_label(block_label(own, source.key) for own, source in zip(of_stores, sources, strict=True))


def source_labels(sources: Sequence[Source]) -> tuple[str, ...]:
    """Return the model of each joined store, with the surroundings of a patch that it saw.

    Where several would be called the same, the condition and the seed of the noise follow, if they differ.
    """
    keys = [source.key for source in sources]
    names = [key.model + ("" if key.surroundings is None else f" ({key.field_patches}x surroundings)") for key in keys]
    labels = []
    for name, key in zip(names, keys, strict=True):
        alike = [other for other, own in zip(keys, names, strict=True) if own == name]
        details = []
        if len({other.condition_text for other in alike}) > 1:
            details.append(f"condition {key.condition_text}")
        if len({other.seed for other in alike}) > 1:
            details.append(f"seed {key.seed}")
        labels.append(f"{name} ({', '.join(details)})" if details else name)
    return tuple(labels)


def condition_label(run: FinishedRun) -> str:
    """Return the condition of the model; of several models each one's, unless they are equal."""
    return joined_label(source.key.condition_text for source in run.data.sources)


def features_label(run: FinishedRun) -> str:
    """Return models, blocks and, where they differ, timesteps that a head reads: `mini 4-6 + mini-hipt 4-6`."""
    selections, parts = run.settings.selections, []
    sources = run.data.sources
    for label, source, (t, blocks) in zip(source_labels(sources), sources, selections, strict=True):
        at = f" t {t}" if len({one.t for one in selections}) > 1 else ""
        parts.append(f"{label}{at} {block_label(blocks, source.key)}")
    return " + ".join(parts)


def layer_label(run: FinishedRun, layer: LayerWeight) -> str:
    """Return the block of a layer, with its model where several are joined and its timestep where they differ."""
    several, timesteps = len(run.data.sources) > 1, {t for t, _ in run.settings.selections}
    model = f"{source_labels(run.data.sources)[layer.source]} " if several else ""
    return f"{model}{f't {layer.t} ' if len(timesteps) > 1 else ''}{layer.block}"


def joined_label(values: Iterable[Any]) -> str:
    """Return values, one for each joined store, as text: `50 + 200`, or `50` where they are all equal."""
    return per_store_text(values, separator=" + ")


def t_label(t: int | Sequence[int]) -> str:
    """Return `50`, or `50 + 200` for the timesteps of joined stores."""
    return joined_label([t] if isinstance(t, int) else t)


def value_label(sweep: Sweep, value: Any) -> str:
    """Return a value of a sweep as tables and figures write it."""
    if sweep.axis == "blocks":
        return blocks_label(value, sweep.runs[0].data.sources)
    return t_label(value) if sweep.axis == "t" else f"{value:g}"


def seeds_label(points: Sequence[Repeats]) -> str:
    """Return how many seeds there are at each point: `3 seeds`, or `1–3 seeds` where it differs."""
    counts = sorted({len(point.runs) for point in points})
    if len(counts) > 1:
        return f"{counts[0]}–{counts[-1]} seeds"
    return f"{counts[0]} seed" + ("" if counts[0] == 1 else "s")


def _setting(run: FinishedRun, name: str) -> Any:
    if name == "train_images":
        return training_images(run)
    if name == "t":  # one number where all stores have the same
        timesteps = tuple(t for t, _ in run.settings.selections)
        return timesteps[0] if len(set(timesteps)) == 1 else timesteps
    if name == "blocks":
        chosen = tuple(tuple(sorted(blocks)) for _, blocks in run.settings.selections)
        return chosen[0] if len(chosen) == 1 else chosen
    value = getattr(run.settings, name)
    return value.sha256 if isinstance(value, InitialWeights) else value


def training_images(run: FinishedRun) -> int:
    """Return the number of images that a run was trained on, their views aside."""
    recorded = run.data.train_images
    return len(run.data.images.get("train", ())) if recorded is None else recorded


def _identity(run: FinishedRun, varying: Sequence[str]) -> bytes:
    """Encode all that must be equal in runs of one sweep; the rules for objects and the store's address are not."""
    left_out = (*varying, *OBJECT_SETTINGS)
    settings = {
        field.name: _setting(run, field.name)
        for field in dataclasses.fields(run.settings)
        if field.name not in left_out
    }
    data = _trained_on(run)
    if "train_images" in varying:
        data = dataclasses.replace(data, images={name: ids for name, ids in data.images.items() if name != "train"})
    elif run.settings.train_images != "all" and "seed" in varying:
        # the seed has drawn its own images: their number is what seeds have in common
        data = dataclasses.replace(data, images=data.images | {"train": (f"{training_images(run)} drawn",)})
    return msgspec.json.encode([run.config.kind, settings, data], order="deterministic")


def _trained_on(run: FinishedRun) -> Any:
    """The data of a run without the stores' addresses, and without what follows from the blocks and the images."""
    sources = tuple(dataclasses.replace(source, store="", channels={}) for source in run.data.sources)
    return dataclasses.replace(run.data, sources=sources, train_images=None, shared_sources={}, patch_bytes=None)


def _several_data(runs: Sequence[FinishedRun]) -> bool:
    """Whether a description must say on which features and images a run was trained."""

    def encoded(run: FinishedRun) -> bytes:
        data = _trained_on(run)
        if run.settings.train_images != "all":  # the setting says so itself
            data = dataclasses.replace(data, images=data.images | {"train": everything.get(data.digest, ())})
        return msgspec.json.encode(data, order="deterministic")

    everything = {run.data.digest: run.data.images.get("train", ()) for run in runs
                  if run.settings.train_images == "all"}  # fmt: skip
    return len(set(map(encoded, runs))) > 1


def _grouped(runs: Iterable[FinishedRun], *, varying: Sequence[str]) -> list[list[FinishedRun]]:
    """Group runs that are equal but for the `varying` settings, in the order of their names.

    Runs with other rules for objects than the default come last: of duplicates, the first is shown.
    """
    found: dict[bytes, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: (_has_other_object_rules(run), natural_order(run.name))):
        found.setdefault(_identity(run, varying), []).append(run)
    return list(found.values())


def _has_other_object_rules(run: FinishedRun) -> bool:
    defaults = HeadConfig()  # the same as a baseline's
    return any(getattr(run.settings, name) != getattr(defaults, name) for name in OBJECT_SETTINGS)


def _points(runs: Iterable[FinishedRun], axis: Axis) -> tuple[Repeats, ...]:
    found: dict[Any, list[FinishedRun]] = {}
    for run in runs:
        found.setdefault(_setting(run, axis), []).append(run)
    order: dict[Axis, Callable[[Any], Any]] = {
        "t": lambda t: (1, t) if isinstance(t, int) else (len(t), *t),
        "blocks": _block_order,
        "lr": lambda lr: -lr,
        "train_images": lambda count: count,
    }
    return tuple(Repeats(_by_seed(found[value]), value) for value in sorted(found, key=order[axis]))


def _block_order(blocks: tuple[Any, ...]) -> tuple[Any, ...]:
    """Single blocks first, then larger selections; those of joined stores by the number of all their blocks."""
    of_stores = blocks if any(isinstance(block, tuple) for block in blocks) else (blocks,)
    return sum(map(len, of_stores)), of_stores


def _by_seed(runs: Sequence[FinishedRun]) -> tuple[FinishedRun, ...]:
    return tuple(sorted(runs, key=lambda run: run.settings.seed))


def _validation_score(run: FinishedRun, metric: Metric) -> float | None:
    kept = next((epoch for epoch in run.history if epoch.epoch == run.metrics.best_epoch), None)
    return None if kept is None else getattr(kept, f"val_{metric}")
