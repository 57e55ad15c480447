"""The section of the page on one data set: summary, tables, figures, sweeps and its runs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathseg.store.blocks import format_blocks
from pathseg.store.key import Preprocessing
from pathseg.train.colours import class_colours
from pathseg.train.config import BaselineConfig
from pathseg.train.report import figures
from pathseg.train.report.drawn_figures import DrawnFigures
from pathseg.train.report.figures import Figure
from pathseg.train.report.paper_scores import paper_scores
from pathseg.train.report.prediction_images import Legend, Stores, compare_systems
from pathseg.train.report.run_page import RunPage, run_page
from pathseg.train.report.sheets import sheet
from pathseg.train.report.svg_figures import DiceOfRun, comparison
from pathseg.train.report.sweeps import (
    AXES,
    Axis,
    Sweep,
    distinct_settings,
    features_label,
    find_repeats,
    find_sweeps,
    is_untrained,
    seeds_label,
    t_label,
    training_images,
    untrained_models,
)
from pathseg.train.report.systems import System, find_systems
from pathseg.train.report.table_formats import Table, score
from pathseg.train.report.tables import (
    by_dice,
    class_table,
    confusion_table,
    cost_table,
    interval_tables,
    layer_weight_spreads,
    mixing_table,
    object_table,
    paper_rates_table,
    results_table,
    seeds_table,
    sweep_table,
    systems_table,
    tissue_table,
)
from pathseg.train.runs.finished_run import FinishedRun, sources_text
from pathseg.train.runs.folder import natural_order

SWEEPS_SHOWN = 6  # over each setting, those with most values; tables.md has all
# heading of the sweeps over each setting, and the stem of their files
SWEEP_GROUPS: dict[Axis, tuple[str, str]] = {
    "t": ("Timestep (as the paper's Figure 4)", "timesteps"),
    "blocks": ("Blocks (as the paper's Figure 5)", "blocks"),
    "lr": ("Learning rate (as the paper's Table 5)", "rates"),
    "train_images": ("Number of training images", "images"),
}
UNKNOWN_PATIENTS = "not known (no Grade.csv): validation images may share patients with training images"
CONDITIONS = {"ssl": "conditioned on the SSL embedding", "none": "unconditional"}


@dataclass(frozen=True)
class ComparableRuns:
    """Finished runs of one data set, one list of classes and one quoted test split, the highest Dice on it first."""

    dataset: str
    classes: tuple[str, ...]
    test_split: str
    runs: tuple[FinishedRun, ...]

    @property
    def title(self) -> str:
        """The name of the data set as its authors write it."""
        return {"glas": "GlaS", "bcss": "BCSS"}.get(self.dataset, self.dataset)

    @property
    def splits(self) -> tuple[str, ...]:
        """The test splits that were scored, the quoted one first."""
        names = sorted({split for run in self.runs for split in run.metrics.splits}, key=natural_order)
        return tuple(sorted(names, key=lambda name: name != self.test_split))


@dataclass(frozen=True)
class SweepView:
    """One sweep as a table, and as a figure where it has one; `fixed`: the settings that its runs share, in words."""

    fixed: str
    table: Table
    figure: Figure | None


@dataclass(frozen=True)
class SweepGroup:
    """The sweeps over one setting: those that the page shows, and the tables of the others."""

    heading: str
    setting: str
    shown: tuple[SweepView, ...]
    more: tuple[Table, ...]


@dataclass(frozen=True)
class Section:
    """What the page shows of comparable runs; `stem` is part of the names of its files.

    Of the tables by test split, that of the quoted one comes first. key_scores: name and value of the best run's.
    """

    id: str
    stem: str
    title: str
    summary: str
    key_scores: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    legend: Legend
    systems: tuple[Table, ...]
    side_by_side: Figure | None
    tissues: Table | None
    results: tuple[Table, ...]
    comparison: Figure
    objects: tuple[Table, ...]
    intervals: tuple[Table, ...]
    seeds: Table | None
    sweeps: tuple[SweepGroup, ...]
    classes: tuple[Table, ...]
    confusions: tuple[Table, ...]
    paper_rates: Table | None
    cost: Table | None
    runs: tuple[RunPage, ...]

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables but those of single images, in the order of tables.md."""
        swept = [table for group in self.sweeps for table in (*(view.table for view in group.shown), *group.more)]
        found = (
            *self.systems, *self.results, *self.objects, *self.intervals, self.seeds, *swept, self.paper_rates,
            self.tissues, *self.classes, *self.confusions, self.cost,
        )  # fmt: skip
        return tuple(table for table in found if table is not None)

    @property
    def figures(self) -> Iterator[Figure]:
        """All figures that have a file beside the page."""
        found = [self.comparison, self.side_by_side]
        found += [view.figure for group in self.sweeps for view in group.shown]
        found += [figure for run in self.runs for figure in (run.curves, run.sheet)]
        return (figure for figure in found if figure is not None)


def comparable_runs(runs: Sequence[FinishedRun]) -> tuple[ComparableRuns, ...]:
    """Group runs by data set, class list and quoted split, in the order of the data sets' names."""
    found: dict[tuple[str, tuple[str, ...], str], list[FinishedRun]] = {}
    for run in runs:
        found.setdefault((run.data.dataset, run.data.classes, run.metrics.test_split), []).append(run)
    return tuple(ComparableRuns(*key, tuple(by_dice(members, key[2]))) for key, members in sorted(found.items()))


def section(
    group: ComparableRuns, stores: Stores, drawn: DrawnFigures, *, order: int, rows: Mapping[str, int], workspace: Path
) -> Section:  # fmt: skip
    """Collect what the page shows of comparable runs.

    order: the section's number, from 1. rows: run name -> number of test images to show, none where it is missing.
    """
    runs, title, stem = group.runs, group.title, f"{order}-{group.dataset}"
    swept, systems = find_sweeps(runs), find_systems(runs)
    scored = [split for split in group.splits if any(split in run.metrics.splits for one in systems
                                                     for run in one.repeats.runs)]  # fmt: skip
    objects = (object_table(runs, split, title=title) for split in group.splits)
    confusions = (
        confusion_table(one.run, group.test_split, name=f"confusion-{number}") for number, one in enumerate(systems, 1)
    )
    rates_shown = any(sweep.axis == "lr" for sweep in swept)  # with the paper's own below
    return Section(
        id=f"data-{order}",
        stem=stem,
        title=title,
        summary=summary(runs, title),
        key_scores=_key_scores(runs[0]),
        facts=data_facts(runs[0]),
        legend=Legend.of(runs[0].data),
        systems=tuple(systems_table(systems, split, title=title, workspace=workspace) for split in scored),
        side_by_side=_side_by_side(systems, stores, drawn, title=title, stem=stem),
        tissues=tissue_table(systems, group.test_split, title=title),
        results=tuple(results_table(runs, split, caption=_caption(group, split)) for split in group.splits),
        comparison=_comparison(group, stem),
        objects=tuple(table for table in objects if table is not None),
        intervals=tuple(
            table for split in group.splits for table in interval_tables(runs, split, title=title, systems=systems)
        ),
        seeds=seeds_table(runs, title=title),
        sweeps=_sweep_groups(swept, _mixing_group(runs, drawn, title, stem), drawn, title=title, stem=stem),
        classes=tuple(class_table(runs, split, title=title) for split in group.splits),
        confusions=tuple(table for table in confusions if table is not None),
        paper_rates=None if rates_shown else paper_rates_table(group.dataset),
        cost=cost_table(runs, title=title),
        runs=tuple(run_page(run, stores, drawn, rows=rows.get(run.name, 0), workspace=workspace) for run in runs),
    )


def summary(ranked: Sequence[FinishedRun], dataset: str) -> str:
    """Return the score of the best run on the quoted split and its worth; `ranked` has the highest Dice first."""
    best = ranked[0]
    split, name = best.test_scores, best.metrics.test_split
    images = f"{split.images} image{'' if split.images == 1 else 's'}"
    where = f"the test images of {dataset}" if name == "test" else f"{name} of {dataset}"
    subject = (
        f"Of {len(ranked)} runs, {best.name} has the highest Dice" if len(ranked) > 1 else f"{best.name} has a Dice"
    )
    sentences = [
        f"{subject} on {where} ({images}): {score(split.scores.dice)}, with mIoU {score(split.scores.miou)} and "
        f"accuracy {score(split.scores.accuracy)}; {_against_constant(best)}.",
        _trained_from(best),
    ]
    if (dice := _paper_dice(best)) is not None:
        sentences.append(f"The paper reports a Dice of {score(dice)} for PathSegDiff (not run here).")
    if len(ranked) > 1:
        sentences.append(_choice_note(ranked))
    return " ".join(sentences)


def untrained_warning(runs: Sequence[FinishedRun]) -> str:
    """Return a warning that names the models with random weights, empty when all are trained."""
    names = sorted({name for run in runs for name in untrained_models(run)})
    if not names:
        return ""
    some = "" if all(is_untrained(run) for run in runs) else " (the rows marked untrained)"
    return (
        f"Model {', '.join(names)} is untrained{some}; random weights: numbers show that the pipeline works, "
        "nothing about pathology"
    )


def data_facts(run: FinishedRun) -> tuple[tuple[str, str], ...]:
    """Return classes, size of the images and number of images in each split, as pairs of name and text."""
    data = run.data
    (height, width), mpp, preprocessing = data.key.size, data.key.mpp, data.key.preprocessing
    steps = "no preprocessing" if preprocessing == Preprocessing() else str(preprocessing)
    scale = "unknown scale" if mpp is None else data.sampling.mpp_text("µm/px")
    counted = [name for code, name in enumerate(data.classes) if code != data.ignore]
    ignored = "" if data.ignore is None else f" (code {data.ignore} is not counted)"
    return (
        ("Classes", ", ".join(counted) + ignored),
        ("Images", f"{width} × {height} px, {scale}, {steps}"),
        ("Splits", ", ".join(f"{name} {len(ids)}" for name, ids in data.images.items())),
        *((("Patients", UNKNOWN_PATIENTS),) if data.dataset == "glas" and not _knows_patients(run) else ()),
        *(
            ("Shared sources", f"{sources_text(count)} both in {name} and in the training or validation images")
            for name, count in data.shared_sources.items()
        ),
    )


def _knows_patients(run: FinishedRun) -> bool:
    return any(image.source is not None for split in run.metrics.splits.values() for image in split.per_image)


def sweep_caption(sweep: Sweep, title: str) -> str:
    """Return the caption of a sweep's figure: images, number of seeds, meaning of mark, bar and dot."""
    first = sweep.runs[0]
    images = len(first.data.images.get("val", ()))
    tested = " or ".join(str(n) for n in sorted({run.test_scores.images for run in sweep.runs}))
    several = any(len(point.runs) > 1 for point in sweep.points)
    bars = (
        f"Large marks are means over seeds (n = {seeds_label(sweep.points)} for each value), bars ± one sample "
        "standard deviation, small dots the single heads."
        if several
        else "One head (one seed) for each value, so the deviation is not known."
    )
    sentences = [
        f"{title}: scores on {images} validation image{'' if images == 1 else 's'} and on the test split "
        f"{first.metrics.test_split} ({tested} images).", bars,
        "Each head kept its best epoch on the validation images, which flatters validation scores a little."
        if images
        else "Without validation images each head kept its last epoch.",
        f"All else equal: {', '.join(sweep.fixed)}.",
    ]  # fmt: skip
    if sweep.untrained:
        sentences.append("The model is untrained (random weights): this shows that the pipeline works, nothing more.")
    return " ".join(sentences)


def _caption(group: ComparableRuns, split: str) -> str:
    quoted = " (the test split that results are quoted on)" if split == group.test_split else ""
    return f"Results on {split}, {group.title}{quoted}"


def _key_scores(best: FinishedRun) -> tuple[tuple[str, str], ...]:
    scores, constant = best.test_scores.scores, best.test_scores.constant
    values = (
        ("Dice", scores.dice), ("mIoU", scores.miou), ("accuracy", scores.accuracy), ("F1", scores.f1),
        (f"Dice of always predicting {constant.class_name}", constant.scores.dice),
    )  # fmt: skip
    return tuple((name, score(value)) for name, value in values)


def _comparison(group: ComparableRuns, stem: str) -> Figure:
    data, constant = group.runs[0].data, group.runs[0].test_scores.constant.scores.dice
    colours = class_colours(data.classes, background=data.background, ignore=data.ignore, own=data.colours)
    counted = [code for code in range(len(data.classes)) if code != data.ignore]
    lines = []
    for run in group.runs:
        scores = run.test_scores.scores
        lines.append(DiceOfRun(run.name, scores.dice, tuple(scores.classes[code].dice for code in counted)))
    dice = _paper_dice(group.runs[0])
    file = f"comparison-{stem}.svg"
    svg = comparison(
        lines, [(data.classes[code], colours[code]) for code in counted], constant=constant,
        paper=None if dice is None else ("PathSegDiff (paper)", dice),
        title=f"Dice on {group.test_split}, {group.title}",
    )  # fmt: skip
    values = ", ".join(f"{line.name} {score(line.dice)}" for line in lines)
    return Figure(file, svg, f"Dice of the runs on {group.test_split}: {values}")


def _side_by_side(
    systems: Sequence[System], stores: Stores, drawn: DrawnFigures, *, title: str, stem: str
) -> Figure | None:
    """The predictions of all systems on the same test images; None where none can be read."""
    rows = compare_systems(systems, stores)
    if not rows:
        return None
    first = systems[0].run
    columns = ("image", "ground truth", *(textwrap.fill(one.name, 22) for one in systems))
    heading = f"{first.metrics.test_split} of {title}, from the worst to the best image"
    file, legend = f"sidebyside-{stem}.jpg", Legend.of(first.data).classes
    jpeg = drawn.file(file, sheet, rows, columns, legend=legend, title=heading)
    runs = "; ".join(f"{one.name}: run {one.run.name}, {one.weights}" for one in systems)
    alt, caption = f"{title}: image, ground truth, predictions", f"As the paper's Figures 2 and 3. {runs}."
    return Figure(file, jpeg, alt, caption)


def _sweep_groups(
    sweeps: Sequence[Sweep], mixing: Sequence[SweepGroup], drawn: DrawnFigures, *, title: str, stem: str
) -> tuple[SweepGroup, ...]:
    groups: list[SweepGroup] = []
    for axis, (heading, name) in SWEEP_GROUPS.items():
        found = [sweep for sweep in sweeps if sweep.axis == axis]
        if not found:
            groups += mixing if axis == "blocks" else []
            continue
        tables = [sweep_table(sweep, name=f"{name}-{number}", title=title) for number, sweep in enumerate(found, 1)]
        if axis == "train_images":  # one figure for all: few images are where models and heads differ most
            made = [_images_figure(found, drawn, title, f"{name}-{stem}.png"), *(None,) * (len(found) - 1)]
        else:
            made = [
                _sweep_figure(sweep, drawn, title, f"{name}-{stem}-{number}.png")
                for number, sweep in enumerate(found[:SWEEPS_SHOWN], 1)
            ]
        shown = tuple(
            SweepView(", ".join(sweep.fixed), table, figure)
            for sweep, table, figure in zip(found[:SWEEPS_SHOWN], tables, made, strict=False)
        )
        groups.append(SweepGroup(heading, AXES[axis], shown, tuple(tables[SWEEPS_SHOWN:])))
        if axis == "blocks":
            groups += mixing
    return tuple(groups)


def _mixing_group(runs: Sequence[FinishedRun], drawn: DrawnFigures, title: str, stem: str) -> list[SweepGroup]:
    """The learned weights of the scalar mixes, to be shown beside the scores of single blocks; empty without any."""
    tables: list[Table] = []
    shown: list[SweepView] = []
    for settings, repeats in find_repeats(runs, at_least=1):
        if not repeats.runs[0].metrics.layer_weights:
            continue
        number, images = len(tables) + 1, training_images(repeats.runs[0])
        table = mixing_table(repeats, settings, name=f"mixing-{number}", title=title)
        tables.append(table)
        if number <= SWEEPS_SHOWN:
            file = f"mixing-{stem}-{number}.png"
            png = drawn.file(file, figures.mixing_figure, layer_weight_spreads(repeats), title)
            several = len(repeats.runs) > 1
            bars = f"mean ± one sample standard deviation over {seeds_label([repeats])}" if several else "one seed"
            caption = f"{title}: weights of a softmax over the layers, learned on {images} training images; {bars}."
            figure = Figure(file, png, f"{title}: learned weights; numbers below", caption)
            shown.append(SweepView(", ".join(settings), table, figure))
    more = tuple(tables[SWEEPS_SHOWN:])
    return [SweepGroup("Learned mixing (beside Figure 5)", "learned weights", tuple(shown), more)] if shown else []


def _sweep_figure(sweep: Sweep, drawn: DrawnFigures, title: str, file: str) -> Figure | None:
    png = drawn.file(file, figures.sweep_figure, sweep, title)
    alt = f"{title}: scores by {AXES[sweep.axis]}; numbers in the table below"
    return None if png is None else Figure(file, png, alt, sweep_caption(sweep, title))


def _images_figure(sweeps: Sequence[Sweep], drawn: DrawnFigures, title: str, file: str) -> Figure:
    """The learning curves of all models and heads: test Dice over the number of training images."""
    first = sweeps[0].runs[0]
    split, images = first.metrics.test_split, len(first.data.images.get("val", ()))
    labels = distinct_settings(sweeps)
    png = drawn.file(file, figures.training_images_figure, sweeps, labels, title)
    several = any(len(point.runs) > 1 for sweep in sweeps for point in sweep.points)
    seeds = seeds_label([point for sweep in sweeps for point in sweep.points])
    caption = (
        f"{title}: Dice on {split} over the number of training images, on a logarithmic scale. "
        + (f"Marks are means over {seeds}, bars ± one sample standard deviation. " if several else "One seed each. ")
        + "The subsets of a seed are nested, and an epoch has as many steps whatever their size. "
        f"The epoch was chosen on {images} validation image{'' if images == 1 else 's'}, "
        "which are annotated too and are not counted."
    )
    return Figure(file, png, f"{title}: Dice over training images of {'; '.join(labels)}", caption)


def _paper_dice(run: FinishedRun) -> float | None:
    """The paper's Dice of PathSegDiff on the quoted split of a run's data set."""
    rows = paper_scores(run.data.dataset, run.metrics.test_split, quoted=run.metrics.test_split)
    return next((row.dice for row in rows if row.method == "PathSegDiff"), None)


def _against_constant(run: FinishedRun) -> str:
    dice, constant = run.test_scores.scores.dice, run.test_scores.constant
    if dice is None or constant.scores.dice is None:
        return f"no value for always predicting {constant.class_name}"
    gain = dice - constant.scores.dice
    base = f"always predicting {constant.class_name} ({constant.scores.dice:.3f})"
    if gain > 0:
        return f"{gain:.3f} above {base}"
    return f"no better than {base}: the head has learned nothing that helps on these images"


def _trained_from(run: FinishedRun) -> str:
    settings, key = run.settings, run.data.key
    if isinstance(settings, BaselineConfig):
        return f"It was trained on the images themselves (first weights: {settings.weights})."
    if len(run.data.sources) > 1:
        random = untrained_models(run)
        weights = f", of which {', '.join(random)} has random weights" if random else ""
        return (
            f"Its features are joined from several stores{weights}: {features_label(run)} at t = {t_label(settings.t)}."
        )
    condition = CONDITIONS.get(key.condition, f"condition {key.condition}")
    if key.diffusers is not None:
        condition = str(key.diffusers)
    elif key.zoom is not None:
        condition = f"{condition}s of its cells at {key.zoom.magnification}"
    weights = " with random weights" if is_untrained(run) else ""
    features = f"blocks {format_blocks(settings.selections[0].blocks)} at t = {settings.t}"
    return f"Its features are those of the model {key.model}{weights}, {condition}, {features}."


def _choice_note(ranked: Sequence[FinishedRun]) -> str:
    """A warning that the best was chosen on test images, with the run that validation Dice would choose."""
    note = "Choosing the best of several runs by their test score flatters it"
    scored = [(dice, run) for run in ranked if (dice := run.best_val_dice) is not None]
    if len(scored) < len(ranked):
        return f"{note}."
    _, chosen = max(scored, key=lambda pair: pair[0])
    if chosen is ranked[0]:
        return f"{note}; validation Dice chooses the same run."
    test_dice = score(chosen.test_scores.scores.dice)
    return f"{note}; validation Dice would choose {chosen.name}, with a test Dice of {test_dice}."
