"""The report's tables as data, and written as Markdown and as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pathseg.store.blocks import format_blocks
from pathseg.train.cited import IOUS, RATES, cited_scores
from pathseg.train.metrics import Scores
from pathseg.train.runs import FinishedRun, PartScores

DASH = "–"
CONSTANT, CITED = "constant answer", "cited"
SETTINGS = ("model", "condition", "t", "blocks", "head", "parameters", "lr", "seed", "epochs (best)", "images")
METRICS = ("accuracy", "Dice", "mIoU", "F1", "Dice − constant")


@dataclass(frozen=True)
class Row:
    """One line: a run of ours, the constant answer, or what the paper prints. `best` marks the highest Dice."""

    kind: Literal["run", "constant", "cited"]
    cells: tuple[str, ...]
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table of text cells. The first `words` columns are words, the others are numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    words: int = 1
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """As a GitHub table, caption before and notes after it."""
        rule = ["---" if i < self.words else "---:" for i in range(len(self.columns))]
        lines = [self.columns, rule, *(row.cells for row in self.rows)]
        body = "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)
        notes = "".join(f"\n\n{_escaped(note)}" for note in self.notes)
        return f"**{_escaped(self.caption)}**\n\n{body}{notes}\n"

    def plain(self, leave_out: Sequence[str] = (), lift: Sequence[str] = ()) -> str:
        """As aligned columns for a terminal.

        Columns in `leave_out` are not shown; those in `lift` that are the same in all our runs are said once.
        """
        runs = [row.cells for row in self.rows if row.kind == "run"]
        cells = dict(zip(self.columns, zip(*runs, strict=True), strict=True))
        same = {name: cells[name][0] for name in lift if len(set(cells[name])) == 1}
        kept = [i for i, name in enumerate(self.columns) if name not in leave_out and name not in same]
        lines = [[line[i] for i in kept] for line in (self.columns, *(row.cells for row in self.rows))]
        widths = [max(len(line[i]) for line in lines) for i in range(len(kept))]
        text = [
            "  ".join(
                cell.ljust(width) if i < self.words else cell.rjust(width)
                for i, cell, width in zip(kept, line, widths, strict=True)
            ).rstrip()
            for line in lines
        ]
        common = ["our runs: " + ", ".join(f"{name} {value}" for name, value in same.items())] if same else []
        return "\n".join([self.caption, *common, "", text[0], "-" * max(map(len, text)), *text[1:]])


def results(runs: Sequence[FinishedRun], split: str, title: str) -> Table:
    """The main table of one test part: our runs (highest Dice first), the constant answer, then what is cited."""
    ranked = by_dice([run for run in runs if split in run.parts], split)
    parts = [run.parts[split] for run in ranked]
    rows = [
        Row(
            "run", (run.name, *settings(run), str(part.images), *_metrics(part.scores, part.constant)), run is ranked[0]
        )
        for run, part in zip(ranked, parts, strict=True)
    ]
    blank = (DASH,) * (len(SETTINGS) - 2)
    constants = {(part.constant_class, part.images, part.constant): None for part in parts}
    rows += [
        Row("constant", (f"always {name}", CONSTANT, *blank, str(images), *_metrics(scores), "0.000"))
        for name, images, scores in constants
    ]
    cited = cited_scores(str(ranked[0].data["dataset"]), split, ranked[0].test_split)
    rows += [
        Row("cited", (
            row.method, f"{CITED}, Table {row.table}", *blank, DASH if row.images is None else str(row.images),
            *(number(value) for value in (row.accuracy, row.dice, row.miou, row.f1)), DASH,
        ))
        for row in cited
    ]  # fmt: skip
    return Table(title, ("run", *SETTINGS, *METRICS), tuple(rows), words=6, notes=_notes(parts, cited))


def per_class(runs: Sequence[FinishedRun], split: str, title: str) -> Table:
    """Every class of every run on one test part; F1 of one class is its Dice."""
    rows = [
        Row("run", (run.name, name, f"{one.pixels:,}", *map(number, (one.dice, one.iou, one.precision, one.recall))))
        for run in by_dice([run for run in runs if split in run.parts], split)
        for k, name in enumerate(run.data["classes"])
        if k != run.data["ignore"]
        for one in (run.parts[split].scores.classes[k],)
    ]
    columns = ("run", "class", "true pixels", "Dice (= F1)", "IoU", "precision", "recall")
    return Table(title, columns, tuple(rows), words=2)


def per_image(part: PartScores, title: str) -> Table:
    """The scores of each image alone, worst first: here the means over classes are taken within the image."""
    rows = [
        Row("run", (name, *map(number, (one.accuracy, one.dice, one.miou, one.f1))))
        for name, one in sorted(part.per_image.items(), key=lambda item: (_rank(item[1].dice), item[0]))
    ]
    return Table(title, ("image", *METRICS[:4]), tuple(rows))


def cited_details(dataset: str, *, with_rates: bool = True) -> tuple[Table, ...]:
    """What else the paper prints for a data set: IoU per class, scores over learning rates (if they are asked for)."""
    ious = tuple(
        Row("cited", (row.method, *(f"{value:.4f}" for value in values)))
        for row in IOUS if row.dataset == dataset
        for values in ((row.tumor, row.stroma, row.inflammatory, row.necrosis, row.mean),)
    )  # fmt: skip
    rates = tuple(
        Row("cited", (f"{row.lr:g}", number(row.accuracy), number(row.dice), number(row.miou)))
        for row in RATES if with_rates and row.dataset == dataset
    )  # fmt: skip
    named = ("method", "tumor", "stroma", "inflammatory", "necrosis", "mean")
    tables = (
        Table("Cited: IoU of each class (Table 3 of the paper)", named, ious),
        Table(
            "Cited: PathSegDiff on validation images at each learning rate (Table 5 of the paper)",
            ("lr", "accuracy", "Dice", "mIoU"), rates,
        ),
    )  # fmt: skip
    return tuple(table for table in tables if table.rows)


def settings(run: FinishedRun) -> tuple[str, ...]:
    """The cells of `SETTINGS` without the number of images."""
    head, model = run.head, run.data["model"]
    return (
        str(model["name"]) + ("" if model["trained"] else " (untrained)"), str(model["condition"]),
        _value(head.get("t")), format_blocks(head["blocks"]) if head.get("blocks") else DASH, _value(head.get("head")),
        f"{run.config['parameters']:,}", f"{head['lr']:g}" if "lr" in head else DASH, _value(head.get("seed")),
        f"{run.epochs} ({run.best_epoch})",
    )  # fmt: skip


def by_dice(runs: Sequence[FinishedRun], split: str) -> list[FinishedRun]:
    """Highest Dice on a test part first, then by name."""
    return sorted(runs, key=lambda run: (-_rank(run.parts[split].scores.dice), run.name))


def number(value: float | None) -> str:
    """A score with three decimals, a dash where there is none."""
    return DASH if value is None else f"{value:.3f}"


def difference(value: float | None, other: float | None) -> str:
    """`value` minus `other` with its sign and three decimals, a dash where one is missing."""
    return DASH if value is None or other is None else f"{value - other:+.3f}".replace("-", "−")


def _metrics(scores: Scores, constant: Scores | None = None) -> tuple[str, ...]:
    cells = tuple(number(value) for value in (scores.accuracy, scores.dice, scores.miou, scores.f1))
    return cells if constant is None else (*cells, difference(scores.dice, constant.dice))


def _notes(parts: Sequence[PartScores], cited: Sequence[Any]) -> tuple[str, ...]:
    notes = []
    if len({frozenset(part.per_image) for part in parts}) > 1:
        notes.append("These runs were scored on different images, so their numbers cannot be compared with each other.")
    if cited:
        notes.append(
            "Cited rows are copied from the PathSegDiff paper, not run here; those of other methods are as that paper "
            "quotes them. Their metrics may be defined otherwise than ours."
        )
        official = cited[0].images
        if official is not None and any(part.images != official for part in parts):
            notes.append(f"The cited figures are on all {official} images of this part, ours on the number shown.")
    return tuple(notes)


def _rank(value: float | None) -> float:
    return -1.0 if value is None else value


def _value(value: Any) -> str:
    return DASH if value is None else str(value)


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
