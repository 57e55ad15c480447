"""Heads that start from the weights of a finished run, also where classes were added, renamed or reordered since."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from pathseg.store.key import StoreKey
from pathseg.train.config import IMAGE, Config, HeadConfig, InitialWeights
from pathseg.train.data.joined import JoinedStores
from pathseg.train.data.splits import Splits
from pathseg.train.heads.registry import HEADS
from pathseg.train.runs.ancestry import seen_images
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.record import TRAIN_AGAIN, SeenImages

# fields of a key that decide what a feature means; others, such as the data set, may differ
OF_THE_MODEL = ("model_digest", "condition", "vit", "surroundings", "diffusers", "zoom")


def initial_weights(folder: Path) -> InitialWeights:
    """Return the weights of a run as a setting of the heads that start from them.

    Raises FileNotFoundError for an unfinished run, ValueError, naming the file, for a damaged one.
    """
    run = RunFolder(folder)
    run.read_weights(run.read_metrics())
    return InitialWeights(run.weights_digests()[run.weights.name], str(folder))


def require_initial_run(stores: JoinedStores, config: Config, splits: Splits) -> None:
    """Raise ValueError, naming both values, unless the initial weights of a head, if any, fit its settings and stores.

    The run must be of the same type of head on the same blocks of the same models and share a class with the stores. No
    patient, slide or image that it or a run that it started from was trained on may validate or test now, none that one
    of them was validated on may test. A head on a subset of the training images starts only from runs that have seen
    none of the stores' images but those of its subset and its validation images.
    """
    if not isinstance(config, HeadConfig) or config.initial_weights is None:
        return
    run, _ = _read_run(stores, config, config.initial_weights)
    seen = _seen_by(run, stores)
    who = f"{run.name}{' or a run that it started from' * _has_parent(run)}"
    images = stores.images.contents.images
    val = [images[i] for i in splits.val]
    test = [images[i] for own in splits.tests.values() for i in own]
    leaked = {
        image.source or image.id
        for ids, sources, scored in (
            (set(seen.train), set(seen.train_sources), [*val, *test]),
            (set(seen.val), set(seen.val_sources), test),
        )
        for image in scored
        if image.id in ids or image.source in sources
    }
    if leaked:
        raise ValueError(
            f"{who} was trained or validated on {_first(leaked)}, which is to validate or test now, so that "
            "scores would be too high; pass another --from, or keep its split in splits.csv"
        )
    left_out = {image.id for image in images} - {images[i].id for i in (*splits.train, *splits.val)}
    if config.train_images != "all" and (more := {*seen.train, *seen.val} & left_out):
        raise ValueError(
            f"{who} has seen {_first(more)}, but train_images {config.train_images} leaves a subset of the training "
            "images without it, so that the head would count as trained on fewer images than it was; pass "
            "--train-images all, or leave --from out"
        )


def initial_run_images(stores: JoinedStores, config: Config) -> SeenImages | None:
    """Return the images that the initial weights of a head have seen, None where it starts from random ones."""
    if not isinstance(config, HeadConfig) or config.initial_weights is None:
        return None
    return _seen_by(FinishedRun.read(RunFolder(Path(config.initial_weights.run))), stores)


def _seen_by(run: FinishedRun, stores: JoinedStores) -> SeenImages:
    sources = {image.id: image.source for image in stores.images.contents.images if image.source is not None}
    return seen_images(run.folder, run.config, sources=sources)


def _has_parent(run: FinishedRun) -> bool:
    return isinstance(run.settings, HeadConfig) and run.settings.initial_weights is not None


def _first(names: Collection[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return f"{min(names)}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def load_initial_weights(head: nn.Module, stores: JoinedStores, config: HeadConfig) -> None:
    """Give a new head the weights that its configuration names.

    What belongs to a class goes to the class of the same name; classes that the run did not have keep their new
    weights. Raises ValueError as `require_initial_run`, and where the run's weights are no longer those named.
    """
    assert config.initial_weights is not None
    run, content = _read_run(stores, config, config.initial_weights)
    try:
        found = load(content)
    except SafetensorError as e:
        raise ValueError(f"{run.folder.weights} is damaged: {e}; {TRAIN_AGAIN}") from e
    classes, axes = stores.images.classes, _class_axes(stores, config)
    shared = [name for name in classes if name in run.data.classes]
    here = torch.tensor([classes.index(name) for name in shared])
    there = torch.tensor([run.data.classes.index(name) for name in shared])
    weights = {}
    for name, fresh in head.state_dict().items():
        if name in axes:
            of_classes = found[name].index_select(axes[name], there).to(fresh)
            weights[name] = fresh.clone().index_copy_(axes[name], here.to(fresh.device), of_classes)
        else:
            weights[name] = found[name]
    head.load_state_dict(weights)


def _read_run(stores: JoinedStores, config: HeadConfig, wanted: InitialWeights) -> tuple[FinishedRun, bytes]:
    """Return the run and the content of its head.safetensors."""
    run = FinishedRun.read(RunFolder(Path(wanted.run)))
    content, settings = run.folder.read_weights(run.metrics), run.settings
    if initial_weights(run.folder.path) != wanted:
        raise ValueError(f"{run.folder.weights} is not the file that training began with; pass --name for a new run")
    if not isinstance(settings, HeadConfig):
        raise ValueError(f"{run.name} is a baseline, but a head starts from a head; pass another --from")
    for what, before, now in (
        ("head", settings.head_type, config.head_type),
        ("number of stores", len(run.data.sources), len(stores.stores)),
        ("layers", _layers_text(settings), _layers_text(config)),
        ("image in the head", settings.image_in_head, config.image_in_head),
    ):
        if before != now:
            raise ValueError(
                f"{run.name} has {what} {before}, but {now} was asked for; pass another --from, or the settings of "
                "that run"
            )
    for source, store in zip(run.data.sources, stores.stores, strict=True):
        if differing := _differing(source.key, store.contents.key):
            raise ValueError(
                f"{run.name} was trained on features of {source.key.model}, made in another way than those of "
                f"{store.location} ({', '.join(differing)}); pass another --from"
            )
    if not set(run.data.classes) & set(stores.images.classes):
        raise ValueError(
            f"{run.name} knows the classes {', '.join(run.data.classes)}, {stores.images.location} has "
            f"{', '.join(stores.images.classes)}; pass another --from"
        )
    return run, content


def _layers_text(config: HeadConfig) -> str:
    named = (layer for layer in config.layers if layer != IMAGE)
    return ", ".join(
        f"{f'store {layer.source + 1} ' * bool(layer.source)}t {layer.t} block {layer.block}" for layer in named
    )


def _differing(before: StoreKey, now: StoreKey) -> list[str]:
    return [
        f"{name} {getattr(before, name)}, here {getattr(now, name)}"
        for name in OF_THE_MODEL
        if getattr(before, name) != getattr(now, name)
    ]


def _class_axes(stores: JoinedStores, config: HeadConfig) -> dict[str, int]:
    """Return the axis of classes of each tensor of a head that has one: that which grows with their number."""
    channels = {layer: stores.channels(layer) for layer in config.layers}
    count = len(stores.images.classes)
    with torch.device("meta"):
        now, larger = (HEADS[config.head_type](channels, k).state_dict() for k in (count, count + 1))
    return {
        name: next(axis for axis, (a, b) in enumerate(zip(own.shape, larger[name].shape, strict=True)) if a != b)
        for name, own in now.items()
        if own.shape != larger[name].shape
    }
