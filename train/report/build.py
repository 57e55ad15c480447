"""All runs of a workspace in one page that opens anywhere: tables, curves, pictures, definitions, settings."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

from pathseg.train.metrics.object import OBJECT_DEFINITIONS
from pathseg.train.metrics.pixel import DEFINITIONS
from pathseg.train.report.gallery import Stores
from pathseg.train.report.paper_scores import PAPER, PAPER_LINK
from pathseg.train.report.run_page import SHEET_ROWS
from pathseg.train.report.sections import ABLATIONS, Group, group_runs, image_tables_of, section_of, tables_of
from pathseg.train.report.staged_folder import Edition
from pathseg.train.report.summary import NOT_RECORDED, untrained_warning
from pathseg.train.report.tables import SETTINGS
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder, list_runs

ROWS_PER_RUN = 12  # test images shown of one run
ROWS_PER_PAGE = 48  # of all runs together: at some 0.2 MB a row the page stays near 10 MB
# what a report writes; what of it an earlier report wrote and this one does not is removed
PICTURES = ("curves", "images", "comparison", "sidebyside", *(name for _, name in ABLATIONS.values()))
TABLES = ("table-*.csv", "table-*.tex", "images-*.csv", "images-*.tex")
OURS = (*(f"{name}-*.png" for name in PICTURES), *TABLES, "tables.md", "index.html")


@dataclass(frozen=True)
class Report:
    """Where the page is, the main table as text for a terminal, and the runs that could not be read (with reasons)."""

    path: Path
    table: str
    damaged: tuple[str, ...]


def build_report(workspace: Path | str) -> Report:
    """Write `report/` of a workspace: index.html (self-contained), tables.md, each table as .csv and .tex, the figures.

    The same runs give the same bytes. A damaged run is named in the page and in `damaged`, an unfinished one in the
    page; pictures need the stores, all else does not. An older report stays as it is until the new one is whole.
    Raises ValueError when no run is finished.
    """
    workspace = Path(workspace)
    finished, unfinished, damaged = _collect(workspace)
    if not finished:
        why = f" ({damaged[0]})" if damaged else f" ({len(unfinished)} unfinished)" if unfinished else ""
        raise ValueError(f"no finished run under {workspace / 'heads'}{why}; run pathseg train-head first")
    with Edition(workspace / "report", ours=OURS) as edition:
        page = _page(group_runs(finished), edition, workspace)
        page |= {"warning": untrained_warning(finished), "unfinished": unfinished, "damaged": damaged}
        edition.add("tables.md", _markdown(page).encode())
        for section in page["sections"]:
            named = [(f"table-{section['place']}-{name}", table) for name, table in tables_of(section)]
            for name, table in (*named, *image_tables_of(section)):
                edition.add(f"{name}.csv", table.csv().encode())
                edition.add(f"{name}.tex", table.latex().encode())
        edition.add("index.html", _environment().get_template("report.html").render(page).encode())
        edition.publish()
    texts = []
    for section in page["sections"]:
        texts.append(section["systems"][0][1].plain())
        texts.append(section["results"][0][1].plain(("parameters", "epochs (best)"), lift=SETTINGS[1:]))
    texts += [page["warning"]] if page["warning"] else []
    return Report(path=edition.folder / "index.html", table="\n\n".join(texts), damaged=damaged)


def _page(groups: Sequence[Group], edition: Edition, workspace: Path) -> dict[str, Any]:
    """What the template shows of the finished runs, their pictures added to the edition."""
    stores, ranks = Stores(), zip_longest(*(group.runs for group in groups))
    runs = [run for rank in ranks for run in rank if run is not None]  # the best of each group first
    rows = max(SHEET_ROWS, min(ROWS_PER_RUN, ROWS_PER_PAGE // len(runs)))
    pictured = {run.name: rows for run in runs[: ROWS_PER_PAGE // rows]}
    sections = [
        section_of(group, edition, stores, order=i, rows=pictured, workspace=workspace)
        for i, group in enumerate(groups, 1)
    ]
    script = _read("report.js")
    return {
        "script": script, "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": "Segmentation report: " + ", ".join(dict.fromkeys(section["title"] for section in sections)),
        "sections": sections, "definitions": DEFINITIONS, "object_definitions": OBJECT_DEFINITIONS,
        "paper": PAPER, "paper_link": PAPER_LINK,
        "workspace": str(workspace), "not_recorded": NOT_RECORDED,
    }  # fmt: skip


def _collect(workspace: Path) -> tuple[list[FinishedRun], tuple[str, ...], tuple[str, ...]]:
    finished, unfinished, damaged = [], [], []
    for folder in list_runs(workspace):
        try:
            if folder.finished:
                finished.append(FinishedRun.read(folder))
            else:
                unfinished.append(_unfinished(folder))
        except (ValueError, OSError) as e:
            damaged.append(str(e))
    return finished, tuple(unfinished), tuple(damaged)


def _unfinished(folder: RunFolder) -> str:
    head = folder.read_config().get("head")
    epochs = head.get("epochs") if isinstance(head, dict) else None
    return f"{folder.name}: {len(folder.read_history())} of {epochs or 'an unknown number of'} epochs"


def _markdown(page: dict[str, Any]) -> str:
    parts = [f"# {page['title']}", page["warning"]]
    for section in page["sections"]:
        parts += [f"## {section['title']}", section["summary"]]
        parts += [table.markdown() for _, table in tables_of(section)]
    for name, lines in (("Unfinished runs", page["unfinished"]), ("Damaged runs", page["damaged"])):
        parts += [f"## {name}", "\n".join(f"* {line}" for line in lines)] if lines else []
    parts += ["## Metrics", "\n".join(f"* **{name}**: {text}" for name, text in DEFINITIONS.items())]
    parts += ["## Object metrics", "\n".join(f"* **{name}**: {text}" for name, text in OBJECT_DEFINITIONS.items())]
    parts += [f"Cited figures: {page['paper']}, {page['paper_link']}"]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _read(name: str) -> str:
    return resources.files("pathseg.train.report").joinpath("templates", name).read_text(encoding="utf-8")
