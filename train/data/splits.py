"""Splits of a store's images into training, validation and test, and the view of each group that an epoch trains on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pathseg.store.errors import Incomplete
from pathseg.store.features import FeatureStore
from pathseg.train.config import Config


@dataclass(frozen=True)
class Splits:
    """Indices of a store's images: training (all views of a group), validation, and each test split by its name."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    tests: dict[str, tuple[int, ...]]

    def named(self) -> dict[str, tuple[int, ...]]:
        """All splits by name, in the order train, val, tests."""
        return {"train": self.train, "val": self.val, **self.tests}


def split_images(store: FeatureStore, *, val_fraction: float, seed: int, without: Collection[int] = ()) -> Splits:
    """Return the splits that the store names; without a `val` split, hold out a seeded share of `train`.

    Images whose indices are in `without` are left out, and so are those of any other split. Test splits are those whose
    names start with `test`. Whole sources (slides or regions) are held out, so that no tissue is on both sides; an
    image without a source is held out with its views alone. Validation and test splits hold the first view of each
    group: its centre, or the image as in the file. There is no validation where all training images are of one source,
    as of a single slide, and there are no tests where the store has no test split. Raises ValueError when there is no
    training image.
    """
    by_split: dict[str, list[int]] = {}
    for index, split in enumerate(store.splits):
        if index in without:
            continue
        by_split.setdefault(split, []).append(index)
    train, val = by_split.get("train", []), by_split.get("val", [])
    tests = {name: first_views(store, indices) for name, indices in sorted(by_split.items()) if name.startswith("test")}
    sources = [_indivisible(store, index) for index in train]
    several = list(dict.fromkeys(sources))
    if not val and len(several) > 1:
        order = np.random.default_rng(seed).permutation(len(several))
        held = {several[i] for i in order[: max(1, round(len(several) * val_fraction))]}
        val = [index for index, source in zip(train, sources, strict=True) if source in held]
        train = [index for index, source in zip(train, sources, strict=True) if source not in held]
    if not train:
        raise ValueError(f"{store.location} has no training images; extract some")
    return Splits(tuple(train), first_views(store, val), tests)


def shared_sources(store: FeatureStore, splits: Splits) -> dict[str, int]:
    """Return how many sources (patients, slides) of each test split also have training or validation images.

    Test splits without such a source are left out, and so are all where the store names no sources.
    """
    images = store.contents.images
    seen = {images[index].source for index in (*splits.train, *splits.val)} - {None}
    shared = {name: len({images[index].source for index in own} & seen) for name, own in splits.tests.items()}
    return {name: count for name, count in shared.items() if count}


def sources_of(store: FeatureStore, indices: Iterable[int]) -> tuple[str, ...]:
    """Return the sources (patients, slides, regions) of images, sorted; empty where none has one."""
    images = store.contents.images
    return tuple(sorted({source for index in indices if (source := images[index].source) is not None}))


def run_splits(store: FeatureStore, config: Config, *, without: Collection[int] = ()) -> tuple[Splits, int]:
    """Return the splits of a run, training images cut to those it takes, and how many images an epoch of it has.

    An epoch has one image of each group of the whole training split, also where the run trains on a subset.
    Raises ValueError as `split_images` and `training_subset` do.
    """
    splits = split_images(store, val_fraction=config.val_fraction, seed=config.split_seed, without=without)
    epoch_images = len(first_views(store, splits.train))
    if config.train_images != "all":
        subset = training_subset(store, splits.train, config.train_images, seed=config.seed)
        splits = dataclasses.replace(splits, train=subset)
    return splits, epoch_images


def training_subset(store: FeatureStore, train: Sequence[int], count: int, *, seed: int) -> tuple[int, ...]:
    """Return the indices of `count` training images, with all their views, of images `train`.

    A seeded order of sources (patients or slides; an image without one stands for itself) is cut after `count` images,
    so that the subsets of one seed are nested and hold as few sources as possible. Raises ValueError when there are
    fewer images than that.
    """
    groups = _by_group(store, train)
    if count > len(groups):
        raise ValueError(f"train_images {count}: only {len(groups)} images are left to train on; pass fewer, or all")
    sources = [_indivisible(store, views[0]) for views in groups]
    several = list(dict.fromkeys(sources))
    rank = {several[i]: number for number, i in enumerate(np.random.default_rng(seed).permutation(len(several)))}
    order = sorted(range(len(groups)), key=lambda number: rank[sources[number]])  # stable: images keep their order
    return tuple(sorted(index for number in order[:count] for index in groups[number]))


def _indivisible(store: FeatureStore, index: int) -> tuple[str, str] | int:
    """What an image shares with those on its side of the validation split: its source, else its group, else nothing."""
    image = store.contents.images[index]
    if image.source:
        return "source", image.source
    return ("group", image.group) if image.group else index


def first_views(store: FeatureStore, indices: Sequence[int]) -> tuple[int, ...]:
    """Return one image of each group: the view with the lowest number among those given."""
    return tuple(views[0] for views in _by_group(store, indices))


def draw_views(store: FeatureStore, indices: Sequence[int], *, seed: int, epoch: int) -> tuple[int, ...]:
    """Draw one view of each group, anew in each epoch; an image without a group is always taken.

    The draw of a group depends on seed, epoch and group alone (SHA-256 of `"{seed}/{group}/epoch {epoch}"`).
    """
    drawn = []
    for views in _by_group(store, indices):
        group = store.contents.images[views[0]].group
        digest = hashlib.sha256(f"{seed}/{group}/epoch {epoch}".encode()).digest()
        drawn.append(views[int.from_bytes(digest[:8], "big") % len(views)])
    return tuple(drawn)


def _by_group(store: FeatureStore, indices: Sequence[int]) -> list[list[int]]:
    """Return the views of each group, lowest number first, groups in the order given; an image without one is alone."""
    images = store.contents.images
    groups: dict[str | int, list[int]] = {}
    for index in indices:
        groups.setdefault(images[index].group or index, []).append(index)
    return [sorted(views, key=lambda index: images[index].view) for views in groups.values()]


def lacking_images(store: FeatureStore, *, t: int | None, blocks: Iterable[int]) -> tuple[int, ...]:
    """Return the indices of labelled images that lack their pixels or, unless t is None, one of these blocks."""
    lacking = store.unfinished(t=0, blocks=()) if t is None else store.unfinished(t=t, blocks=blocks)
    return tuple(sorted(set(lacking) & set(store.labelled)))


def incomplete_images(
    store: FeatureStore, *, t: int | None, blocks: Iterable[int], allowed: bool = False
) -> tuple[int, ...]:
    """Return the indices of labelled images that lack one of these blocks, or with t None their pixels.

    Raises Incomplete when no image has a block, or when an image lacks one and `allowed` is False.
    """
    blocks = tuple(blocks)
    if t is not None:
        require_stored(store, t, blocks)
    unfinished = lacking_images(store, t=t, blocks=blocks)
    if unfinished and not allowed:
        names = ", ".join(store.ids[i] for i in unfinished[:3]) + (", …" if len(unfinished) > 3 else "")
        raise Incomplete(
            f"{store.location} lacks features of {len(unfinished)} of {len(store.labelled)} images ({names}); "
            f"run pathseg extract again to finish it, or pass --complete-only to do without them"
        )
    return unfinished


def require_stored(store: FeatureStore, t: int, blocks: tuple[int, ...] = ()) -> None:
    """Raise Incomplete, naming the stored timesteps or blocks, when no image has features at t or one of the blocks."""
    stored = store.stored_blocks(t)
    if not stored:
        steps = ", ".join(map(str, store.timesteps())) or "none"
        raise Incomplete(
            f"{store.location} has no features at t {t}, only at t {steps}; run pathseg extract --t {t}, or give each "
            "of several joined stores its own, --t A:100,B:50"
        )
    if lacking := [block for block in blocks if block not in stored]:
        raise Incomplete(
            f"{store.location} has blocks {list(stored)} at t {t}, not {lacking}; choose others with --blocks"
        )
