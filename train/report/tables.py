"""The report's tables as data, and written as Markdown and as plain text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pathseg.store.blocks import format_blocks
from pathseg.train.metrics.object import ObjectScores, mean_scores
from pathseg.train.metrics.pixel import Scores
from pathseg.train.report.paper_scores import RATES
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.split_scores import PartScores

DASH = "–"
GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")  # a number with thousands separators
CONSTANT, CITED = "constant answer", "cited"
SETTINGS = ("model", "condition", "t", "blocks", "head", "parameters", "lr", "seed", "epochs (best)", "images")
UNSURE = "Uncertainty of an image: mean of its most uncertain tenth of pixels; 0 where the networks agree everywhere."
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

    def csv(self) -> str:
        """As comma-separated values for programs, the columns' names first.

        Numbers are as `float` reads them: no thousands separators, an ASCII minus, nothing where there is none.
        """
        text, lines = io.StringIO(), [self.columns, *(row.cells for row in self.rows)]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([*line[: self.words], *map(_digits, line[self.words :])] for line in lines)
        return text.getvalue()

    def latex(self) -> str:
        """As a LaTeX table that needs no package; a line parts our rows from the others, the best row is bold."""
        lines, kind = [], "run"
        for row in self.rows:
            lines += [r"\hline"] if row.kind != kind else []
            lines.append(_latex_line(row.cells, r"\textbf{%s}" if row.best else "%s"))
            kind = row.kind
        notes = "".join(f"\n\\par\\small {_latex(note)}" for note in self.notes)
        layout = "l" * self.words + "r" * (len(self.columns) - self.words)
        return "\n".join([
            r"\begin{table}", r"\centering", rf"\caption{{{_latex(self.caption)}}}", rf"\begin{{tabular}}{{{layout}}}",
            r"\hline", _latex_line(self.columns, "%s"), r"\hline", *lines, r"\hline", rf"\end{{tabular}}{notes}",
            r"\end{table}", "",
        ])  # fmt: skip

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
    """All our runs on one test part, highest Dice first, and the constant answer."""
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
    return Table(title, ("run", *SETTINGS, *METRICS), tuple(rows), words=6, notes=_notes(ranked, split))


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
    rows = []
    for name, one in sorted(part.per_image.items(), key=lambda item: (_rank(item[1].dice), item[0])):
        objects = _object_cells(part.objects[name].scores()) if name in part.objects else (DASH,) * 3
        cells = (name, *map(number, (one.accuracy, one.dice, one.miou, one.f1)))
        unsure = (number(part.uncertainty.get(name)),) if part.uncertainty else ()
        rows.append(Row("run", (*cells, *(objects if part.objects else ()), *unsure)))
    columns = (
        "image", *METRICS[:4], *(("object F1", "object Dice", "Hausdorff, px") if part.objects else ()),
        *(("uncertainty, nats",) if part.uncertainty else ()),
    )  # fmt: skip
    return Table(title, columns, tuple(rows), notes=(UNSURE,) if part.uncertainty else ())


def cited_rates(dataset: str) -> Table | None:
    """What the paper prints for a data set over learning rates, None where it prints nothing."""
    rows = tuple(
        Row("cited", (f"{row.lr:g}", number(row.accuracy), number(row.miou), number(row.dice)))
        for row in RATES if row.dataset == dataset
    )  # fmt: skip
    caption = "Cited: PathSegDiff on validation images at each learning rate (Table 5 of the paper)"
    return Table(caption, ("lr", "accuracy", "mIoU", "Dice"), rows) if rows else None


def objects_table(runs: Sequence[FinishedRun], split: str, title: str) -> Table | None:
    """Object scores of the runs on one test part, highest pixel Dice first; None where none has them."""
    rows, rules = [], {}  # rules: in words -> the runs whose objects were counted so
    for run in by_dice([run for run in runs if split in run.parts], split):
        part = run.parts[split]
        if (pooled := part.pooled_objects) is None:
            continue
        mean = mean_scores(list(part.objects.values()))
        counts = (f"{pooled.tp:,}", f"{pooled.fp:,}", f"{pooled.fn:,}", *_object_cells(pooled))
        rows.append(Row("run", (run.name, *counts, *_object_cells(mean), str(part.rules["hausdorff_left_out"]))))
        rules.setdefault(part.rules_text, []).append(run.name)
    measures = ("F1", "Dice", "Hausdorff, px")
    columns = (
        "run", "TP", "FP", "FN", *(f"{name} (pooled)" for name in measures), *(f"{name} (mean)" for name in measures),
        "left out",
    )  # fmt: skip
    note = (
        f"Predicted objects: parts of the prediction, {rules_note(rules)}, at the images' original size. Pooled: over "
        "all objects of all images, as the GlaS challenge does; mean: of each image's own score. Left out: images with "
        "objects on one side only, which have no Hausdorff distance."
    )
    return Table(f"Objects on {split}, {title}", columns, tuple(rows), notes=(note,)) if rows else None


def rules_note(rules: Mapping[str, Sequence[str]]) -> str:
    """The rules by which objects were counted; where they differ, whose each are."""
    if len(rules) < 2:
        return "".join(rules)
    return "; ".join(f"{words} ({', '.join(names)})" for words, names in rules.items())


def confusion_table(run: FinishedRun, split: str) -> Table | None:
    """True classes against predicted ones: pixels, and shares of the row; None where the run did not record them."""
    part = run.parts.get(split)
    if part is None or part.matrix is None:
        return None
    classes, ignore = run.data["classes"], run.data["ignore"]
    counted = [k for k in range(len(classes)) if k != ignore]
    rows = tuple(
        Row("run", (
            classes[k], *(f"{line[j]:,}" for j in counted),
            *(number(line[j] / line.sum() if line.sum() else None) for j in counted),
        ))
        for k in counted
        for line in (part.matrix[k],)
    )  # fmt: skip
    columns = ("true class", *(f"as {classes[j]}, pixels" for j in counted), *(f"as {classes[j]}" for j in counted))
    note = "Last columns: share of the true class's pixels."
    return Table(f"Confusion matrix of {run.name} on {split}", columns, rows, notes=(note,))


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


def _object_cells(scores: ObjectScores) -> tuple[str, str, str]:
    distance = DASH if scores.hausdorff is None else f"{scores.hausdorff:.1f}"
    return number(scores.f1), number(scores.dice), distance


def _notes(runs: Sequence[FinishedRun], split: str) -> tuple[str, ...]:
    """What keeps these numbers from being compared, and what pixels count more than once."""
    parts, notes = [run.parts[split] for run in runs], []
    sizes: dict[str, list[str]] = {}
    for run in runs:
        sizes.setdefault(run.size, []).append(run.name)
    if len({frozenset(part.per_image) for part in parts}) > 1:
        notes.append("These runs were scored on different images, so their numbers cannot be compared with each other.")
    if len(sizes) > 1:
        said = "; ".join(f"{size}: {', '.join(names)}" for size, names in sizes.items())
        notes.append(f"Images of these runs differ in size, so their numbers are not over the same pixels: {said}.")
    if cut := sorted({(len(part.per_image), len(part.groups)) for part in parts if part.by_region}):
        counts = " or ".join(f"{n} images are patches of {m} region{'' if m == 1 else 's'}" for n, m in cut)
        notes.append(f"The {counts}: where patches overlap, a pixel counts once in each, in accuracy as in all else.")
    return tuple(notes)


def _rank(value: float | None) -> float:
    return -1.0 if value is None else value


def _value(value: Any) -> str:
    return DASH if value is None else str(value)


def _digits(cell: str) -> str:
    """A cell as programs read it, where it is a number; a dash becomes nothing."""
    text = "" if cell == DASH else cell.replace("−", "-")
    return text.replace(",", "") if GROUPED.fullmatch(text) else text


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$",
    "–": "--", "<": "$<$", ">": "$>$", "µ": r"$\mu$", "×": r"$\times$", "·": r"$\cdot$", "…": r"\dots{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _latex_line(cells: Sequence[str], form: str) -> str:
    return " & ".join(form % _latex(cell) for cell in cells) + r" \\"
