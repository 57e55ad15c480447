"""How sure the scores are, in tables: an interval for each score of each run, every run against the best, systems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathseg.train.metrics.bootstrap import Samples, bootstrap_scores, describe_method, interval, paired_difference
from pathseg.train.report.systems import System
from pathseg.train.report.tables import DASH, Row, Table, by_dice, difference
from pathseg.train.runs.finished import FinishedRun

MEASURES = {"accuracy": "accuracy", "dice": "Dice", "miou": "mIoU", "f1": "F1"}
OBJECTS = {"object f1": "object F1", "object dice": "object Dice", "object hausdorff": "object Hausdorff, px"}
Sampled = tuple[str, FinishedRun, Samples]  # what a row calls it, the run, its samples

APART = (
    "A dash: the two runs were scored on different images, on images of another size, or only one of them recorded the "
    "images' regions."
)


def uncertainty_tables(
    runs: Sequence[FinishedRun], split: str, title: str, shown: Sequence[System] = ()
) -> tuple[Table, ...]:
    """Intervals of the runs on one test part, their differences from the best, and of systems from the first system.

    A system is compared by the run that stands for it. Differences need two runs or two systems. Runs that did not
    record the confusion matrix of each image are left out; nothing where all are.
    """
    ranked = by_dice([run for run in runs if split in run.parts], split)
    sampled = [
        (run, found) for run in ranked if (found := bootstrap_scores(run.parts[split], ignore=run.data["ignore"]))
    ]
    if not sampled:
        return ()
    tables = [_intervals(sampled, split, title)]
    if len(sampled) > 1:
        best, *others = ((run.name, run, found) for run, found in sampled)
        picked = "; the run it is compared with was picked on these images, which makes p too small"
        caption = f"Each run against {best[0]} on {split}, {title}"
        tables.append(_differences(best, others, split, caption, ("run", "best", picked)))
    samples = {run.name: found for run, found in sampled}
    systems = [(one.name, one.run, samples[one.run.name]) for one in shown if one.run.name in samples]
    if len(systems) > 1:
        first, *others = systems
        caption = f"Each system against {first[0]} on {split}, {title}"
        tables.append(_differences(first, others, split, caption, ("system", first[0], "")))
    return tuple(tables)


def _intervals(sampled: Sequence[tuple[FinishedRun, Samples]], split: str, title: str) -> Table:
    objects = OBJECTS if any("object f1" in found for _, found in sampled) else {}
    rows = []
    for run, found in sampled:
        part = run.parts[split]
        cells = [_text(getattr(part.scores, name), found[name]) for name in MEASURES]
        for name in objects:
            pooled = part.pooled_objects
            value = pooled and getattr(pooled, name.removeprefix("object "))
            cells.append(_text(value, found[name], 1 if "hausdorff" in name else 3) if name in found else DASH)
        rows.append(Row("run", (run.name, *cells)))
    columns = ("run", *MEASURES.values(), *objects.values())
    ways = sorted({run.parts[split].by_region for run, _ in sampled}, reverse=True)
    notes = tuple(describe_method(by_region=way) for way in ways)
    return Table(f"Confidence intervals on {split}, {title}", columns, tuple(rows), notes=notes)


def _differences(
    first: Sampled, others: Sequence[Sampled], split: str, caption: str, words: tuple[str, str, str]
) -> Table:
    """Each of the others against the first; words: what a row is, what the first is called, what to add on p."""
    kind, called, on_p = words
    one = first[1].parts[split]
    rows = []
    for name, run, found in others:
        pair = first[1].size == run.size and paired_difference(
            one, run.parts[split], first[2], found, ignore=run.data["ignore"]
        )
        if not pair:
            rows.append(Row("run", (name, *(DASH,) * 4)))
            continue
        bounds = f"[{difference(pair.low, 0)}, {difference(pair.high, 0)}]"
        rows.append(Row("run", (name, difference(pair.difference, 0), bounds, _p(pair.p), str(pair.units))))
    units = "regions" if one.by_region else "images"
    columns = (kind, f"Dice − {called}", "95% interval", "p (Wilcoxon)", units)
    apart = any(row.cells[1] == DASH for row in rows)
    notes = [_test(units, on_p), *([APART] if apart else [])]
    if kind == "system":
        runs = "; ".join(f"{name}: {run.name}" for name, run, _ in (first, *others))
        notes.insert(0, f"Each system by one run, of its seeds the best on validation images: {runs}.")
    return Table(caption, columns, tuple(rows), notes=tuple(notes))


def _test(units: str, on_p: str) -> str:
    return (
        f"Differences are those of the pooled Dice, with the interval of the paired bootstrap (both runs on the same "
        f"drawn {units}). p: Wilcoxon signed-rank test, two-sided, over the pooled Dice of each of the {units}, not "
        f"corrected for the number of comparisons{on_p}."
    )


def _text(value: float | None, samples: np.ndarray, digits: int = 3) -> str:
    bounds = interval(samples)
    if value is None or bounds is None:
        return DASH
    return f"{value:.{digits}f} [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def _p(value: float | None) -> str:
    return DASH if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
