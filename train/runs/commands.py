"""The command lines that repeat a run, with all that the run recorded."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

from pathseg.store.blocks import format_blocks
from pathseg.store.key import StoreKey
from pathseg.train.config import Selection
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.record import Source

SIDES_PX = {"glas": 768, "synthetic": 512}  # that extract brings a data set to without --resize
NOT_RECORDED = (  # of extract
    "--root, --limit, --classes, --mpp, --windows, --min-labelled-px, --val-institutes, --hipt, --weights, --context"
)
# settings of a data set's preprocessing that are flags of extract; a tuple (BCSS: of the files' names) is none
PREPROCESSING_FLAGS = {
    "image_folder": "--image-folder", "target_mpp": "--target-mpp", "stride_px": "--stride", "views": "--views",
    "brush_um": "--brush-um", "region_class": "--region-class", "outline_origin": "--outline-origin",
    "file_mpp": "--mpp", "ignored_code": "--ignore",
}  # fmt: skip
# fields of a store's key that are flags of extract
KEY_FLAGS = ("layout", "dtype", "packing", "precision", "batch_size", "seed")


def commands(run: FinishedRun, workspace: Path) -> tuple[str, ...]:
    """Return the command lines of such a run, from extraction to report, with all that the run recorded.

    The flags of the first that are not recorded are `NOT_RECORDED`.
    """
    settings, sources, common = run.settings, run.data.sources, ["--workspace", str(workspace)]
    selections = settings.selections or (None,)
    extract = [_extract(source, selection, common) for source, selection in zip(sources, selections, strict=True)]
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
        if field.name == "initial_weights":
            train += [] if value is None else [flag, value.run]
            continue
        texts = of_stores.get(field.name, [str(value)])
        train += [flag, ",".join(map("{}:{}".format, names, texts)) if names and field.name in of_stores else texts[0]]
    lines = (*extract, [*train, "--name", run.name], ["report", *common])
    return tuple(f"pathseg {shlex.join(line)}" for line in lines)


def _extract(source: Source, selection: Selection | None, common: list[str]) -> list[str]:
    """The command that makes a store, with what a head reads of it; of a baseline with the default features."""
    key, features = source.key, []
    if selection is not None:
        any_block = key.vit is None and key.surroundings is None  # else the model may lack some, or refuse some
        blocks = "all" if any_block else format_blocks(selection.blocks)
        features = ["--t", str(selection.t), "--blocks", blocks]
    return ["extract", *common, *extract_flags(key), *features, "--store", source.store]


def extract_flags(key: StoreKey) -> list[str]:
    """Return the flags of extract that a key records: those of the data set, of the model, and of how they are kept."""
    return [
        "--dataset", key.dataset, "--model", key.model,
        *(["--condition", key.condition] if key.model_kind == "latent-diffusion" else []), *_resize_flag(key),
        *_preprocessing_flags(key), *_model_flags(key),
        *(word for name in KEY_FLAGS for word in (f"--{name.replace('_', '-')}", str(getattr(key, name)))),
        *(["--surroundings", str(key.field_patches)] if key.surroundings else []),
    ]  # fmt: skip


def _model_flags(key: StoreKey) -> list[str]:
    """The flags that build and feed a timm model, a diffusers pipeline or ZoomLDM as the run recorded."""
    vit = key.vit
    if key.zoom is not None:
        return ["--magnification", key.zoom.magnification]
    if vit is None:
        label = None if key.diffusers is None else key.diffusers.class_label
        return [] if label is None else ["--class-label", str(label)]
    mean, std = (",".join(map(str, rgb)) for rgb in (vit.mean, vit.std))
    flags = ["--mean", mean, "--std", std, "--input-px", str(vit.input_px), "--norm", vit.norm]
    arguments = ",".join(f"{name}={json.dumps(value)}" for name, value in vit.model_args.items())
    return [*flags, "--model-args", arguments] if arguments else flags


def _resize_flag(key: StoreKey) -> list[str]:
    """The flag that gives the images their size, of slides the windows; nothing where it is the data set's own."""
    height, width = key.size
    if key.dataset == "slides":
        return ["--window-px", str(height)]
    own = SIDES_PX.get(key.dataset, None if key.preprocessing.resized else height)
    return [] if height != width or height == own else ["--resize", str(height)]


def _preprocessing_flags(key: StoreKey) -> list[str]:
    settings = key.preprocessing.settings
    flags = [word for name, flag in PREPROCESSING_FLAGS.items()
             if isinstance(settings.get(name), str | int | float)
             for word in (flag, str(settings[name]))]  # fmt: skip
    flags += ["--keep-aspect"] if key.preprocessing.padded else []
    return [*flags, "--instances"] if settings.get("masks") == "instance ids" else flags
