"""The section of one data set: its tables, its comparison, its ablations, an article for each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathseg.train.report import figures
from pathseg.train.report.bootstrap_tables import uncertainty_tables
from pathseg.train.report.gallery import Stores
from pathseg.train.report.image_encoding import uri
from pathseg.train.report.paper_scores import cited_scores
from pathseg.train.report.paper_tables import systems_table, tissues_table
from pathseg.train.report.run_page import article_of
from pathseg.train.report.side_by_side import side_by_side
from pathseg.train.report.staged_folder import Edition
from pathseg.train.report.summary import data_facts, summary
from pathseg.train.report.sweep_figures import draw
from pathseg.train.report.sweep_tables import cost_table, seeds_table, sentence, sweep_table
from pathseg.train.report.sweeps import AXES, Axis, Sweep, sweeps
from pathseg.train.report.systems import System, systems
from pathseg.train.report.tables import (
    Table,
    by_dice,
    cited_rates,
    confusion_table,
    number,
    objects_table,
    per_class,
    results,
)
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import natural_order

SWEEPS_SHOWN = 6  # over each setting, those with most values; tables.md has all
# heading of the sweeps over each setting, and what their picture files are called
ABLATIONS: dict[Axis, tuple[str, str]] = {
    "t": ("Timestep (as the paper's Figure 4)", "timesteps"),
    "blocks": ("Blocks (as the paper's Figure 5)", "blocks"),
    "lr": ("Learning rate (as the paper's Table 5)", "rates"),
}


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


def group_runs(runs: Sequence[FinishedRun]) -> tuple[Group, ...]:
    """Put runs of one data set, class list and quoted split together, in the order of the data sets' names."""
    found: dict[tuple[str, tuple[str, ...], str], list[FinishedRun]] = {}
    for run in runs:
        found.setdefault((str(run.data["dataset"]), tuple(run.data["classes"]), run.test_split), []).append(run)
    return tuple(Group(*key, tuple(by_dice(members, key[2]))) for key, members in sorted(found.items()))


def section_of(
    group: Group, edition: Edition, stores: Stores, *, order: int, rows: dict[str, int], workspace: Path
) -> dict[str, Any]:
    """What the template shows of a group of runs, its pictures added to the edition; rows: pictures of each run."""
    title = {"glas": "GlaS", "bcss": "BCSS"}.get(group.dataset, group.dataset)
    place = f"{order}-{group.dataset}"
    comparison, alt = _comparison(group, title)
    edition.add(f"comparison-{place}.png", comparison)
    swept, found = sweeps(group.runs), systems(group.runs)
    rated = any(sweep.axis == "lr" for sweep in swept)  # its table brings the paper's rates along
    return {
        "id": f"data-{order}",
        "place": place,
        "title": title,
        "facts": data_facts(group.runs[0]),
        "summary": summary(group.runs, title),
        "key_figures": _key_figures(group.runs[0]),
        **_tables(group, found, title),
        "comparison": {"uri": uri(comparison, "png"), "alt": alt},
        "side_by_side": _side_by_side(found, edition, stores, title, place),
        "cited_rates": None if rated else cited_rates(group.dataset),
        "seeds": seeds_table(group.runs, title),
        "ablations": _ablations(swept, edition, title, place),
        "cost": cost_table(group.runs, title),
        "legend": figures.legend(group.classes, group.runs[0].data["ignore"]),
        "runs": [
            article_of(run, edition, stores, rows=rows.get(run.name, 0), workspace=workspace) for run in group.runs
        ],
    }


def tables_of(section: dict[str, Any]) -> list[tuple[str, Table]]:
    """All tables of a section but those of single images, in order, each with a name for its files."""
    named: list[tuple[str, Table | None]] = [(f"systems-{split}", table) for split, table in section["systems"]]
    named += [(f"results-{split}", table) for split, table in section["results"]]
    named += [(f"objects-{split}", table) for split, table in section["objects"]]
    for split, tables in section["uncertainty"]:
        named += [(f"uncertainty-{split}-{n}", table) for n, table in enumerate(tables, 1)]
    named += [("seeds", section["seeds"])]
    named += [(f"{one['name']}-{n}", table) for one in section["ablations"] for n, table in enumerate(one["tables"], 1)]
    named += [("rates-cited", section["cited_rates"]), ("tissues", section["tissues"])]
    named += [(f"classes-{split}", table) for split, table in section["per_class"]]
    named += [(f"confusion-{n}", table) for n, table in enumerate(section["confusions"], 1)]
    named += [("cost", section["cost"])]
    return [(name, table) for name, table in named if table is not None]


def image_tables_of(section: dict[str, Any]) -> list[tuple[str, Table]]:
    """The tables of single images of each run, each with a name for its files."""
    return [(f"images-{run['name']}-{split}", table) for run in section["runs"] for split, table in run["per_image"]]


def _tables(group: Group, found: Sequence[System], title: str) -> dict[str, Any]:
    """The tables of scores: pairs of a test part and its table, the quoted part first."""
    runs, parts, quoted = group.runs, group.splits, group.quoted
    scored = [split for split in parts if any(split in run.parts for one in found for run in one.repeat.runs)]
    objects = [(split, objects_table(runs, split, title)) for split in parts]
    return {
        "systems": [(split, systems_table(found, split, title)) for split in scored],
        "results": [(split, results(runs, split, _caption(split, quoted, title))) for split in parts],
        "objects": [(split, table) for split, table in objects if table is not None],
        "uncertainty": [(split, made) for split in parts if (made := uncertainty_tables(runs, split, title, found))],
        "per_class": [(split, per_class(runs, split, f"Classes on {split}, {title}")) for split in parts],
        "tissues": tissues_table(found, quoted, title),
        "confusions": [table for one in found if (table := confusion_table(one.run, quoted)) is not None],
    }


def _side_by_side(
    found: Sequence[System], edition: Edition, stores: Stores, title: str, place: str
) -> dict[str, str] | None:
    """The figure of all systems' predictions, written beside the page too; None where there are no pictures."""
    made = side_by_side(found, stores, title)
    if made is None:
        return None
    edition.add(f"sidebyside-{place}.png", made.png)
    text = "; ".join(made.shown)
    return {"uri": uri(made.png, "png"), "alt": f"{title}: image, ground truth, predictions", "text": text}


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
            views.append({"name": name, "heading": heading, "sweeps": shown, "tables": tables, "axis": AXES[axis]})
    return views


def _swept(sweep: Sweep, title: str, edition: Edition, name: str) -> dict[str, str] | None:
    """A sweep's figure, written beside the page too; None where its table says all."""
    picture = draw(sweep, title)
    if picture is None:
        return None
    edition.add(name, picture)
    return {
        "uri": uri(picture, "png"),
        "alt": f"{title}: scores by {AXES[sweep.axis]}; numbers in the table below",
        "text": sentence(sweep, title),
    }
