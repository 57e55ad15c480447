"""One table in every format: data frame, CSV, Markdown, LaTeX and plain text; the template of the page writes HTML."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pathseg.store.runtime.printable import printable

if TYPE_CHECKING:
    import pandas as pd

DASH = "–"  # where there is no value
MINUS = "−"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "＝", "＋", "－", "＠")  # a spreadsheet evaluates text that begins so


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (ddof 1, None for one value) of `count` values out of `total` runs."""

    mean: float
    deviation: float | None
    count: int
    total: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return the spread of the values that are not None, None where all are."""
        every = list(values)
        known = [value for value in every if value is not None]
        if not known:
            return None
        deviation = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known), deviation, len(known), len(every))


@dataclass(frozen=True)
class Interval:
    """A confidence interval, with the value that it is of where both stand in one cell."""

    low: float
    high: float
    value: float | None = None


Value = str | int | float | Spread | Interval | None
RowKind = Literal["run", "constant", "paper"]


def score(value: float | None) -> str:
    """Write a score with three decimals, None as a dash."""
    return DASH if value is None else f"{value:.3f}"


def signed(value: float) -> str:
    """Write a difference with its sign and three decimals."""
    return f"{value:+.3f}".replace("-", MINUS)


def count(value: float) -> str:
    """Write a whole number with thousands separators."""
    return f"{value:,}"


@dataclass(frozen=True)
class Column:
    """The name of a column, how its numbers are written for people, and whether it holds words (aligned left)."""

    name: str
    number: Callable[[Any], str] = score
    words: bool = False

    def text(self, value: Value) -> str:
        """Write a value for people."""
        match value:
            case None:
                return DASH
            case str():
                return _one_line(value)
            case Spread():
                text = self.number(value.mean)
                text += "" if value.deviation is None else f" ± {self.number(value.deviation)}"
                return text if value.count == value.total else f"{text} (n = {value.count})"
            case Interval():
                bounds = f"[{self.number(value.low)}, {self.number(value.high)}]"
                return bounds if value.value is None else f"{self.number(value.value)} {bounds}"
            case _:
                return self.number(value)


def words(name: str) -> Column:
    """Return a column of words; numbers in it are written as they are."""
    return Column(name, str, words=True)


@dataclass(frozen=True)
class Row:
    """One row: a run (or several) of the workspace, the constant prediction, or what the paper reports.

    best: whether it has the highest Dice.
    """

    kind: RowKind
    values: tuple[Value, ...]
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A row as text cells."""

    kind: RowKind
    best: bool
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of typed values; `name` is for its files.

    not_applicable: in rows that are no runs, so many columns after the second have no meaning; HTML leaves them out.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    not_applicable: int = 0

    @cached_property
    def header(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(_one_line(column.name) for column in self.columns)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The rows as people read them."""
        return tuple(
            Line(
                row.kind,
                row.best,
                tuple(column.text(value) for column, value in zip(self.columns, row.values, strict=True)),
            )
            for row in self.rows
        )

    def frame(self) -> pd.DataFrame:
        """Return the values as a data frame, in full precision, missing where there is none.

        A mean over seeds has three columns (its name, `sd`, `n`), an interval two (`low`, `high`) besides its value.
        """
        import pandas as pd

        columns = list(self._numbers())
        frame = pd.concat([pd.Series(values, dtype=_dtype(values)) for _, values in columns], axis=1)
        frame.columns = pd.Index([name for name, _ in columns])
        return frame

    def csv(self) -> str:
        """Write the data frame for programs: numbers in full precision, nothing where there is none.

        Text that a spreadsheet would take for a formula gets a leading apostrophe.
        """
        columns, text = list(self._numbers()), io.StringIO()  # without pandas, which takes ten times as long
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([_no_formula(name) for name, _ in columns])
        writer.writerows(zip(*(_csv_cells(values) for _, values in columns), strict=True))
        return text.getvalue()

    def _numbers(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield name and values of each column of the data frame."""
        for index, name in enumerate(self.header):
            for suffix, values in _components([row.values[index] for row in self.rows]):
                yield name + suffix, values

    def markdown(self) -> str:
        """Write a GitHub table, caption before and notes after it."""
        rule = " | ".join("---" if column.words else "---:" for column in self.columns)
        head, *body = (
            " | ".join(map(markdown_text, line)) for line in (self.header, *(line.cells for line in self.lines))
        )
        rows = "\n".join(f"| {line} |" for line in (head, rule, *body))
        notes = "".join(f"\n\n{markdown_text(note)}" for note in self.notes)
        return f"**{markdown_text(self.caption)}**\n\n{rows}{notes}\n"

    def latex(self) -> str:
        """Write a LaTeX table that needs no package; rules separate kinds of rows, the best row is bold."""
        lines, kind = [], "run"
        for line in self.lines:
            lines += [r"\hline"] if line.kind != kind else []
            lines.append(_latex_line(line.cells, r"\textbf{%s}" if line.best else "%s"))
            kind = line.kind
        notes = "".join(f"\n\\par\\small {_latex(note)}" for note in self.notes)
        alignment = "".join("l" if column.words else "r" for column in self.columns)
        return "\n".join([
            r"\begin{table}", r"\centering", rf"\caption{{{_latex(self.caption)}}}",
            rf"\begin{{tabular}}{{{alignment}}}", r"\hline", _latex_line(self.header, "%s"), r"\hline", *lines,
            r"\hline", rf"\end{{tabular}}{notes}", r"\end{table}", "",
        ])  # fmt: skip

    def plain(self, leave_out: Sequence[str] = (), lift: Sequence[str] = ()) -> str:
        """Write aligned columns for a terminal.

        Columns in `leave_out` are not shown; those in `lift` with one value in all runs stand above the table.
        """
        runs = [line.cells for line in self.lines if line.kind == "run"]
        cells = dict(zip(self.header, zip(*runs, strict=True), strict=True))
        same = {name: cells[name][0] for name in lift if len(set(cells[name])) == 1}
        kept = [i for i, name in enumerate(self.header) if name not in leave_out and name not in same]
        lines = [[line[i] for i in kept] for line in (self.header, *(line.cells for line in self.lines))]
        widths = [max(len(line[i]) for line in lines) for i in range(len(kept))]
        text = [
            "  ".join(
                cell.ljust(width) if self.columns[i].words else cell.rjust(width)
                for i, cell, width in zip(kept, line, widths, strict=True)
            ).rstrip()
            for line in lines
        ]
        common = ["all runs: " + ", ".join(f"{name} {value}" for name, value in same.items())] if same else []
        return "\n".join([self.caption, *common, "", text[0], "-" * max(map(len, text)), *text[1:]])


def _components(values: Sequence[Value]) -> Iterator[tuple[str, list[Any]]]:
    """Yield a suffix of the column's name and plain values, for each number that the cells of a column hold."""
    spread = [value if isinstance(value, Spread) else None for value in values]
    interval = [value if isinstance(value, Interval) else None for value in values]
    if any(spread):
        yield "", [value.mean if isinstance(value, Spread) else value for value in values]
        yield " sd", [one and one.deviation for one in spread]
        yield " n", [one and one.count for one in spread]
    elif any(interval):
        if any(one is not None and one.value is not None for one in interval):
            yield "", [one and one.value for one in interval]
        yield " low", [one and one.low for one in interval]
        yield " high", [one and one.high for one in interval]
    else:
        yield "", [" ".join(value.splitlines()) if isinstance(value, str) else value for value in values]


def _dtype(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    if not known or any(isinstance(value, str) for value in known):
        return "object"
    return "Int64" if all(isinstance(value, int) for value in known) else "float64"


def _csv_cells(values: Sequence[Any]) -> list[Any]:
    """The cells of a column of the data frame as CSV has them: integers among other numbers as these, missing empty."""
    number = float if _dtype(values) == "float64" else _no_formula
    return ["" if value is None or value != value else number(value) for value in values]


def _no_formula(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    return (
        f"'{printable(text)}"
        if text.startswith(FORMULA_STARTS) or text.lstrip().startswith(FORMULA_STARTS)
        else printable(text)
    )


def _one_line(text: str) -> str:
    return printable(" ".join(text.splitlines()))


MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_|$~"} | {"<": "&lt;", "&": "&amp;", "\n": " "})
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", MINUS: "$-$",
    DASH: "--", "<": "$<$", ">": "$>$", "µ": r"$\mu$", "×": r"$\times$", "·": r"$\cdot$", "…": r"\dots{}", "|": "$|$",
    "\n": " ", **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "[": "{[}", "*": "{*}",  # either would be an argument of the \\ before it
})  # fmt: skip


def markdown_text(text: str) -> str:
    """Escape a text for Markdown."""
    return printable(text).translate(MARKDOWN)


def _latex(text: str) -> str:
    return printable(text).translate(LATEX)


def _latex_line(cells: Sequence[str], form: str) -> str:
    return " & ".join(form % _latex(cell) for cell in cells) + r" \\"
