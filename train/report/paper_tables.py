"""The paper's tables with our systems above its own: Table 2 (BCSS), Table 3 (BCSS, classes), Table 4 (GlaS)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from pathseg.train.report.paper_scores import IOUS, CitedScores, cited_scores
from pathseg.train.report.sweep_tables import spread_text
from pathseg.train.report.sweeps import Spread
from pathseg.train.report.systems import System
from pathseg.train.report.tables import CITED, DASH, METRICS, Row, Table, number, rules_note
from pathseg.train.runs.split_scores import PartScores

ABOUT = ("system", "weights", "n (seeds)")
PIXELS = ("accuracy", "dice", "miou", "f1")  # of Scores, in the order of METRICS
OBJECTS = {"f1": "object F1", "dice": "object Dice", "hausdorff": "object Hausdorff, px"}
TISSUES = ("tumor", "stroma", "inflammatory", "necrosis")  # the paper's TUM, STR, LYM, NEC


def systems_table(systems: Sequence[System], split: str, title: str) -> Table:
    """One test part: a row for each of our systems, mean ± deviation over its seeds, then what the paper prints."""
    there = [one for one in systems if _parts(one, split)]
    objects = any(part.pooled_objects for one in there for part in _parts(one, split))
    rows = []
    for one in there:
        parts = _parts(one, split)
        cells = [_over(parts, lambda part, name=name: getattr(part.scores, name)) for name in PIXELS]
        alike = len(_rules(parts)) < 2  # a mean over objects that were counted in two ways would be of neither
        for name in OBJECTS if objects else ():
            digits = 1 if name == "hausdorff" else 3
            value = _over(parts, lambda part, name=name: getattr(part.pooled_objects, name, None), digits)
            cells.append(value if alike else DASH)
        rows.append(Row("run", (one.name, one.weights, _seeds(one), *cells)))
    run = systems[0].run
    cited = cited_scores(str(run.data["dataset"]), split, run.test_split)
    blank = (DASH,) * (len(OBJECTS) if objects else 0)
    for row in cited:
        values = map(number, (row.accuracy, row.dice, row.miou, row.f1))
        rows.append(Row("cited", (row.method, f"{CITED}, Table {row.table}", DASH, *values, *blank)))
    columns = (*ABOUT, *METRICS[:4], *(OBJECTS.values() if objects else ()))
    like = f" (as the paper's Table {cited[0].table})" if cited else ""
    seen = [part for one in there for part in _parts(one, split)]
    notes = (*_choices(there), *_unlike(there, split), *_counted(there, split), *_cited_notes(seen, cited))
    return Table(f"Systems on {split}, {title}{like}", columns, tuple(rows), words=2, notes=notes)


def tissues_table(systems: Sequence[System], split: str, title: str) -> Table | None:
    """IoU of tumor, stroma, inflammatory, necrosis and their mean, as the paper's Table 3; None for other classes."""
    classes = list(systems[0].run.data["classes"])
    if not set(TISSUES) <= set(classes):
        return None
    codes = [classes.index(name) for name in TISSUES]
    rows = []
    for one in systems:
        parts = _parts(one, split)
        cells = [_over(parts, lambda part, k=k: part.scores.classes[k].iou) for k in codes]
        rows.append(Row("run", (one.name, one.weights, _seeds(one), *cells, _over(parts, _mean_iou(codes)))))
    if systems[0].run.data["dataset"] == "bcss":
        for row in IOUS:
            values = (row.tumor, row.stroma, row.inflammatory, row.necrosis, row.mean)
            rows.append(Row("cited", (row.method, f"{CITED}, Table {row.table}", DASH, *map("{:.4f}".format, values))))
    caption = f"IoU of each class on {split}, {title} (as the paper's Table 3)"
    notes = ("The mean is over these four classes. A class that is in neither truth nor prediction has no value.",)
    return Table(caption, (*ABOUT, *TISSUES, "mean"), tuple(rows), words=2, notes=notes)


def _parts(system: System, split: str) -> list[PartScores]:
    return [run.parts[split] for run in system.repeat.runs if split in run.parts]


def _over(parts: Sequence[PartScores], value: Callable[[PartScores], float | None], digits: int = 3) -> str:
    return spread_text(Spread.of(value(part) for part in parts), len(parts), digits)


def _mean_iou(codes: Sequence[int]) -> Callable[[PartScores], float | None]:
    def mean(part: PartScores) -> float | None:
        values = [part.scores.classes[k].iou for k in codes]
        return None if None in values else fmean(values)

    return mean


def _seeds(system: System) -> str:
    return f"{len(system.repeat.runs)} ({', '.join(map(str, system.repeat.seeds))})"


def _choices(systems: Sequence[System]) -> tuple[str, ...]:
    """What each row stands for: its settings, and how many others were tried."""
    said = []
    for one in systems:
        chosen = "" if one.settings_tried == 1 else f", the best of {one.settings_tried} settings on validation images"
        aside = f" ({one.settings_aside} with fewer test images or seeds left aside)" if one.settings_aside else ""
        said.append(f"{one.name}: {', '.join(one.settings)}{chosen}{aside}.")
    return (" ".join(["Ours are mean ± sample standard deviation over seeds.", *said]),)


def _unlike(systems: Sequence[System], split: str) -> tuple[str, ...]:
    """Says so where the rows are not over the same pixels: images of another size, or not as many."""
    seen: dict[str, list[str]] = {}
    for one in systems:
        for run in (run for run in one.repeat.runs if split in run.parts):
            names = seen.setdefault(f"{run.parts[split].images} images of {run.size}", [])
            names += [one.name] * (one.name not in names)
    if len(seen) < 2:
        return ()
    said = [f"{what}: {', '.join(names)}" for what, names in seen.items()]
    return (f"Not over the same pixels: {'; '.join(said)}.",)


def _rules(parts: Sequence[PartScores]) -> dict[str, None]:
    """The rules by which the objects of these parts were counted, each once."""
    return {part.rules_text: None for part in parts if part.rules_text}


def _counted(systems: Sequence[System], split: str) -> tuple[str, ...]:
    """By which rules objects were counted, and whose each are where they differ; nothing without objects."""
    rules: dict[str, list[str]] = {}
    for one in systems:
        for words in _rules(_parts(one, split)):
            rules.setdefault(words, []).append(one.name)
    if not rules:
        return ()
    mixed = ", with a dash where the runs of one system differ in this" if len(rules) > 1 else ""
    return (f"Predicted objects: parts of the prediction, {rules_note(rules)}{mixed}.",)


def _cited_notes(parts: Sequence[PartScores], cited: Sequence[CitedScores]) -> tuple[str, ...]:
    if not cited:
        return ()
    text = (
        "Cited rows are copied from the PathSegDiff paper, not run here; those of other methods are as that paper "
        "quotes them. Their metrics may be defined otherwise than ours."
    )
    official = cited[0].images
    if official is not None and any(part.images != official for part in parts):
        text += f" The cited figures are on all {official} images of this part, ours on {parts[0].images}."
    return (text,)
