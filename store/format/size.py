"""How many bytes features take, before any is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pathseg.store.grid import HEAD_CELLS, PATCH_PX

FEW = 2_000  # images that are kept in files of their own: a hundred thousand files at most
SHARD_BYTES = 100 * 2**20  # beyond it a shard gains nothing and costs memory
CELLS = {"grid": HEAD_CELLS, "image": PATCH_PX}  # side of a stored map; native keeps the block's own


@dataclass(frozen=True)
class BlockShape:
    """A block of a model: its channels and the side of its map for one 256 px patch, in cells."""

    channels: int
    side: int

    def stored(self, layout: str) -> tuple[int, int, int]:
        """(C, h, w) of one patch as that layout keeps it."""
        side = CELLS.get(layout, self.side)
        return self.channels, side, side


def patch_bytes(shapes: Mapping[int, BlockShape], *, layout: str, dtype: str) -> dict[int, int]:
    """Bytes of one patch at one timestep, per block."""
    width = np.dtype(dtype).itemsize
    return {block: int(np.prod(shape.stored(layout))) * width for block, shape in shapes.items()}


def images_per_unit(images: int, largest_bytes: int) -> int:
    """How many images are written and recorded together: one, but for large sets as many as bound the files.

    largest_bytes: of one image's largest block. Above FEW images a shard of it grows to SHARD_BYTES.
    """
    return 1 if images <= FEW else max(1, min(64, SHARD_BYTES // largest_bytes))


def human(size_bytes: float) -> str:
    """12345678 -> '12.3 MB' (decimal units, three digits)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 999.5 or unit == "TB":
            break
        size_bytes /= 1000
    digits = 0 if unit == "B" or size_bytes >= 99.95 else 1
    return f"{size_bytes:.{digits}f} {unit}"


def fitting_layouts(
    shapes: Mapping[int, BlockShape], *, layouts: Iterable[str], free_bytes: int, patches: int, dtype: str
) -> list[str]:
    """The layouts in which that many patches (times timesteps) would fit into the free space."""
    return [
        layout
        for layout in layouts
        if sum(patch_bytes(shapes, layout=layout, dtype=dtype).values()) * patches <= free_bytes
    ]
