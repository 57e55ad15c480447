"""Sweeps in tables and words: a row for each value, for each repeated setting, and what every run cost."""

from __future__ import annotations

from collections.abc import Sequence

from pathseg.store.blocks import format_blocks
from pathseg.store.format.size import format_bytes
from pathseg.train.report.paper_scores import RATES
from pathseg.train.report.sweeps import (
    AXES,
    Metric,
    Part,
    Repeat,
    Spread,
    Sweep,
    repeats,
    seeds_label,
    twins,
    value_label,
)
from pathseg.train.report.tables import CITED, CONSTANT, DASH, Row, Table, number
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import natural_order
from pathseg.train.runs.split_scores import PartScores

NAMES: dict[Metric, str] = {"accuracy": "accuracy", "dice": "Dice", "miou": "mIoU", "f1": "F1"}
MEASURES: tuple[tuple[Part, Metric], ...] = (
    ("val", "accuracy"), ("val", "miou"), ("val", "dice"), ("test", "miou"), ("test", "dice"),
)  # fmt: skip
OVER_SEEDS: tuple[tuple[Part, Metric], ...] = (
    ("val", "dice"), ("test", "accuracy"), ("test", "dice"), ("test", "miou"), ("test", "f1"),
)  # fmt: skip
MARKED = "The highest mean validation Dice is marked"
FLATTERED = "Each head kept its best epoch on the validation images, which flatters validation scores a little"


def sweep_table(sweep: Sweep, title: str) -> Table:
    """A row for each value: mean and deviation of validation and test scores; for rates, the paper's Table 5 below."""
    rows = [
        Row("run", (value_label(sweep.axis, point.value), _seeds(point), *_cells(point, MEASURES)), point is sweep.best)
        for point in sweep.points
    ]
    constants = {(part.constant_class, part.constant.miou, part.constant.dice): None for part in _tested(sweep)}
    rows += [
        Row("constant", (f"always {name}", CONSTANT, *(DASH,) * 3, number(miou), number(dice)))
        for name, miou, dice in constants
    ]
    notes = [f"{MARKED}. All else equal: {sweep.fixed}."]
    if sweep.axis == "lr":
        rows += [
            Row("cited", (f"{one.lr:g}", f"{CITED}, Table {one.table}", *map(number, scores), DASH, DASH))
            for one in RATES
            for scores in ((one.accuracy, one.miou, one.dice),)
        ]
        notes.append(_on_cited_rates(sweep))
    columns = (AXES[sweep.axis], "n (seeds)", *_columns(MEASURES, sweep.runs[0].test_split))
    caption = f"Scores by {AXES[sweep.axis]}, {title}{_untrained(sweep)}: mean ± standard deviation over seeds"
    return Table(caption, columns, tuple(rows), notes=tuple(notes))


def seeds_table(runs: Sequence[FinishedRun], title: str) -> Table | None:
    """A row for settings that two or more seeds were trained with, highest mean test Dice first; None without any."""
    found = sorted(repeats(runs), key=lambda pair: (-_mean(pair[1], "test"), natural_order(", ".join(pair[0]))))
    if not found:
        return None
    best = max(found, key=lambda pair: _mean(pair[1], "val"))[1]
    shared = [word for word in found[0][0] if len(found) > 1 and all(word in words for words, _ in found)]
    rows = []
    for words, one in found:
        name = ", ".join(word for word in words if word not in shared) or one.runs[0].name
        rows.append(Row("run", (name, _seeds(one), *_cells(one, OVER_SEEDS)), one is best))
    notes = [f"Rows are runs that differ by their seed only; the deviation has the divisor n − 1. {MARKED}."]
    if shared:
        notes.append(f"All rows: {', '.join(shared)}.")
    if left_out := twins(runs):
        same = ", ".join(f"{name} (as {first})" for name, first in left_out)
        notes.append(f"Not counted, because the same training, seed included, is there under another name: {same}.")
    columns = ("settings", "n (seeds)", *_columns(OVER_SEEDS, runs[0].test_split))
    return Table(f"Mean ± standard deviation over seeds, {title}", columns, tuple(rows), notes=tuple(notes))


def cost_table(runs: Sequence[FinishedRun], title: str) -> Table | None:
    """What each run cost, in the order of names; None for a single run."""
    if len(runs) < 2:
        return None
    rows = tuple(
        Row("run", (
            run.name, str(run.head.get("head", DASH)), format_blocks(run.head.get("blocks", ())) or DASH,
            f"{run.config['parameters']:,}", str(run.epochs), f"{run.seconds:,.1f}",
            f"{run.seconds / max(1, run.epochs):,.2f}", *_reading(run),
        ))
        for run in sorted(runs, key=lambda run: natural_order(run.name))
    )  # fmt: skip
    columns = (
        "run", "head", "blocks", "parameters", "epochs", "training steps, s", "s per epoch", "read from the store",
        "heads from one read", "read per head",
    )  # fmt: skip
    notes = (
        "Seconds are those of the head's own training steps: reading, validation and prediction are not in them. "
        "Bytes are those of the features and masks that came from the store for all heads trained together, training, "
        "validation and test images, so they must not be added up over heads of one read; what stayed in memory "
        "counts once. A run that was taken up again counts the bytes since then.",
    )
    return Table(f"Cost of each run, {title}", columns, rows, words=3, notes=notes)


def sentence(sweep: Sweep, title: str) -> str:
    """What a sweep's figure shows: which scores of which images, n, the meaning of line, bar and point."""
    first = sweep.runs[0]
    images = len(first.data["images"].get("val", ()))
    several = any(len(point.runs) > 1 for point in sweep.points)
    bars = (
        f"Large marks are means over seeds (n = {seeds_label(sweep.points)} for each value), bars ± one sample "
        "standard deviation, small dots the single heads."
        if several
        else "One head (one seed) for each value, so the deviation is not known."
    )
    words = [
        f"{title}: scores on {images} validation image{'' if images == 1 else 's'} and on the test part "
        f"{first.test_split} ({' or '.join(str(n) for n in sorted({part.images for part in _tested(sweep)}))} images).",
        bars, f"{FLATTERED}.", f"All else equal: {sweep.fixed}.",
    ]  # fmt: skip
    if not sweep.trained:
        words.append("The model is untrained (random weights): this shows that the pipeline works, nothing more.")
    return " ".join(words)


def _untrained(sweep: Sweep) -> str:
    return "" if sweep.trained else " (untrained model)"


def _tested(sweep: Sweep) -> list[PartScores]:
    return [run.quoted for run in sweep.runs]


def _columns(measures: Sequence[tuple[Part, Metric]], split: str) -> tuple[str, ...]:
    return tuple(f"{'val.' if part == 'val' else split} {NAMES[metric]}" for part, metric in measures)


def _cells(repeat: Repeat, measures: Sequence[tuple[Part, Metric]]) -> tuple[str, ...]:
    return tuple(spread_text(repeat.spread(part, metric), len(repeat.runs)) for part, metric in measures)


def spread_text(spread: Spread | None, expected: int, digits: int = 3) -> str:
    """`0.826 ± 0.004`; the count too where it is not that of the row."""
    if spread is None:
        return DASH
    text = f"{spread.mean:.{digits}f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}")
    return text if spread.count == expected else f"{text} (n = {spread.count})"


def _seeds(repeat: Repeat) -> str:
    return f"{len(repeat.runs)} ({', '.join(str(seed) for seed in repeat.seeds)})"


def _mean(repeat: Repeat, part: Part) -> float:
    spread = repeat.spread(part, "dice")
    return -1.0 if spread is None else spread.mean


def _reading(run: FinishedRun) -> tuple[str, str, str]:
    """Bytes read, heads that shared them, bytes for one of them; dashes for a run that did not count them."""
    if run.bytes_read is None or not run.heads_from_one_read:
        return DASH, DASH, DASH
    heads = run.heads_from_one_read
    return format_bytes(run.bytes_read), str(heads), format_bytes(run.bytes_read / heads)


def _on_cited_rates(sweep: Sweep) -> str:
    text = "Cited rows are copied from Table 5 of the PathSegDiff paper (BCSS, validation images), not run here"
    if sweep.runs[0].data["dataset"] == "bcss":
        return f"{text}; its validation images and its metrics may be others than ours."
    return f"{text}: another data set than this one, so compare the order of the rates, not their scores."
