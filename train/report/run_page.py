"""The part of the page on one run: facts, learning curves, test images, scores, configuration, commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from markupsafe import Markup

from pathseg.store.blocks import format_blocks
from pathseg.store.contents import ImageEntry
from pathseg.store.features import FeatureStore
from pathseg.train.colours import jpeg_bytes
from pathseg.train.report.drawn_figures import DrawnFigures
from pathseg.train.report.figures import Figure, data_uri
from pathseg.train.report.prediction_images import (
    PANELS,
    Legend,
    MissingImage,
    Stores,
    TestImage,
    evenly_spaced,
    read_test_images,
    worst_first,
)
from pathseg.train.report.sheets import sheet
from pathseg.train.report.svg_figures import learning_curves
from pathseg.train.report.sweeps import features_label, is_untrained
from pathseg.train.report.table_formats import Table, score
from pathseg.train.report.tables import image_table
from pathseg.train.runs.commands import commands
from pathseg.train.runs.finished_run import BEST_IS_LAST, FinishedRun
from pathseg.train.runs.folder import natural_order

WORST = 10  # images of the highest loss that are listed
SHEET_ROWS = 4  # of the sheet of a run, from its worst image to its best


@dataclass(frozen=True)
class Panel:
    """One picture of a test image."""

    name: str
    uri: Markup
    alt: str


@dataclass(frozen=True)
class ImageRow:
    """One test image in the page: its scores and its wrong pixels in words, its panels."""

    id: str
    scores: str
    errors: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class WorstImage:
    """A test or training image with a high loss: where it lies on its slide in words, and its row in the page.

    place: empty where the image is no window of a slide or its store cannot be read. row: from 1, None without one.
    """

    id: str
    place: str
    loss: str
    row: int | None


@dataclass(frozen=True)
class RunPage:
    """What the page shows of one run.

    images: number of the quoted split's images, of which `shown` have a row and `missing` cannot be shown. no_images:
    why none is shown, empty where some are. sheet: a figure beside the page. worst: the images of the highest loss,
    none in runs that did not record it. worst_trained: the training images of the highest loss in the kept epoch, which
    is `kept_epoch`.
    """

    name: str
    facts: str
    untrained: bool
    store: str
    split: str
    images: int
    curves: Figure | None
    shown: tuple[ImageRow, ...]
    missing: tuple[MissingImage, ...]
    no_images: str
    sheet: Figure | None
    worst: tuple[WorstImage, ...]
    worst_trained: tuple[WorstImage, ...]
    kept_epoch: int
    image_tables: tuple[Table, ...]
    configuration: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def run_page(run: FinishedRun, stores: Stores, drawn: DrawnFigures, *, rows: int, workspace: Path) -> RunPage:
    """Collect what the page shows of a run, the pictures of `rows` test images among it; also of one without any."""
    split, ids = run.metrics.test_split, worst_first(run.test_scores) if run.scored else []
    opened = stores.get(run.data.store) if rows or not run.scored else "they are made for the best runs only"
    store = opened if run.scored else "there are no test images, so nothing was scored"
    known = None if isinstance(opened, str) else opened
    scored = run.test_scores.per_image if run.scored else ()
    trained_losses = {image.id: image.loss for image in run.metrics.train_losses}
    shown, missing, sheet, no_images = [], [], None, ""  # type: list[ImageRow], list[MissingImage], Figure | None, str
    if isinstance(store, str):
        no_images = store
    else:
        on_sheet = evenly_spaced(ids, SHEET_ROWS)
        sheet_rows = {}
        for image in read_test_images(run, list(dict.fromkeys([*ids[:rows], *on_sheet])), store):
            if isinstance(image, MissingImage):
                missing.append(image)
                continue
            if image.id in ids[:rows]:
                shown.append(_image_row(image))
            if image.id in on_sheet:
                sheet_rows[image.id] = (f"{image.id}\n{image.scores}", image.panels)
        if sheet_rows:
            sheet = _sheet(run, drawn, [sheet_rows[name] for name in on_sheet if name in sheet_rows])
    return RunPage(
        name=run.name, facts=run_facts(run), untrained=is_untrained(run),
        store=" + ".join(source.store for source in run.data.sources), split=split,
        images=len(ids), curves=_curves(run) if run.history else None, shown=tuple(shown),
        missing=tuple(missing), no_images=no_images, sheet=sheet,
        worst=_worst_images({image.id: image.loss for image in scored if image.loss is not None}, known,
                            [row.id for row in shown]),
        worst_trained=_worst_images(trained_losses, known, ()), kept_epoch=run.metrics.best_epoch,
        image_tables=tuple(
            image_table(found, name=f"images-{run.name}-{name}", caption=f"Images of {name}, worst first")
            for name, found in run.metrics.splits.items()
        ),
        configuration=flatten(msgspec.to_builtins(run.config, str_keys=True)), commands=commands(run, workspace),
    )  # fmt: skip


def run_facts(run: FinishedRun) -> str:
    """Return size, duration and kept epoch of a run in one line."""
    metrics = run.metrics
    joined = f"Features: {features_label(run)}. " if len(run.data.sources) > 1 else ""
    minutes, seconds = divmod(round(metrics.seconds), 60)
    duration = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return (
        f"{joined}Images of {run.data.size_text}, {run.config.parameters:,} parameters, {metrics.epochs} "
        f"epoch{'' if metrics.epochs == 1 else 's'}, {duration} of training steps on {run.config.device}; "
        f"kept: epoch {metrics.best_epoch}, validation Dice {score(run.best_val_dice)}"
        f"{f'; {BEST_IS_LAST}' if run.still_improving else ''}"
    )


def flatten(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return nested settings as pairs of a dotted name and the value as text."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            value = {str(number): one for number, one in enumerate(value, 1)}
        if isinstance(value, Mapping):
            pairs += [(f"{name}.{below}", text) for below, text in flatten(value)]
        elif name == "blocks":
            of_stores = value if value and isinstance(value[0], list | tuple) else [value]
            pairs.append((name, " + ".join(map(format_blocks, of_stores))))
        elif isinstance(value, list | tuple):
            pairs.append((name, ", ".join(map(str, value))))
        else:
            pairs.append((name, "none" if value is None else str(value)))
    return tuple(pairs)


def _worst_images(
    losses: Mapping[str, float], store: FeatureStore | None, shown: Sequence[str]
) -> tuple[WorstImage, ...]:
    """Return the WORST images with the highest loss, the highest first. shown: ids of those with a row in the page."""
    rows = {name: number for number, name in enumerate(shown, 1)}
    entries = {} if store is None else {entry.id: entry for entry in store.contents.images}
    found = []
    for name in sorted(losses, key=lambda name: (-losses[name], natural_order(name)))[:WORST]:
        entry = entries.get(name)
        place = "" if store is None or entry is None else place_text(entry, store.contents.key.mpp)
        found.append(WorstImage(name, place, score(losses[name]), rows.get(name)))
    return tuple(found)


def place_text(entry: ImageEntry, mpp: float | None) -> str:
    """Return where the first px of a window lies on its slide, empty of an image that is no window.

    mpp: um/px of the store. Px of the slide's file are not recorded, but um are the same in both, and what QuPath shows
    for the cursor.
    """
    if entry.corner is None or mpp is None:
        return ""
    y, x = entry.corner
    return f"x {x * mpp:.1f}, y {y * mpp:.1f} µm of {entry.slide} (x {x}, y {y} px at {mpp:g} µm/px)"


def _curves(run: FinishedRun) -> Figure:
    best, epochs = run.metrics.best_epoch, run.metrics.epochs
    svg = learning_curves(run.history, best, f"{run.name}: learning curves")
    alt = f"Learning curves of {run.name} over {epochs} epochs; the best is epoch {best}"
    return Figure(f"curves-{run.name}.svg", svg, alt)


def _sheet(run: FinishedRun, drawn: DrawnFigures, rows: list[tuple[str, tuple[Any, ...]]]) -> Figure:
    legend = Legend.of(run.data)
    title = f"{run.name}: images of {run.metrics.test_split}, from the worst to the best"
    file = f"images-{run.name}.jpg"
    jpeg = drawn.file(file, sheet, rows, PANELS, legend=(*legend.classes, *legend.errors), title=title)
    return Figure(file, jpeg, title)


def _image_row(image: TestImage) -> ImageRow:
    pictures = list(zip(PANELS, image.panels, strict=True))
    pictures += [] if image.uncertainty is None else [("uncertainty", image.uncertainty)]
    panels = tuple(
        Panel(
            name=name,
            uri=data_uri(jpeg_bytes(pixels), "image/jpeg"),
            alt=f"{image.id}: {name}" + (f", {image.errors}" if name == "errors" else ""),
        )
        for name, pixels in pictures
    )
    return ImageRow(image.id, image.scores, image.errors, panels)
