"""A store of random features in the shapes of the paper's model, for what costs the same whatever the values are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from free import FULL

from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import BlockShape
from pathseg.store.key import StoreKey
from pathseg.store.writer import StoreWriter


def random_contents(
    splits: Sequence[str],
    *,
    blocks: dict[int, tuple[int, int]] = FULL,
    side: int = 768,
    packing: str = "none",
    images_per_unit: int = 1,
) -> Contents:
    """Images of side x side px in two classes, one for each split named; native layout, float16."""
    key = StoreKey(
        dataset="random",
        preprocessing="none",
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
        ignore=None,
        test_split="test",
        blocks={b: BlockShape(*shape) for b, shape in blocks.items()},
        model_trained=False,
        has_instances=False,
        made_by={},
        images_per_unit=images_per_unit,
    )


def random_store(path: Path | str, splits: Sequence[str], **settings: object) -> FeatureStore:
    """A complete store at `path` (or s3://…) at t = 50, as `random_contents` describes it; masks are half planes."""
    contents = random_contents(splits, **settings)
    writer, rng = StoreWriter(path, contents), np.random.default_rng(0)
    writer.add_arrays([50], contents.blocks)
    for unit in range(contents.units):
        side, mask = contents.key.size[0], np.zeros(contents.key.size, np.uint8)
        mask[:, : rng.integers(side // 4, side)] = 1
        writer.write_pixels(unit, [(np.full((side, side, 3), 200, np.uint8), mask, None)])
        maps = (
            (b, [rng.standard_normal((contents.grid.patches, s.channels, s.side, s.side), np.float32).astype("f2")])
            for b, s in contents.blocks.items()
        )
        writer.write_features(unit, t=50, features=maps)
    return writer.store
