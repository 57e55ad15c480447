"""How sure the scores are, in tables: an interval for each score of each run, and every run against the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathseg.train.runs import FinishedRun
from pathseg.train.tables import DASH, Row, Table, by_dice, difference
from pathseg.train.uncertainty import Samples, interval, method, paired, resamples

MEASURES = {"accuracy": "accuracy", "dice": "Dice", "miou": "mIoU", "f1": "F1"}
OBJECTS = {"object f1": "object F1", "object dice": "object Dice", "object hausdorff": "object Hausdorff, px"}
APART = (
    "A dash: the two runs were scored on different images, on images of another size, or only one of them recorded the "
    "images' regions."
)


def uncertainty_tables(runs: Sequence[FinishedRun], split: str, title: str) -> tuple[Table, ...]:
    """Intervals of the runs on one test part and, for two runs or more, their differences from the best.

    Runs that did not record the confusion matrix of each image are left out; nothing where all are.
    """
    ranked = by_dice([run for run in runs if split in run.parts], split)
    sampled = [(run, found) for run in ranked if (found := resamples(run.parts[split], run.data["ignore"]))]
    if not sampled:
        return ()
    tables = [_intervals(sampled, split, title)]
    if len(sampled) > 1:
        tables.append(_differences(sampled, split, title))
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
    notes = tuple(method(by_region=way) for way in ways)
    return Table(f"Confidence intervals on {split}, {title}", columns, tuple(rows), notes=notes)


def _differences(sampled: Sequence[tuple[FinishedRun, Samples]], split: str, title: str) -> Table:
    (best, of_best), *others = sampled
    rows = []
    for run, found in others:
        alike = run.size == best.size
        pair = alike and paired(best.parts[split], run.parts[split], of_best, found, ignore=run.data["ignore"])
        if not pair:
            rows.append(Row("run", (run.name, DASH, DASH, DASH, DASH)))
            continue
        bounds = f"[{difference(pair.low, 0)}, {difference(pair.high, 0)}]"
        rows.append(Row("run", (run.name, difference(pair.difference, 0), bounds, _p(pair.p), str(pair.units))))
    units = "regions" if best.parts[split].by_region else "images"
    columns = ("run", "Dice − best", "95% interval", "p (Wilcoxon)", units)
    apart = any(row.cells[1] == DASH for row in rows)
    notes = (_test(units), *([APART] if apart else []))
    return Table(f"Each run against {best.name} on {split}, {title}", columns, tuple(rows), notes=notes)


def _test(units: str) -> str:
    return (
        f"Differences are those of the pooled Dice, with the interval of the paired bootstrap (both runs on the same "
        f"drawn {units}). p: Wilcoxon signed-rank test, two-sided, over the pooled Dice of each of the {units}, not "
        "corrected for the number of runs compared; the run it is compared with was picked on these images, which "
        "makes p too small."
    )


def _text(value: float | None, samples: np.ndarray, digits: int = 3) -> str:
    bounds = interval(samples)
    if value is None or bounds is None:
        return DASH
    return f"{value:.{digits}f} [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def _p(value: float | None) -> str:
    return DASH if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
