"""The tables of the report: scores of runs, systems, sweeps and seeds, intervals, classes, images, objects, cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import cast

from pathseg.store.blocks import format_blocks
from pathseg.store.format.size import format_bytes
from pathseg.store.runtime.extraction_speed import ExtractionSpeed, read_speed
from pathseg.train.config import HeadConfig
from pathseg.train.metrics.bootstrap import (
    Samples,
    bootstrap_scores,
    describe_method,
    interval,
    paired_difference,
    pooled_score,
)
from pathseg.train.metrics.object import ObjectRule, ObjectScores, ObjectSums, mean_scores
from pathseg.train.metrics.object_tuning import MIN_PX
from pathseg.train.metrics.pixel import Scores
from pathseg.train.report.fairness import fairness_notes
from pathseg.train.report.paper_scores import IOUS, RATES, PaperScores, paper_scores
from pathseg.train.report.sweeps import (
    AXES,
    METRICS,
    Images,
    Metric,
    Repeats,
    Sweep,
    condition_label,
    duplicates,
    find_repeats,
    joined_label,
    layer_label,
    model_label,
    t_label,
    value_label,
)
from pathseg.train.report.systems import System
from pathseg.train.report.table_formats import (
    DASH,
    Column,
    Interval,
    Row,
    Spread,
    Table,
    Value,
    count,
    signed,
    words,
)
from pathseg.train.runs.finished_run import BEST_IS_LAST, FinishedRun, sources_text
from pathseg.train.runs.folder import natural_order
from pathseg.train.runs.record import ObjectSplitScores, SplitScores

CONSTANT = "constant prediction"
SCORES = tuple(Column(name) for name in METRICS.values())
RUN_COLUMNS = (
    words("run"), words("model"), words("condition"), words("t"), words("blocks"), words("head"),
    Column("parameters", count), Column("lr", "{:g}".format), Column("seed", str), Column("epochs (best)", str),
    Column("images", count), *SCORES, Column("Dice − constant", signed),
)  # fmt: skip
SETTINGS = tuple(column.name for column in RUN_COLUMNS[1:11])
SYSTEM_COLUMNS = (
    words("system"), words("weights"), Column("n (seeds)", str), Column("settings tried", count),
    Column("val. images", count),
)  # fmt: skip
COST_COLUMNS = (Column("parameters", count), Column("features a patch", format_bytes))  # of what is trained, is read
SPEED_COLUMN = Column("patches/s", "{:.3g}".format)
UNKNOWN_CHOICE = (None,) * 3  # seeds, settings and validation images of reported rows
OBJECT_SCORES: dict[str, Callable[[float], str]] = {
    "F1": "{:.3f}".format, "Dice": "{:.3f}".format, "Hausdorff, px": "{:.1f}".format,
}  # fmt: skip
OBJECT_COLUMNS = tuple(Column(f"object {name}", number) for name, number in OBJECT_SCORES.items())
TUNED_COLUMNS = tuple(Column(f"tuned object {name}", number) for name, number in OBJECT_SCORES.items())
TISSUES = ("tumor", "stroma", "inflammatory", "necrosis")  # the paper's TUM, STR, LYM, NEC
SWEEP_SCORES: tuple[tuple[Images, Metric], ...] = (
    ("val", "accuracy"), ("val", "miou"), ("val", "dice"), ("test", "miou"), ("test", "dice"),
)  # fmt: skip
SEED_SCORES: tuple[tuple[Images, Metric], ...] = (
    ("val", "dice"), ("test", "accuracy"), ("test", "dice"), ("test", "miou"), ("test", "f1"),
)  # fmt: skip
F1_NOTE = (
    "F1 of ours is scikit-learn's macro F1, which equals the mean Dice. F1 and Dice of the reported rows follow no "
    "single definition: by one they would be equal or F1 the higher in every row, but the paper has both, and "
    "VGG16-FCN8 in Table 2 even has a Dice below its mIoU."
)
AS_PREDICTED = "as predicted"
TUNED_OBJECTS = (
    "Tuned object scores are those after the post-processing that each run chose on its validation images, which the "
    "table of objects names; the other object scores are those without it."
)
CHOICE_OF_OBJECTS = (
    "Chosen on validation images: holes filled or not, then objects under a least size removed (of "
    f"{', '.join(f'{least:,}' for least in MIN_PX)} px of the original image), by the highest mean of pooled object F1 "
    "and pooled object Dice on the images held out of training; test images play no part in it."
)
BEST_IS_MARKED = "The highest mean validation Dice is marked"


def results_table(runs: Sequence[FinishedRun], split: str, *, caption: str) -> Table:
    """All runs that were scored on a test split, highest Dice first, and the constant prediction."""
    ranked = by_dice(runs, split)
    rows = []
    for run in ranked:
        found = run.metrics.splits[split]
        values = (*_settings(run), found.images, *_scores(found.scores), _gain(found))
        rows.append(Row("run", values, run is ranked[0]))
    constants = {(one.constant.class_name, one.images, one.constant.scores): None for one in _splits(ranked, split)}
    unset = (None,) * (len(SETTINGS) - 2)
    for name, images, scores in constants:
        difference = None if scores.dice is None else 0.0
        rows.append(Row("constant", (f"always {name}", CONSTANT, *unset, images, *_scores(scores), difference)))
    return Table(
        f"results-{split}", caption, RUN_COLUMNS, tuple(rows), _comparison_notes(ranked, split),
        not_applicable=len(unset),
    )  # fmt: skip


def class_table(runs: Sequence[FinishedRun], split: str, *, title: str) -> Table:
    """Every class of every run on a test split; F1 of one class is its Dice."""
    rows = [
        Row("run", (run.name, name, scores.pixels, scores.dice, scores.iou, scores.precision, scores.recall))
        for run in by_dice(runs, split)
        for code, name in enumerate(run.data.classes)
        if code != run.data.ignore
        for scores in (run.metrics.splits[split].scores.classes[code],)
    ]
    measures = (Column(name) for name in ("Dice (= F1)", "IoU", "precision", "recall"))
    columns = (words("run"), words("class"), Column("true pixels", count), *measures)
    return Table(f"classes-{split}", f"Classes on {split}, {title}", columns, tuple(rows))


def image_table(split: SplitScores, *, name: str, caption: str) -> Table:
    """The scores of each image alone, worst first; means over classes are over those in the image."""
    objects = bool(split.object_sums)
    uncertain = any(image.uncertainty is not None for image in split.per_image)
    rows = []
    for image in sorted(split.per_image, key=lambda one: (_rank(one.scores.dice), one.id)):
        found = image.objects
        counted = (None,) * 3 if found is None else (found.f1, found.dice, found.hausdorff)
        values = (image.id, *_scores(image.scores), *(counted if objects else ()))
        rows.append(Row("run", (*values, *((image.uncertainty,) if uncertain else ()))))
    columns = (
        words("image"), *SCORES, *(OBJECT_COLUMNS if objects else ()),
        *((Column("uncertainty, nats"),) if uncertain else ()),
    )  # fmt: skip
    note = "Uncertainty: mean over the most uncertain tenth of the pixels; 0 where the networks agree everywhere."
    return Table(name, caption, columns, tuple(rows), (note,) if uncertain else ())


def object_table(runs: Sequence[FinishedRun], split: str, *, title: str) -> Table | None:
    """The object scores of the runs on a test split, highest pixel Dice first; None where none has any.

    A run has a row of its objects as they were predicted, and one with the post-processing that was chosen on its
    validation images, if any.
    """
    rows, rules, untuned = [], {}, {}  # type: list[Row], dict[str, list[str]], dict[str, list[str]]
    tuned = any(found.tuned_objects is not None for found in _splits(runs, split))
    for run in by_dice(runs, split):
        found, tuning = run.metrics.splits[split], run.metrics.object_tuning
        if found.pooled_objects is None or found.objects is None:
            continue
        given = found.objects.rule
        how = AS_PREDICTED if given == ObjectRule() else str(given)
        scores = _objects_row(found.objects, found.object_sums)
        if tuning is None or found.tuned_objects is None:
            rows.append(Row("run", (run.name, how, *scores, *((None, None) if tuned else ()))))
            untuned.setdefault(run.why_objects_untuned or "", []).append(run.name)
        else:
            rows.append(Row("run", (run.name, how, *scores, tuning.f1_as_predicted, tuning.dice_as_predicted)))
            how = f"{found.tuned_objects.rule} (chosen on {_validation_images(tuning.images)})"
            scores = _objects_row(found.tuned_objects, found.tuned_object_sums)
            rows.append(Row("run", (run.name, how, *scores, tuning.f1, tuning.dice)))
        rules.setdefault(f"{found.objects.connectivity}-connected", []).append(run.name)
    measures = (
        Column(f"{name} ({how})", number) for how in ("pooled", "mean") for name, number in OBJECT_SCORES.items()
    )
    columns = (
        words("run"), words("objects"), Column("TP", count), Column("FP", count), Column("FN", count), *measures,
        Column("left out", count), *(Column(f"val. {name} (pooled)") for name in ("F1", "Dice") if tuned),
    )  # fmt: skip
    notes = [
        f"Predicted objects: connected components of the predicted class, {_rules_note(rules)}, at the images' "
        "original size. Pooled: over all objects of all images, as the GlaS challenge does; mean: of each image's own "
        "score. Left out: images with objects on one side only, which have no Hausdorff distance."
    ]
    if tuned:
        notes.append(CHOICE_OF_OBJECTS)
    notes += [f"No post-processing was chosen for {', '.join(names)}: {why}." for why, names in untuned.items()]
    caption = f"Objects on {split}, {title}"
    return Table(f"objects-{split}", caption, columns, tuple(rows), tuple(notes)) if rows else None


def confusion_table(run: FinishedRun, split: str, *, name: str) -> Table | None:
    """True classes (rows) against predicted ones: pixels, and shares of the row; None without that split."""
    if split not in run.metrics.splits:
        return None
    classes, matrix = run.data.classes, run.metrics.splits[split].matrix
    counted = [code for code in range(len(classes)) if code != run.data.ignore]
    rows = []
    for code in counted:
        pixels, total = [int(matrix[code, other]) for other in counted], int(matrix[code].sum())
        rows.append(Row("run", (classes[code], *pixels, *(px / total if total else None for px in pixels))))
    columns = (
        words("true class"), *(Column(f"as {classes[code]}, pixels", count) for code in counted),
        *(Column(f"as {classes[code]}") for code in counted),
    )  # fmt: skip
    note = "Last columns: share of the true class's pixels."
    return Table(name, f"Confusion matrix of {run.name} on {split}", columns, tuple(rows), (note,))


def cost_table(runs: Sequence[FinishedRun], *, title: str) -> Table | None:
    """Time and bytes of each run, in the order of names; None for a single run."""
    if len(runs) < 2:
        return None
    rows = []
    for run in sorted(runs, key=lambda run: natural_order(run.name)):
        metrics = run.metrics
        read = metrics.bytes_read if metrics.heads_from_one_read else None
        heads = None if read is None else metrics.heads_from_one_read
        seconds = (metrics.seconds, metrics.seconds / max(1, metrics.epochs))
        per_head = None if read is None or heads is None else read / heads
        values = (run.name, run.settings.network, _blocks(run), run.config.parameters, metrics.epochs, *seconds)
        rows.append(Row("run", (*values, read, heads, per_head)))
    columns = (
        words("run"), words("head"), words("blocks"), Column("parameters", count), Column("epochs", count),
        Column("training steps, s", "{:,.1f}".format), Column("s per epoch", "{:,.2f}".format),
        Column("read from the store", format_bytes), Column("heads from one read", count),
        Column("read per head", format_bytes),
    )  # fmt: skip
    note = (
        "Seconds are those of the head's own training steps, without reading, validation and prediction. Bytes are "
        "those of features and masks that were read from the store for all heads trained together (training, "
        "validation and test images), so they do not add up over heads of one read; what was kept in memory counts "
        "once. A run that was resumed counts the bytes since then."
    )
    return Table("cost", f"Cost of each run, {title}", columns, tuple(rows), (note,))


def systems_table(systems: Sequence[System], split: str, *, title: str, workspace: Path | None = None) -> Table:
    """A row for each system on a test split, mean ± deviation over its seeds, then what the paper reports.

    workspace: where `extract` left how fast it was; without any of that there is no column for it.
    """
    scored = [one for one in systems if _splits_of(one, split)]
    speeds = {} if workspace is None else _speeds(scored, workspace)
    cost_columns = (*COST_COLUMNS, *((SPEED_COLUMN,) if speeds else ()))
    objects = any(found.pooled_objects for one in scored for found in _splits_of(one, split))
    tuned = any(found.pooled_tuned_objects for one in scored for found in _splits_of(one, split))
    object_columns = (*(OBJECT_COLUMNS if objects else ()), *(TUNED_COLUMNS if tuned else ()))
    rows = []
    for one in scored:
        splits = _splits_of(one, split)
        values: list[Value] = [_spread(splits, attrgetter(f"scores.{metric}")) for metric in METRICS]
        same_rules = len(_rules(splits)) < 2  # a mean over objects that were counted in two ways has no meaning
        for name in ObjectScores._fields[3:] if objects else ():
            spread = _spread(splits, partial(_pooled_object_score, name=name))
            values.append(spread if same_rules else None)
        for name in ObjectScores._fields[3:] if tuned else ():
            whole = all(found.pooled_tuned_objects for found in splits)  # else the mean would be over fewer seeds
            spread = _spread(splits, partial(_pooled_tuned_score, name=name))
            values.append(spread if whole and same_rules else None)
        values += [one.run.config.parameters, one.run.data.patch_bytes]
        rows.append(Row("run", (*_system(one), *values, *((_patches_per_s(one.run, speeds),) if speeds else ()))))
    first = systems[0].run
    paper = paper_scores(first.data.dataset, split, quoted=first.metrics.test_split)
    for row in paper:
        scores = (row.accuracy, row.dice, row.miou, row.f1, *((None,) * len((*object_columns, *cost_columns))))
        rows.append(Row("paper", (row.method, _source(row.table), *UNKNOWN_CHOICE, *scores)))
    columns = (*SYSTEM_COLUMNS, *SCORES, *object_columns, *cost_columns)
    like = f" (as the paper's Table {paper[0].table})" if paper else ""
    notes = (
        _choice_note(scored), *_size_notes(scored, split),
        *_shared_source_notes([run for one in scored for run in one.repeats.runs], split),
        *_object_notes(scored, split), *((TUNED_OBJECTS,) if tuned else ()), *_paper_notes(scored, split, paper),
        *fairness_notes(scored, beside_paper=bool(paper)), *((_speed_note(speeds),) if speeds else ()),
    )  # fmt: skip
    return Table(f"systems-{split}", f"Systems on {split}, {title}{like}", columns, tuple(rows), notes)


def _speeds(systems: Sequence[System], workspace: Path) -> dict[str, ExtractionSpeed]:
    """Return how fast the features of systems were extracted, by the digest of their key's features."""
    keys = {source.key.of_features.digest: source.key for one in systems for source in one.run.data.sources}
    found = {digest: read_speed(workspace, key) for digest, key in keys.items()}
    return {digest: speed for digest, speed in found.items() if speed is not None}


def _patches_per_s(run: FinishedRun, speeds: Mapping[str, ExtractionSpeed]) -> float | None:
    """Return the patches a second of all passes that a head needs; None for a baseline or an unknown speed."""
    pairs = zip(run.data.sources, run.settings.selections, strict=False)  # a baseline has no selections
    passes = {(source.key.of_features.digest, selection.t) for source, selection in pairs}
    if not passes or any(digest not in speeds for digest, _ in passes):
        return None
    return 1 / sum(speeds[digest].seconds / speeds[digest].passes for digest, _ in passes)


def _speed_note(speeds: Mapping[str, ExtractionSpeed]) -> str:
    measured = "; ".join(dict.fromkeys(map(str, speeds.values())))
    return (
        "Patches/s: 256 px patches a second of the extractions that a head reads, one pass after the other, with the "
        f"blocks that were extracted, decoding and writing included ({measured})."
    )


def tissue_table(systems: Sequence[System], split: str, *, title: str) -> Table | None:
    """IoU of tumor, stroma, inflammatory, necrosis and their mean, as the paper's Table 3; None for other classes."""
    classes = systems[0].run.data.classes
    if not set(TISSUES) <= set(classes):
        return None
    codes = [classes.index(name) for name in TISSUES]
    rows = []
    for one in systems:
        splits = _splits_of(one, split)
        values = [_spread(splits, partial(_class_iou, code=code)) for code in codes]
        mean = _spread(splits, lambda found: _mean_iou(found, codes))
        rows.append(Row("run", (*_system(one), *values, mean)))
    if systems[0].run.data.dataset == "bcss":
        for row in IOUS:
            ious = (row.tumor, row.stroma, row.inflammatory, row.necrosis, row.mean)
            rows.append(Row("paper", (row.method, _source(row.table), *UNKNOWN_CHOICE, *ious)))
    caption = f"IoU of each class on {split}, {title} (as the paper's Table 3)"
    note = "The mean is over these four classes. A class that is in neither ground truth nor prediction has no value."
    columns = (*SYSTEM_COLUMNS, *(Column(name, "{:.4f}".format) for name in (*TISSUES, "mean")))
    return Table("tissues", caption, columns, tuple(rows), (note,))


def paper_rates_table(dataset: str) -> Table | None:
    """The paper's scores of a data set over learning rates (its Table 5), None where it reports none."""
    rows = tuple(
        Row("paper", (row.lr, row.accuracy, row.miou, row.dice)) for row in RATES if row.dataset == dataset
    )  # fmt: skip
    caption = "Reported by the paper: PathSegDiff on validation images at each learning rate (its Table 5)"
    columns = (Column("lr", "{:g}".format, words=True), Column("accuracy"), Column("mIoU"), Column("Dice"))
    return Table("paper-rates", caption, columns, rows) if rows else None


def sweep_table(sweep: Sweep, *, name: str, title: str) -> Table:
    """A row for each value: mean ± deviation of validation and test scores; for rates, the paper's Table 5 below."""
    rows = []
    for point in sweep.points:
        value = value_label(sweep, point.value)
        rows.append(Row("run", (value, _seeds(point), *_spreads(point, SWEEP_SCORES)), point is sweep.best))
    every_constant = [run.test_scores.constant for run in sweep.runs]
    constants = {(one.class_name, one.scores.miou, one.scores.dice): None for one in every_constant}
    rows += [Row("constant", (f"always {name}", CONSTANT, *(None,) * 3, *scores)) for name, *scores in constants]
    notes = [f"{BEST_IS_MARKED}. All else equal: {', '.join(sweep.fixed)}."]
    if sweep.axis == "lr":
        for rate in RATES:
            scores = (rate.accuracy, rate.miou, rate.dice, None, None)
            rows.append(Row("paper", (f"{rate.lr:g}", _source(rate.table), *scores)))
        notes.append(_paper_rates_note(sweep.runs[0].data.dataset))
    untrained = " (untrained model)" if sweep.untrained else ""
    caption = f"Scores by {AXES[sweep.axis]}, {title}{untrained}: mean ± standard deviation over seeds"
    measures = _measure_columns(SWEEP_SCORES, sweep.runs[0].metrics.test_split)
    columns = (words(AXES[sweep.axis]), Column("n (seeds)", str), *measures)
    return Table(name, caption, columns, tuple(rows), tuple(notes))


def mixing_table(repeats: Repeats, settings: Sequence[str], *, name: str, title: str) -> Table:
    """A row for each layer of a scalar mix, in the order of the layers: mean ± deviation of its weight over seeds."""
    spreads = layer_weight_spreads(repeats)
    largest = max(spread.mean for _, spread in spreads)
    rows = tuple(Row("run", (label, _seeds(repeats), spread), spread.mean == largest) for label, spread in spreads)
    note = (
        "The weights of a head add up to 1. They say how much a layer counts beside the others, not how well it does "
        f"alone. The largest is marked. All rows: {', '.join(settings)}."
    )
    columns = (words("layer"), Column("n (seeds)", str), Column("weight"))
    return Table(name, f"Learned weights of the layers, {title}", columns, rows, (note,))


def layer_weight_spreads(repeats: Repeats) -> list[tuple[str, Spread]]:
    """Return label and spread over seeds of the weight of each layer of a scalar mix."""
    first = repeats.runs[0]
    found = []
    for number, layer in enumerate(first.metrics.layer_weights):
        spread = Spread.of(run.metrics.layer_weights[number].weight for run in repeats.runs)
        assert spread is not None
        found.append((layer_label(first, layer), spread))
    return found


def seeds_table(runs: Sequence[FinishedRun], *, title: str) -> Table | None:
    """A row for settings that two or more seeds were trained with, highest mean test Dice first; None without any."""
    found = sorted(find_repeats(runs), key=lambda pair: (-_mean(pair[1], "test"), natural_order(", ".join(pair[0]))))
    if not found:
        return None
    best = max(found, key=lambda pair: _mean(pair[1], "val"))[1]
    shared = [one for one in found[0][0] if len(found) > 1 and all(one in settings for settings, _ in found)]
    rows = []
    for settings, repeats in found:
        name = ", ".join(one for one in settings if one not in shared) or repeats.runs[0].name
        rows.append(Row("run", (name, _seeds(repeats), *_spreads(repeats, SEED_SCORES)), repeats is best))
    notes = [f"Rows are runs that differ in their seed only; the deviation has the divisor n − 1. {BEST_IS_MARKED}."]
    if shared:
        notes.append(f"All rows: {', '.join(shared)}.")
    if repeated := duplicates(runs):
        names = ", ".join(f"{name} (as {first})" for name, first in repeated)
        notes.append(f"Not counted, because another run has the same settings and the same seed: {names}.")
    measures = _measure_columns(SEED_SCORES, runs[0].metrics.test_split)
    columns = (words("settings"), Column("n (seeds)", str), *measures)
    return Table("seeds", f"Mean ± standard deviation over seeds, {title}", columns, tuple(rows), tuple(notes))


def interval_tables(
    runs: Sequence[FinishedRun], split: str, *, title: str, systems: Sequence[System] = ()
) -> tuple[Table, ...]:
    """Bootstrap intervals of the runs on a test split, differences from the best run, and from the best system.

    The best system is that with the highest mean validation Dice, so that test images do not choose it. A system is
    compared by the run that stands for it. Differences need two runs or two systems; those of object scores follow.
    """
    ranked = by_dice(runs, split)
    if not ranked:
        return ()
    samples = {run.name: bootstrap_scores(run.metrics.splits[split], ignore=run.data.ignore) for run in ranked}
    compared: list[tuple[list[tuple[str, FinishedRun]], dict[str, str]]] = []
    if len(ranked) > 1:
        texts = {
            "caption": f"Each run against {ranked[0].name} on {split}, {title}", "row": "run", "first_name": "best",
            "on_p": "; the run it is compared with was chosen on these images, which makes p too small",
        }  # fmt: skip
        compared.append(([(run.name, run) for run in ranked], texts))
    ordered = sorted(systems, key=lambda one: -one.repeats.mean_validation_dice)
    named = [(one.name, one.run) for one in ordered if one.run.name in samples]
    if len(named) > 1:
        first, _ = named[0]
        texts = {
            "caption": f"Each system against {first} on {split}, {title}", "row": "system", "first_name": first,
            "note": f"Each system by one run, of its seeds the best on validation images: "
            f"{'; '.join(f'{name}: {run.name}' for name, run in named)}.",
        }  # fmt: skip
        compared.append((named, texts))
    tables = [_intervals(ranked, samples, split, title)]
    for pairs, texts in compared:
        tables.append(_differences(pairs, samples, split, name=f"intervals-{split}-{len(tables) + 1}", **texts))
    for pairs, texts in compared:
        texts = {**texts, "caption": f"Objects: {texts['caption'][0].lower()}{texts['caption'][1:]}"}
        name = f"intervals-{split}-{len(tables) + 1}"
        if table := _object_differences(pairs, samples, split, name=name, **texts):
            tables.append(table)
    return tuple(tables)


def by_dice(runs: Sequence[FinishedRun], split: str) -> list[FinishedRun]:
    """Return the runs that were scored on a test split, highest Dice first, then by name."""
    scored = [run for run in runs if split in run.metrics.splits]
    return sorted(scored, key=lambda run: (-_rank(run.metrics.splits[split].scores.dice), run.name))


def _settings(run: FinishedRun) -> tuple[Value, ...]:
    """The cells of `RUN_COLUMNS` up to the number of images."""
    settings = run.settings
    head = (t_label(settings.t), _blocks(run)) if isinstance(settings, HeadConfig) else (None, None)
    return (
        run.name, model_label(run), None if run.is_baseline else condition_label(run), *head, settings.network,
        run.config.parameters, settings.lr, settings.seed, f"{run.metrics.epochs} ({run.metrics.best_epoch})",
    )  # fmt: skip


def _blocks(run: FinishedRun) -> str | None:
    return joined_label(format_blocks(blocks) for _, blocks in run.settings.selections) or None


def _scores(scores: Scores) -> tuple[float | None, ...]:
    return scores.accuracy, scores.dice, scores.miou, scores.f1


def _gain(split: SplitScores) -> float | None:
    dice, constant = split.scores.dice, split.constant.scores.dice
    return None if dice is None or constant is None else dice - constant


def _object_scores(scores: ObjectScores) -> tuple[float | None, ...]:
    return scores.f1, scores.dice, scores.hausdorff


def _objects_row(objects: ObjectSplitScores, sums: Mapping[str, ObjectSums]) -> tuple[float | None, ...]:
    """Counts, pooled scores, means over images, and the number of images without a Hausdorff distance."""
    pooled, mean = ObjectSums.total(sums.values()).scores(), mean_scores(list(sums.values()))
    counts = (pooled.tp, pooled.fp, pooled.fn)
    return (*counts, *_object_scores(pooled), *_object_scores(mean), objects.hausdorff_left_out)


def _validation_images(images: int) -> str:
    return f"{images} validation image{'' if images == 1 else 's'}"


def _splits(runs: Sequence[FinishedRun], split: str) -> list[SplitScores]:
    return [run.metrics.splits[split] for run in runs if split in run.metrics.splits]


def _splits_of(system: System, split: str) -> list[SplitScores]:
    return _splits(system.repeats.runs, split)


def _pooled_object_score(split: SplitScores, name: str) -> float | None:
    objects = split.pooled_objects
    return None if objects is None else getattr(objects, name)


def _pooled_tuned_score(split: SplitScores, name: str) -> float | None:
    objects = split.pooled_tuned_objects
    return None if objects is None else getattr(objects, name)


def _class_iou(split: SplitScores, code: int) -> float | None:
    return split.scores.classes[code].iou


def _spread(splits: Sequence[SplitScores], value: Callable[[SplitScores], float | None]) -> Spread | None:
    return Spread.of(value(split) for split in splits)


def _spreads(repeats: Repeats, measures: Sequence[tuple[Images, Metric]]) -> tuple[Spread | None, ...]:
    return tuple(repeats.spread(images, metric) for images, metric in measures)


def _measure_columns(measures: Sequence[tuple[Images, Metric]], split: str) -> tuple[Column, ...]:
    return tuple(Column(f"{'val.' if images == 'val' else split} {METRICS[metric]}") for images, metric in measures)


def _mean_iou(split: SplitScores, codes: Sequence[int]) -> float | None:
    values = [split.scores.classes[code].iou for code in codes]
    return None if None in values else fmean(cast("list[float]", values))


def _mean(repeats: Repeats, images: Images) -> float:
    spread = repeats.spread(images, "dice")
    return -1.0 if spread is None else spread.mean


def _seeds(repeats: Repeats) -> str:
    return f"{len(repeats.runs)} ({', '.join(map(str, repeats.seeds))})"


def _system(system: System) -> tuple[Value, ...]:
    """The cells of `SYSTEM_COLUMNS`."""
    return system.name, system.weights, _seeds(system.repeats), system.settings_tried, system.validation_images


def _source(table: int) -> str:
    return f"reported, Table {table}"


def _rank(value: float | None) -> float:
    return -1.0 if value is None else value


def _comparison_notes(runs: Sequence[FinishedRun], split: str) -> tuple[str, ...]:
    """What keeps the numbers of these runs from being compared, and which pixels count more than once."""
    splits, notes = _splits(runs, split), []
    sizes: dict[str, list[str]] = {}
    for run in runs:
        sizes.setdefault(run.data.size_text, []).append(run.name)
    if len({frozenset(found.by_image) for found in splits}) > 1:
        notes.append("These runs were scored on different images, so their numbers cannot be compared with each other.")
    if len(sizes) > 1:
        named = "; ".join(f"{size}: {', '.join(names)}" for size, names in sizes.items())
        notes.append(f"Images of these runs differ in size, so their numbers are not over the same pixels: {named}.")
    if cut := sorted({(len(found.per_image), len(found.groups)) for found in splits if found.by_region}):
        counts = " or ".join(f"{n} images are patches of {m} region{'' if m == 1 else 's'}" for n, m in cut)
        notes.append(f"The {counts}: where patches overlap, a pixel counts once in each, in accuracy as in all else.")
    notes += _shared_source_notes(runs, split)
    if improving := [run.name for run in runs if run.still_improving]:
        notes.append(f"{', '.join(improving)}: {BEST_IS_LAST}.")
    return tuple(notes)


def _shared_source_notes(runs: Sequence[FinishedRun], split: str) -> list[str]:
    """A warning where sources of the test split were trained or validated on; names the runs where they differ."""
    by_count: dict[int, list[str]] = {}
    for run in runs:
        by_count.setdefault(run.data.shared_sources.get(split, 0), []).append(run.name)
    return [
        f"{sources_text(count)} both in {split} and in the training or validation images"
        f"{' of ' + ', '.join(names) if len(by_count) > 1 else ''}, so these scores are not those of unseen tissue."
        for count, names in sorted(by_count.items())
        if count
    ]


def _choice_note(systems: Sequence[System]) -> str:
    """The settings of each system, and how many others were tried."""
    sentences = ["Ours are mean ± sample standard deviation over seeds."]
    for one in systems:
        images = f"{one.validation_images} validation image{'' if one.validation_images == 1 else 's'}"
        chosen = "" if one.settings_tried == 1 else f", the best of {one.settings_tried} settings on {images}"
        aside = f" ({one.settings_aside} with fewer images or seeds left aside)" if one.settings_aside else ""
        sentences.append(f"{one.name}: {', '.join(one.settings)}{chosen}{aside}.")
    return " ".join(sentences)


def _size_notes(systems: Sequence[System], split: str) -> tuple[str, ...]:
    """A warning where the systems were not scored on the same pixels: images of another size, or not as many."""
    found: dict[str, list[str]] = {}
    for one in systems:
        for run in one.repeats.runs:
            if split in run.metrics.splits:
                images = f"{run.metrics.splits[split].images} images of {run.data.size_text}"
                names = found.setdefault(images, [])
                names += [one.name] * (one.name not in names)
    if len(found) < 2:
        return ()
    named = "; ".join(f"{images}: {', '.join(names)}" for images, names in found.items())
    return (f"Not over the same pixels: {named}.",)


def _rules(splits: Sequence[SplitScores]) -> dict[str, None]:
    """The rules by which the objects of these splits were counted, each once."""
    return {str(split.objects): None for split in splits if split.objects is not None}


def _object_notes(systems: Sequence[System], split: str) -> tuple[str, ...]:
    rules: dict[str, list[str]] = {}
    for one in systems:
        for text in _rules(_splits_of(one, split)):
            rules.setdefault(text, []).append(one.name)
    if not rules:
        return ()
    mixed = ", with a dash where the runs of one system differ in this" if len(rules) > 1 else ""
    return (f"Predicted objects: connected components of the predicted class, {_rules_note(rules)}{mixed}.",)


def _rules_note(rules: Mapping[str, Sequence[str]]) -> str:
    """The rules by which objects were counted; with the names that each applies to where there are several."""
    if len(rules) < 2:
        return "".join(rules)
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in rules.items())


def _paper_notes(systems: Sequence[System], split: str, paper: Sequence[PaperScores]) -> tuple[str, ...]:
    if not paper:
        return ()
    splits = [found for one in systems for found in _splits_of(one, split)]
    text = (
        "Reported rows are copied from the PathSegDiff paper, not run here; those of other methods are as that paper "
        "quotes them. Their metrics may be defined otherwise than ours."
    )
    official = paper[0].images
    if official is not None and any(split.images != official for split in splits):
        text += f" The paper's scores are on all {official} images of this split, ours on {splits[0].images}."
    spreads = ((one.name, _spread(_splits_of(one, split), attrgetter("scores.f1_of_means"))) for one in systems)
    means = ", ".join(f"{name} {spread.mean:.3f}" for name, spread in spreads if spread is not None)
    return (text, f"{F1_NOTE} F1 of means of ours, for comparison with papers that print it: {means or DASH}.")


def _paper_rates_note(dataset: str) -> str:
    text = "Reported rows are copied from Table 5 of the PathSegDiff paper (BCSS, validation images), not run here"
    if dataset == "bcss":
        return f"{text}; its validation images and its metrics may be others than ours."
    return f"{text}: another data set than this one, so compare the order of the rates, not their scores."


def _intervals(runs: Sequence[FinishedRun], samples: Mapping[str, Samples], split: str, title: str) -> Table:
    of_objects = _object_measures([samples[run.name] for run in runs])
    measures = [*zip(METRICS, SCORES, strict=True), *of_objects.items()]
    tuned = any(measure.startswith("tuned") for measure in of_objects)
    rows = []
    for run in runs:
        found = run.metrics.splits[split]
        values: list[Interval | None] = []
        for measure, _ in measures:
            value = pooled_score(found, measure)
            drawn = samples[run.name].get(measure)
            bounds = None if drawn is None else interval(drawn)
            values.append(None if value is None or bounds is None else Interval(*bounds, value=value))
        rows.append(Row("run", (run.name, *values)))
    by_region = sorted({run.metrics.splits[split].by_region for run in runs}, reverse=True)
    return Table(
        f"intervals-{split}-1", f"Confidence intervals on {split}, {title}",
        (words("run"), *(column for _, column in measures)), tuple(rows),
        (*(describe_method(by_region=one) for one in by_region), *((TUNED_OBJECTS,) if tuned else ())),
    )  # fmt: skip


def _object_measures(samples: Sequence[Samples]) -> dict[str, Column]:
    """Return the object scores that at least one run has, by their names in its samples."""
    columns = {"object": OBJECT_COLUMNS, "tuned object": TUNED_COLUMNS}
    measures = {
        f"{prefix} {name}": column
        for prefix, named in columns.items()
        for name, column in zip(ObjectScores._fields[3:], named, strict=True)
    }
    return {name: column for name, column in measures.items() if any(name in drawn for drawn in samples)}


def _differences(
    named: Sequence[tuple[str, FinishedRun]], samples: Mapping[str, Samples], split: str, *, name: str, caption: str,
    row: str, first_name: str, on_p: str = "", note: str = "",
) -> Table:  # fmt: skip
    """The difference of each run's Dice from the first's; row: what a row is. on_p: a restriction on the p-values."""
    _, first = named[0]
    reference = first.metrics.splits[split]
    rows: list[Row] = []
    for label, run in named[1:]:
        rows.append(Row("run", (label, *_difference(first, run, samples, split, "dice"))))
    units = "regions" if reference.by_region else "images"
    notes = [note] if note else []
    notes.append(
        "Differences are those of the pooled Dice, with the interval of the paired bootstrap (both runs on the same "
        f"resampled {units}). p: Wilcoxon signed-rank test, two-sided, over the pooled Dice of each of the {units}, "
        f"not corrected for the number of comparisons{on_p}."
    )
    if any(one.values[1] is None for one in rows):
        notes.append(
            f"{DASH}: the two runs were scored on different images, on images of another size, or only one of them "
            "recorded the images' regions."
        )
    columns = (words(row), Column(f"Dice − {first_name}", signed), *_test_columns(units))
    return Table(name, caption, columns, tuple(rows), tuple(notes))


def _object_differences(
    named: Sequence[tuple[str, FinishedRun]], samples: Mapping[str, Samples], split: str, *, name: str, caption: str,
    row: str, first_name: str, on_p: str = "", note: str = "",
) -> Table | None:  # fmt: skip
    """The same as `_differences` of the object scores, a row for each; None unless two runs have any."""
    _, first = named[0]
    reference = first.metrics.splits[split]
    rows: list[Row] = []
    for label, run in named[1:]:
        for measure, column in _object_measures([samples[first.name], samples[run.name]]).items():
            values = _difference(first, run, samples, split, measure)
            rows.append(Row("run", (label, column.name, *values)))
    if all(one.values[2] is None for one in rows):
        return None
    units = "regions" if reference.by_region else "images"
    notes = [note] if note else []
    notes.append(
        f"Differences are those of the pooled scores, with the interval of the paired bootstrap (both runs on the same "
        f"resampled {units}); of Hausdorff distances, in px, a negative one is better. p: Wilcoxon signed-rank test, "
        f"two-sided, over the pooled score of each of the {units} that have one in both runs, not corrected for the "
        f"number of comparisons{on_p}."
    )
    if any(one.values[2] is None for one in rows):
        notes.append(
            f"{DASH}: the two runs were scored on different images, on images of another size, only one of them has "
            "the score, or their objects were counted by different rules."
        )
    columns = (words(row), words("score"), Column(f"score − {first_name}", signed), *_test_columns(units))
    return Table(name, caption, columns, tuple(rows), tuple(notes))


def _difference(
    first: FinishedRun, run: FinishedRun, samples: Mapping[str, Samples], split: str, score: str
) -> tuple[Value, ...]:
    """The difference of a run's score from the first's, its interval, p and number of units; None for each without."""
    a, b = first.metrics.splits[split], run.metrics.splits[split]
    if first.data.key.size != run.data.key.size or _object_rule(a, score) != _object_rule(b, score):
        return (None,) * 4
    drawn = samples[first.name], samples[run.name]
    pair = paired_difference(a, b, *drawn, score=score, ignore=run.data.ignore)
    return (pair.difference, Interval(pair.low, pair.high), pair.p, pair.units) if pair else (None,) * 4


def _object_rule(split: SplitScores, score: str) -> str:
    """How the objects of a score were counted, which two runs must share; each tunes its least size by itself."""
    if split.objects is None or not score.rpartition(" ")[0]:
        return ""
    return split.objects.connectivity if score.startswith("tuned") else str(split.objects)


def _test_columns(units: str) -> tuple[Column, ...]:
    return (
        Column("95% interval", signed), Column("p (Wilcoxon)", lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}"),
        Column(units, count),
    )  # fmt: skip
