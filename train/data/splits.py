"""Which images of a store train, validate and test, and which view of a patch an epoch sees."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pathseg.store.errors import Incomplete
from pathseg.store.features import FeatureStore


@dataclass(frozen=True)
class Parts:
    """Indices of a store's images: training (all views of a patch), validation, and each test part by its name."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    tests: dict[str, tuple[int, ...]]

    def named(self) -> dict[str, tuple[int, ...]]:
        """All parts by name, in the order train, val, tests."""
        return {"train": self.train, "val": self.val, **self.tests}


def split_images(store: FeatureStore, *, val_fraction: float, seed: int, without: Collection[int] = ()) -> Parts:
    """Take the splits as the store names them; without a `val` split, hold out a seeded share of `train`.

    Images whose indices are in `without` are left out. Test parts are the splits whose names start with `test`. Held
    out are whole sources (slides or regions), so that no tissue is on both sides; images without one are their own.
    Validation and test parts have the first view of a patch, its centre. Raises ValueError when one of the three kinds
    is missing.
    """
    by_split: dict[str, list[int]] = {}
    for index, split in enumerate(store.splits):
        if index in without:
            continue
        by_split.setdefault(split, []).append(index)
    train, val = by_split.get("train", []), by_split.get("val", [])
    tests = {name: first_views(store, indices) for name, indices in sorted(by_split.items()) if name.startswith("test")}
    if not tests:
        raise ValueError(f"{store.location} has no test split, only {', '.join(sorted(by_split))}; metrics need one")
    if not val:
        sources = [store.contents.images[index].source or index for index in train]
        several = list(dict.fromkeys(sources))
        if len(several) < 2:
            alike = " of a single region" if len(train) > len(several) else ""
            raise ValueError(
                f"{store.location} has {len(train)} training images{alike} and no val split; at least 2 are needed, "
                f"one of them to choose the best epoch on; extract more images"
            )
        order = np.random.default_rng(seed).permutation(len(several))
        held = {several[i] for i in order[: max(1, round(len(several) * val_fraction))]}
        val = [index for index, source in zip(train, sources, strict=True) if source in held]
        train = [index for index, source in zip(train, sources, strict=True) if source not in held]
    if not train:
        raise ValueError(f"{store.location} has no training images; extract some")
    return Parts(tuple(train), first_views(store, val), tests)


def first_views(store: FeatureStore, indices: Sequence[int]) -> tuple[int, ...]:
    """One image of each patch: of those given the one with the lowest number of view, which is the centre."""
    return tuple(views[0] for views in _by_patch(store, indices))


def draw_views(store: FeatureStore, indices: Sequence[int], *, seed: int, epoch: int) -> tuple[int, ...]:
    """One image of each patch, drawn anew for each epoch; an image that is no view of a patch is always taken.

    The draw of a patch depends on seed, epoch and patch alone (SHA-256 of `"{seed}/{patch}/epoch {epoch}"`).
    """
    drawn = []
    for views in _by_patch(store, indices):
        patch = store.contents.images[views[0]].group
        digest = hashlib.sha256(f"{seed}/{patch}/epoch {epoch}".encode()).digest()
        drawn.append(views[int.from_bytes(digest[:8], "big") % len(views)])
    return tuple(drawn)


def _by_patch(store: FeatureStore, indices: Sequence[int]) -> list[list[int]]:
    """The views of each patch together, lowest number first, patches in the order given."""
    images, patches = store.contents.images, {}
    for index in indices:
        patches.setdefault(images[index].group or index, []).append(index)
    return [sorted(views, key=lambda index: images[index].view) for views in patches.values()]


def lacking_images(store: FeatureStore, *, t: int | None, blocks: Iterable[int]) -> tuple[int, ...]:
    """Indices of the images that lack their pixels or, unless t is None, one of these blocks."""
    return store.unfinished(t=t, blocks=() if t is None else blocks)


def incomplete_images(
    store: FeatureStore, *, t: int | None, blocks: Iterable[int], allowed: bool = False
) -> tuple[int, ...]:
    """Indices of the images that lack one of these blocks; with t None, of those that lack their pixels.

    Raises Incomplete, naming what there is, when no image has a block, or when any lacks one and that is not `allowed`.
    """
    blocks = tuple(blocks)
    if t is not None:
        require_stored(store, t, blocks)
    unfinished = lacking_images(store, t=t, blocks=blocks)
    if unfinished and not allowed:
        names = ", ".join(store.ids[i] for i in unfinished[:3]) + (", …" if len(unfinished) > 3 else "")
        raise Incomplete(
            f"{store.location} lacks features of {len(unfinished)} of {len(store)} images ({names}); "
            f"run pathseg extract again to finish it, or pass --complete-only to do without them"
        )
    return unfinished


def require_stored(store: FeatureStore, t: int, blocks: tuple[int, ...] = ()) -> None:
    """Raise Incomplete, naming what there is, when no image has features at t, or one of these blocks there."""
    stored = store.stored_blocks(t)
    if not stored:
        steps = ", ".join(map(str, store.timesteps())) or "none"
        raise Incomplete(f"{store.location} has no features at t {t}, only at t {steps}; run pathseg extract --t {t}")
    if lacking := [block for block in blocks if block not in stored]:
        raise Incomplete(
            f"{store.location} has blocks {list(stored)} at t {t}, not {lacking}; choose others with --blocks"
        )
