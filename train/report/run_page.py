"""The part of the page on one run: facts, learning curves, test images, scores, configuration, commands."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pathseg.store.blocks import format_blocks
from pathseg.store.key import StoreKey
from pathseg.train.colours import jpeg_bytes
from pathseg.train.config import Selection
from pathseg.train.report import figures
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
from pathseg.train.report.sweeps import features_label, is_untrained
from pathseg.train.report.table_formats import Table, score
from pathseg.train.report.tables import image_table
from pathseg.train.runs.finished_run import BEST_IS_LAST, FinishedRun
from pathseg.train.runs.record import RunData, Source

SHEET_ROWS = 4  # of the sheet of a run, from its worst image to its best
SIDES_PX = {"glas": 768, "synthetic": 512}  # that extract brings a data set to without --resize
NOT_RECORDED = "--root, --limit, --classes, --mpp, --min-labelled-px, --val-institutes, --hipt, --context"  # of extract
# settings of a data set's preprocessing that are flags of extract; a tuple (BCSS: of the files' names) is none
PREPROCESSING_FLAGS = {
    "image_folder": "--image-folder", "target_mpp": "--target-mpp", "stride_px": "--stride", "views": "--views",
    "brush_um": "--brush-um", "region_class": "--region-class", "file_mpp": "--mpp",
}  # fmt: skip
# fields of a store's key that are flags of extract
KEY_FLAGS = ("layout", "dtype", "packing", "precision", "batch_size", "seed")


@dataclass(frozen=True)
class Panel:
    """One picture of a test image."""

    name: str
    uri: str
    alt: str


@dataclass(frozen=True)
class ImageRow:
    """One test image in the page: its scores and its wrong pixels in words, its panels."""

    id: str
    scores: str
    errors: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class RunPage:
    """What the page shows of one run.

    images: number of the quoted split's images, of which `shown` have a row and `missing` cannot be shown. no_images:
    why none is shown, empty where some are. sheet: a figure beside the page.
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
    image_tables: tuple[Table, ...]
    configuration: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def run_page(run: FinishedRun, stores: Stores, *, rows: int, workspace: Path) -> RunPage:
    """Collect what the page shows of a run, the pictures of `rows` test images among it."""
    split, ids = run.metrics.test_split, worst_first(run.test_scores)
    store = stores.get(run.data.store) if rows else "they are made for the best runs only"
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
            sheet = _sheet(run, [sheet_rows[name] for name in on_sheet if name in sheet_rows])
    return RunPage(
        name=run.name, facts=run_facts(run), untrained=is_untrained(run),
        store=" + ".join(source.store for source in run.data.sources), split=split,
        images=len(ids), curves=_curves(run) if run.history else None, shown=tuple(shown), missing=tuple(missing),
        no_images=no_images, sheet=sheet,
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


def commands(run: FinishedRun, workspace: Path) -> tuple[str, ...]:
    """Return the command lines of such a run, from extraction to report, with all that the run recorded.

    The flags of the first that are not recorded are `NOT_RECORDED`.
    """
    settings, sources, common = run.settings, run.data.sources, ["--workspace", str(workspace)]
    selections = settings.selections or (None,)
    extract = [
        _extract(run.data, source, selection, common) for source, selection in zip(sources, selections, strict=True)
    ]
    train = ["train-baseline" if run.is_baseline else "train-head", *common]
    names = [f"S{number}" for number in range(1, len(sources) + 1)] if len(sources) > 1 else []
    of_stores = {
        "t": [str(one.t) for one in selections if one],
        "blocks": [format_blocks(one.blocks) for one in selections if one],
    }
    for number, source in enumerate(sources):
        train += ["--store", f"{names[number]}={source.store}" if names else source.store]
    for field in dataclasses.fields(settings):
        flag = field.metadata.get("flag") or f"--{field.name.replace('_', '-')}"
        value = getattr(settings, field.name)
        if isinstance(value, bool):
            train += [flag] * value
            continue
        texts = of_stores.get(field.name, [str(value)])
        train += [flag, ",".join(map("{}:{}".format, names, texts)) if names and field.name in of_stores else texts[0]]
    lines = (*extract, [*train, "--name", run.name], ["report", *common])
    return tuple(f"pathseg {shlex.join(line)}" for line in lines)


def _extract(data: RunData, source: Source, selection: Selection | None, common: list[str]) -> list[str]:
    """The command that makes a store, with what a head reads of it; of a baseline with the default features."""
    key, features = source.key, []
    if selection is not None:
        any_block = key.vit is None and key.surroundings is None  # else the model may lack some, or refuse some
        blocks = "all" if any_block else format_blocks(selection.blocks)
        features = ["--t", str(selection.t), "--blocks", blocks, *_model_flags(key)]
    return [
        "extract", *common, "--dataset", key.dataset, "--model", key.model, "--condition", key.condition,
        *_resize_flag(data), *_preprocessing_flags(data), *features, "--store", source.store,
        *(word for name in KEY_FLAGS for word in (f"--{name.replace('_', '-')}", str(getattr(key, name)))),
        *(["--surroundings", str(key.field_patches)] if key.surroundings else []),
    ]  # fmt: skip


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


def _model_flags(key: StoreKey) -> list[str]:
    """The flags that build and feed a timm model or a diffusers pipeline as the run recorded."""
    vit = key.vit
    if vit is None:
        label = None if key.diffusers is None else key.diffusers.class_label
        return [] if label is None else ["--class-label", str(label)]
    mean, std = (",".join(map(str, rgb)) for rgb in (vit.mean, vit.std))
    flags = ["--mean", mean, "--std", std, "--input-px", str(vit.input_px), "--norm", vit.norm]
    arguments = ",".join(f"{name}={json.dumps(value)}" for name, value in vit.model_args.items())
    return [*flags, "--model-args", arguments] if arguments else flags


def _resize_flag(data: RunData) -> list[str]:
    """The flag that gives the images their size, of slides the windows; nothing where it is the data set's own."""
    height, width = data.key.size
    if data.dataset == "slides":
        return ["--window-px", str(height)]
    own = SIDES_PX.get(data.dataset, None if data.key.preprocessing.resized else height)
    return [] if height != width or height == own else ["--resize", str(height)]


def _preprocessing_flags(data: RunData) -> list[str]:
    settings = data.key.preprocessing.settings
    flags = [word for name, flag in PREPROCESSING_FLAGS.items()
             if isinstance(settings.get(name), str | int | float)
             for word in (flag, str(settings[name]))]  # fmt: skip
    flags += ["--keep-aspect"] if data.key.preprocessing.padded else []
    return [*flags, "--instances"] if settings.get("masks") == "instance ids" else flags


def _curves(run: FinishedRun) -> Figure:
    best, epochs = run.metrics.best_epoch, run.metrics.epochs
    png = figures.learning_curves(run.history, best, f"{run.name}: learning curves")
    alt = f"Learning curves of {run.name} over {epochs} epochs; the best is epoch {best}"
    return Figure(f"curves-{run.name}.png", png, alt)


def _sheet(run: FinishedRun, rows: list[tuple[str, tuple[Any, ...]]]) -> Figure:
    legend = Legend.of(run.data)
    title = f"{run.name}: images of {run.metrics.test_split}, from the worst to the best"
    png = figures.sheet(rows, PANELS, legend=(*legend.classes, *legend.errors), title=title)
    return Figure(f"images-{run.name}.png", png, title)


def _image_row(image: TestImage) -> ImageRow:
    pictures = list(zip(PANELS, image.panels, strict=True))
    pictures += [] if image.uncertainty is None else [("uncertainty", image.uncertainty)]
    panels = tuple(
        Panel(
            name=name,
            uri=data_uri(jpeg_bytes(pixels), "jpeg"),
            alt=f"{image.id}: {name}" + (f", {image.errors}" if name == "errors" else ""),
        )
        for name, pixels in pictures
    )
    return ImageRow(image.id, image.scores, image.errors, panels)
