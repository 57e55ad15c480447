"""A store of random features with the block shapes of the paper's model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.constant_model import FULL_SIZE
from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import BlockShape
from pathseg.store.key import Preprocessing, StoreKey
from pathseg.store.writer import StoreWriter


def random_contents(
    splits: Sequence[str],
    *,
    blocks: dict[int, tuple[int, int]] = FULL_SIZE,
    side: int = 768,
    packing: str = "none",
    images_per_unit: int = 1,
) -> Contents:
    """Describe a store of one image, side x side px, per entry of `splits`: two classes, native layout, float16."""
    key = StoreKey(
        dataset="random",
        preprocessing=Preprocessing(),
        size=(side, side),
        mpp=0.5,
        model="random",
        model_digest="0" * 64,
        first_stage=None,
        condition="none",
        seed=0,
        layout="native",
        dtype="float16",
        packing=packing,
    )
    return Contents(
        key=key,
        images=tuple(ImageEntry(f"image_{i}", split, side, side) for i, split in enumerate(splits)),
        classes=("background", "gland"),
        background=0,
        ignore=None,
        test_split="test",
        blocks={b: BlockShape(*shape) for b, shape in blocks.items()},
        model_trained=False,
        has_instances=False,
        made_by={},
        images_per_unit=images_per_unit,
    )


def random_values(contents: Contents) -> dict[int, np.ndarray]:
    """Return normal values of one image, {block: (P, C, h, w) float16}."""
    rng = np.random.default_rng(0)
    return {block: _normal(contents, block, rng) for block in contents.blocks}


def _normal(contents: Contents, block: int, rng: np.random.Generator) -> np.ndarray:
    shape = contents.blocks[block]
    size = (contents.grid.patches, shape.channels, shape.side, shape.side)
    return rng.standard_normal(size, np.float32).astype("f2")


def random_store(path: Path | str, splits: Sequence[str], **settings: object) -> FeatureStore:
    """Write a complete store at t = 50 to `path` (or s3://…).

    Features are normal values; each mask is split into two classes by a vertical line. `settings` are those of
    `random_contents`.
    """
    contents = random_contents(splits, **settings)
    writer, rng = StoreWriter(path, contents), np.random.default_rng(0)
    writer.add_arrays([50], contents.blocks)
    side = contents.key.size[0]
    for unit in range(contents.units):
        images = range(len(splits))[unit * contents.images_per_unit :][: contents.images_per_unit]
        masks = [np.broadcast_to(np.arange(side) < rng.integers(side // 4, side), (side, side)) for _ in images]
        image = np.full((side, side, 3), 200, np.uint8)
        writer.write_pixels(unit, [(image, mask.astype(np.uint8), None) for mask in masks])
        maps = ((b, [_normal(contents, b, rng) for _ in images]) for b in contents.blocks)
        writer.write_features(unit, t=50, features=maps)
    return writer.store
