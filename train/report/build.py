"""The report of a workspace: all finished runs in one page that opens offline, tables and figures beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from pathseg.store.runtime.printable import printable
from pathseg.train.metrics.object import OBJECT_DEFINITIONS
from pathseg.train.metrics.pixel import DEFINITIONS
from pathseg.train.report.drawn_figures import INDEX, DrawnFigures
from pathseg.train.report.figures import Figure
from pathseg.train.report.paper_scores import PAPER, PAPER_LINK
from pathseg.train.report.prediction_images import Stores
from pathseg.train.report.run_page import SHEET_ROWS, RunPage, run_page
from pathseg.train.report.sections import (
    SWEEP_GROUPS,
    ComparableRuns,
    Section,
    comparable_runs,
    section,
    untrained_warning,
)
from pathseg.train.report.staged_folder import StagedFolder
from pathseg.train.report.table_formats import Table, markdown_text
from pathseg.train.report.tables import SETTINGS
from pathseg.train.runs.commands import NOT_RECORDED
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import list_runs

if TYPE_CHECKING:
    import pandas as pd

IMAGES_PER_RUN = 12  # test images shown of one run
IMAGES_PER_PAGE = 48  # of all runs together: at some 0.2 MB each the page stays near 10 MB
# files of a report: what an earlier report wrote and this one does not is removed
FIGURES = ("curves", "images", "comparison", "sidebyside", "mixing", *(stem for _, stem in SWEEP_GROUPS.values()))
TABLES = ("table-*.csv", "table-*.tex", "images-*.csv", "images-*.tex")
OWNED = (
    *(f"{name}-*.png" for name in FIGURES), "curves-*.svg", "comparison-*.svg", "images-*.jpg", "sidebyside-*.jpg",
    *TABLES, "tables.md", INDEX, "index.html",
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """The content of index.html.

    warning: on untrained models, may be empty. unscored: runs without images of the quoted test split, which are in no
    table. unfinished, damaged: a line for each run not shown.
    """

    workspace: str
    sections: tuple[Section, ...]
    warning: str
    unfinished: tuple[str, ...]
    unscored: tuple[RunPage, ...]
    damaged: tuple[str, ...]

    @property
    def title(self) -> str:
        """The heading of the page, with the names of the data sets."""
        names = ", ".join(dict.fromkeys(section.title for section in self.sections))
        return f"Segmentation report: {names or 'no scored runs'}"

    @property
    def figures(self) -> Iterator[Figure]:
        """All figures that have a file beside the page."""
        for one in self.sections:
            yield from one.figures
        yield from (run.curves for run in self.unscored if run.curves is not None)


@dataclass(frozen=True)
class Report:
    """The path of the page, the main table as text, lines on the runs that could not be read, all tables.

    tables: name of a CSV file without `.csv` -> its table.
    """

    path: Path
    table: str
    damaged: tuple[str, ...]
    tables: dict[str, Table]

    @cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables as data frames, by the same names."""
        return {name: table.frame() for name, table in self.tables.items()}


def build_report(workspace: Path | str) -> Report:
    """Write `report/` of a workspace: index.html (self-contained), tables.md, each table as .csv and .tex, the figures.

    The same runs and measurements of extractions give the same bytes. A damaged run is named in the page and in
    `damaged`, an unfinished one in the page; pictures need the stores, all else does not. An older report stays as it
    is until the new one is whole. Runs without test images are shown without scores. Raises ValueError when no run is
    finished.
    """
    workspace = Path(workspace)
    drawn = DrawnFigures(workspace / "report")
    page = collect_page(workspace, drawn)
    tables = {f"table-{one.stem}-{table.name}": table for one in page.sections for table in one.tables}
    tables |= {table.name: table for one in page.sections for run in one.runs for table in run.image_tables}
    with StagedFolder(workspace / "report", owned=OWNED) as staged:
        staged.add("tables.md", markdown(page).encode())
        for name, table in tables.items():
            staged.add(f"{name}.csv", table.csv().encode())
            staged.add(f"{name}.tex", table.latex().encode())
        for figure in page.figures:
            staged.add(figure.file, figure.content)
        staged.add(INDEX, drawn.index())
        staged.add("index.html", html(page).encode())
        staged.publish()
    return Report(
        path=staged.folder / "index.html",
        table=_terminal_text(page),
        damaged=page.damaged,
        tables=tables,
    )


def collect_page(workspace: Path, drawn: DrawnFigures) -> Page:
    """Read all runs of a workspace, draw their figures and fill the tables. Raises ValueError without finished runs.

    drawn: the figures of the last report, of which those that show the same are taken.
    """
    runs, unfinished, damaged = _read_runs(workspace)
    finished = [run for run in runs if run.scored]
    if not runs:
        why = f" ({damaged[0]})" if damaged else f" ({len(unfinished)} unfinished)" if unfinished else ""
        raise ValueError(f"no finished run under {workspace / 'heads'}{why}; run pathseg train-head first")
    groups, stores = comparable_runs(finished), Stores()
    rows = _rows_per_run(groups)
    sections = tuple(
        section(group, stores, drawn, order=order, rows=rows, workspace=workspace)
        for order, group in enumerate(groups, 1)
    )
    unscored = tuple(run_page(run, stores, drawn, rows=0, workspace=workspace) for run in runs if not run.scored)
    return Page(str(workspace), sections, untrained_warning(runs), unfinished, unscored, damaged)


def html(page: Page) -> str:
    """Write the page as one HTML file that loads nothing."""
    script = _template("report.js")
    return _environment().get_template("report.html").render(
        page=page, script=script, script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        definitions=DEFINITIONS, object_definitions=OBJECT_DEFINITIONS, not_recorded=NOT_RECORDED, paper=PAPER,
        paper_link=PAPER_LINK,
    )  # fmt: skip


@cache  # with its compiled templates, which take longer to compile than to fill in
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_for_the_page,
    )  # fmt: skip


def markdown(page: Page) -> str:
    """Write the tables of the page, its summaries and the definitions of the metrics."""
    blocks = [f"# {markdown_text(page.title)}", page.warning]
    for one in page.sections:
        blocks += [
            f"## {markdown_text(one.title)}",
            markdown_text(one.summary),
            *(table.markdown() for table in one.tables),
        ]
    listed = {
        "Unfinished runs": page.unfinished,
        "Runs without test images": [f"{run.name}: nothing was scored. {run.facts}" for run in page.unscored],
        "Damaged runs": page.damaged,
    }  # fmt: skip
    for name, lines in listed.items():
        blocks += [f"## {name}", "\n".join(f"* {markdown_text(line)}" for line in lines)] if lines else []
    for name, definitions in (("Metrics", DEFINITIONS), ("Object metrics", OBJECT_DEFINITIONS)):
        blocks += [f"## {name}", "\n".join(f"* **{term}**: {text}" for term, text in definitions.items())]
    blocks.append(f"Reported scores: {PAPER}, {PAPER_LINK}")
    return "\n\n".join(block.strip() for block in blocks if block) + "\n"


def _read_runs(workspace: Path) -> tuple[list[FinishedRun], tuple[str, ...], tuple[str, ...]]:
    """The finished runs, a line on each unfinished one, a line on each that cannot be read."""
    finished, unfinished, damaged = [], [], []
    for folder in list_runs(workspace):
        try:
            if folder.finished:
                run = FinishedRun.read(folder)
                folder.require_unchanged(folder.weights.name, folder.last_weights.name)
                finished.append(run)
            else:
                epochs = folder.read_config().settings.epochs
                unfinished.append(f"{folder.name}: {len(folder.read_history())} of {epochs} epochs")
        except (ValueError, OSError) as e:
            damaged.append(str(e))
    return finished, tuple(unfinished), tuple(damaged)


def _rows_per_run(groups: Sequence[ComparableRuns]) -> dict[str, int]:
    """Run name -> number of test images to show; where there are many runs, the best of each group alone have some."""
    by_rank = zip_longest(*(group.runs for group in groups))
    runs = [run for rank in by_rank for run in rank if run is not None]
    rows = max(SHEET_ROWS, min(IMAGES_PER_RUN, IMAGES_PER_PAGE // max(1, len(runs))))
    return {run.name: rows for run in runs[: IMAGES_PER_PAGE // rows]}


def _terminal_text(page: Page) -> str:
    texts = []
    for one in page.sections:
        texts += [one.systems[0].plain(), one.results[0].plain(("parameters", "epochs (best)"), lift=SETTINGS[1:])]
    if page.unscored and not page.sections:
        names = ", ".join(run.name for run in page.unscored)
        texts.append(f"nothing was scored: no test images in the stores of {names}; the page shows how they trained")
    return "\n\n".join([*texts, page.warning] if page.warning else texts)


def _for_the_page(value: Any) -> Any:
    """Keep control letters in names from the page; markup is ours."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _template(name: str) -> str:
    return resources.files("pathseg.train.report").joinpath("templates", name).read_text(encoding="utf-8")
