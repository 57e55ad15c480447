"""All runs of a workspace in one page that opens anywhere: tables, curves, pictures, definitions, settings."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

from pathseg.train import figures
from pathseg.train.ablation_figures import draw
from pathseg.train.ablation_tables import cost_table, seeds_table, sentence, sweep_table
from pathseg.train.ablations import AXES, Axis, Sweep, sweeps
from pathseg.train.cited import PAPER, PAPER_LINK, cited_scores
from pathseg.train.edition import Edition
from pathseg.train.gallery import Lost, Picture, Stores, pictures, spread, worst_first
from pathseg.train.metrics import DEFINITIONS
from pathseg.train.runs import FinishedRun, RunFolder, list_runs, natural_order
from pathseg.train.summary import NOT_RECORDED, commands, data_facts, flat, run_facts, summary, untrained_warning
from pathseg.train.tables import SETTINGS, Table, by_dice, cited_details, number, per_class, per_image, results

ROWS_PER_RUN = 12  # test images shown of one run
ROWS_PER_PAGE = 48  # of all runs together: at some 0.2 MB a row the page stays near 10 MB
SHEET_ROWS = 4  # rows of the picture file of a run: worst to best; a run with fewer has none, the best come first
SWEEPS_SHOWN = 6  # over each setting, those with most values; tables.md has all
# heading of the sweeps over each setting, and what their picture files are called
ABLATIONS: dict[Axis, tuple[str, str]] = {
    "t": ("Timestep (as the paper's Figure 4)", "timesteps"),
    "blocks": ("Blocks (as the paper's Figure 5)", "blocks"),
    "lr": ("Learning rate (as the paper's Table 5)", "rates"),
}
# what a report writes; what of it an earlier report wrote and this one does not is removed
PICTURES = ("curves", "images", "comparison", *(name for _, name in ABLATIONS.values()))
OURS = (*(f"{name}-*.png" for name in PICTURES), "tables.md", "index.html")


@dataclass(frozen=True)
class Report:
    """Where the page is, the main table as text for a terminal, and the runs that could not be read (with reasons)."""

    path: Path
    table: str
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Finished runs that can be compared: one data set, one list of classes, one test split that is quoted.

    The run with the highest Dice on that split comes first.
    """

    dataset: str
    classes: tuple[str, ...]
    quoted: str
    runs: tuple[FinishedRun, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The test parts that were scored, the quoted one first."""
        names = sorted({split for run in self.runs for split in run.parts}, key=natural_order)
        return tuple(sorted(names, key=lambda name: name != self.quoted))


def build_report(workspace: Path | str) -> Report:
    """Write `report/` of a workspace: index.html (self-contained), tables.md and the figures as PNG files.

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
        edition.add("index.html", _environment().get_template("report.html").render(page).encode())
        edition.publish()
    lifted = SETTINGS[1:]
    texts = [section["results"][0].plain(("parameters", "epochs (best)"), lift=lifted) for section in page["sections"]]
    texts += [page["warning"]] if page["warning"] else []
    return Report(path=edition.folder / "index.html", table="\n\n".join(texts), damaged=damaged)


def _page(groups: Sequence[Group], edition: Edition, workspace: Path) -> dict[str, Any]:
    """What the template shows of the finished runs, their pictures added to the edition."""
    stores, ranks = Stores(), zip_longest(*(group.runs for group in groups))
    runs = [run for rank in ranks for run in rank if run is not None]  # the best of each group first
    rows = max(SHEET_ROWS, min(ROWS_PER_RUN, ROWS_PER_PAGE // len(runs)))
    pictured = {run.name: rows for run in runs[: ROWS_PER_PAGE // rows]}
    sections = [
        _section(group, edition, stores, order=i, rows=pictured, workspace=workspace)
        for i, group in enumerate(groups, 1)
    ]
    return {
        "title": "Segmentation report: " + ", ".join(dict.fromkeys(section["title"] for section in sections)),
        "sections": sections, "definitions": DEFINITIONS, "paper": PAPER, "paper_link": PAPER_LINK,
        "panels": figures.PANELS, "workspace": str(workspace), "not_recorded": NOT_RECORDED,
    }  # fmt: skip


def group_runs(runs: Sequence[FinishedRun]) -> tuple[Group, ...]:
    """Put runs of one data set, class list and quoted split together, in the order of the data sets' names."""
    found: dict[tuple[str, tuple[str, ...], str], list[FinishedRun]] = {}
    for run in runs:
        found.setdefault((str(run.data["dataset"]), tuple(run.data["classes"]), run.test_split), []).append(run)
    return tuple(Group(*key, tuple(by_dice(members, key[2]))) for key, members in sorted(found.items()))


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


def _section(
    group: Group, edition: Edition, stores: Stores, *, order: int, rows: dict[str, int], workspace: Path
) -> dict[str, Any]:
    title = {"glas": "GlaS", "bcss": "BCSS"}.get(group.dataset, group.dataset)
    comparison, alt = _comparison(group, title)
    edition.add(f"comparison-{order}-{group.dataset}.png", comparison)
    swept = sweeps(group.runs)
    rated = any(sweep.axis == "lr" for sweep in swept)  # its table brings the paper's rates along
    return {
        "id": f"data-{order}",
        "title": title,
        "facts": data_facts(group.runs[0]),
        "summary": summary(group.runs, title),
        "key_figures": _key_figures(group.runs[0]),
        "results": [results(group.runs, split, _caption(split, group.quoted, title)) for split in group.splits],
        "comparison": {"uri": _uri(comparison, "png"), "alt": alt},
        "per_class": [per_class(group.runs, split, f"Classes on {split}, {title}") for split in group.splits],
        "cited_details": cited_details(group.dataset, with_rates=not rated),
        "seeds": seeds_table(group.runs, title),
        "ablations": _ablations(swept, edition, title, f"{order}-{group.dataset}"),
        "cost": cost_table(group.runs, title),
        "legend": figures.legend(group.classes, group.runs[0].data["ignore"]),
        "runs": [_run(run, edition, stores, rows=rows.get(run.name, 0), workspace=workspace) for run in group.runs],
    }


def _caption(split: str, quoted: str, title: str) -> str:
    return f"Results on {split}, {title}" + (" (the test part that results are quoted on)" if split == quoted else "")


def _key_figures(best: FinishedRun) -> tuple[tuple[str, str], ...]:
    part = best.quoted
    values = (
        ("Dice", part.scores.dice), ("mIoU", part.scores.miou), ("accuracy", part.scores.accuracy),
        ("F1", part.scores.f1), (f"Dice of always answering {part.constant_class}", part.constant.dice),
    )  # fmt: skip
    return tuple((name, number(value)) for name, value in values)


def _comparison(group: Group, title: str) -> tuple[bytes, str]:
    ignore = group.runs[0].data["ignore"]
    colours = figures.class_colours(group.classes, ignore)
    counted = [k for k in range(len(group.classes)) if k != ignore]
    lines = []
    for run in group.runs:
        scores = run.quoted.scores
        lines.append(figures.Comparison(run.name, scores.dice, tuple(scores.classes[k].dice for k in counted)))
    cited = cited_scores(group.dataset, group.quoted, group.quoted)
    paper = next((row.dice for row in cited if row.method == "PathSegDiff"), None)
    picture = figures.comparison(
        lines, [(group.classes[k], colours[k]) for k in counted], constant=group.runs[0].quoted.constant.dice,
        cited=None if paper is None else ("PathSegDiff (cited)", paper), title=f"Dice on {group.quoted}, {title}",
    )  # fmt: skip
    values = ", ".join(f"{line.name} {number(line.dice)}" for line in lines)
    return picture, f"Dice of the runs on {group.quoted}: {values}"


def _ablations(swept: Sequence[Sweep], edition: Edition, title: str, place: str) -> list[dict[str, Any]]:
    """For each setting that was varied a heading, its sweeps with tables and figures, and tables of those left out."""
    views = []
    for axis, (heading, name) in ABLATIONS.items():
        along = [sweep for sweep in swept if sweep.axis == axis]
        if along:
            tables = [sweep_table(sweep, title) for sweep in along]
            shown = [
                {
                    "fixed": sweep.fixed,
                    "table": table,
                    "figure": _swept(sweep, title, edition, f"{name}-{place}-{nth}.png"),
                }
                for nth, (sweep, table) in enumerate(zip(along, tables, strict=True), 1)
                if nth <= SWEEPS_SHOWN
            ]
            views.append({"heading": heading, "sweeps": shown, "tables": tables, "axis": AXES[axis]})
    return views


def _swept(sweep: Sweep, title: str, edition: Edition, name: str) -> dict[str, str] | None:
    """A sweep's figure, written beside the page too; None where its table says all."""
    picture = draw(sweep, title)
    if picture is None:
        return None
    edition.add(name, picture)
    return {
        "uri": _uri(picture, "png"),
        "alt": f"{title}: scores by {AXES[sweep.axis]}; numbers in the table below",
        "text": sentence(sweep, title),
    }


def _run(run: FinishedRun, edition: Edition, stores: Stores, *, rows: int, workspace: Path) -> dict[str, Any]:
    view: dict[str, Any] = {
        "name": run.name, "facts": run_facts(run), "settings": flat(run.config), "commands": commands(run, workspace),
        "trained": run.data["model"]["trained"], "store": run.data["store"], "curves": None,
        "per_image": [per_image(part, f"Images of {split}, worst first") for split, part in run.parts.items()],
    }  # fmt: skip
    if run.history:
        curves = figures.learning_curves(run.history, run.best_epoch, f"{run.name}: learning curves")
        edition.add(f"curves-{run.name}.png", curves)
        alt = f"Learning curves of {run.name} over {run.epochs} epochs; the best is epoch {run.best_epoch}"
        view["curves"] = {"uri": _uri(curves, "png"), "alt": alt}
    return {**view, **_gallery(run, edition, stores, rows)}


def _gallery(run: FinishedRun, edition: Edition, stores: Stores, rows: int) -> dict[str, Any]:
    split, ids = run.test_split, worst_first(run, run.test_split)
    view: dict[str, Any] = {"split": split, "images": len(ids), "rows": [], "lost": [], "no_store": ""}
    store = stores.get(run.data["store"]) if rows else f"they are made for the best {ROWS_PER_PAGE // SHEET_ROWS} runs"
    if isinstance(store, str):
        return {**view, "no_store": store}
    shown, filed = ids[:rows], spread(ids, SHEET_ROWS)
    wanted = list(dict.fromkeys([*shown, *filed]))
    made: dict[str, Picture] = {}
    for one in pictures(run, split, wanted, store):
        if isinstance(one, Lost):
            view["lost"].append(one)
            continue
        made[one.id] = one
        if one.id in shown:
            view["rows"].append(_row(one))
    for_file = [(f"{name}\n{made[name].caption}", made[name].panels) for name in filed if name in made]
    if for_file:
        colours = figures.legend(run.data["classes"], run.data["ignore"])
        title = f"{run.name}: images of {split}, from the worst to the best"
        edition.add(f"images-{run.name}.png", figures.sheet(for_file, colours, title))
    return view


def _row(picture: Picture) -> dict[str, Any]:
    alts = (f"{picture.id}: {name}" + (f", {picture.errors}" if name == "errors" else "") for name in figures.PANELS)
    uris = (_uri(figures.jpeg(panel), "jpeg") for panel in picture.panels)
    images = [{"uri": uri, "alt": alt} for uri, alt in zip(uris, alts, strict=True)]
    return {"id": picture.id, "caption": picture.caption, "errors": picture.errors, "images": images}


def _markdown(page: dict[str, Any]) -> str:
    parts = [f"# {page['title']}", page["warning"]]
    for section in page["sections"]:
        parts += [f"## {section['title']}", section["summary"]]
        tables: list[Table] = [*section["results"], *([section["seeds"]] if section["seeds"] else [])]
        tables += [table for one in section["ablations"] for table in one["tables"]]
        tables += [*section["per_class"], *section["cited_details"], *([section["cost"]] if section["cost"] else [])]
        parts += [table.markdown() for table in tables]
    for name, lines in (("Unfinished runs", page["unfinished"]), ("Damaged runs", page["damaged"])):
        parts += [f"## {name}", "\n".join(f"* {line}" for line in lines)] if lines else []
    parts += ["## Metrics", "\n".join(f"* **{name}**: {text}" for name, text in page["definitions"].items())]
    parts += [f"Cited figures: {page['paper']}, {page['paper_link']}"]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _environment() -> jinja2.Environment:
    def read(name: str) -> str:
        return resources.files("pathseg.train").joinpath("templates", name).read_text(encoding="utf-8")

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(read), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
