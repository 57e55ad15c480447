"""Expected sizes of features: bytes per patch and block, images per file, layouts that fit into the free space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pathseg.store.format.packing import PACKINGS
from pathseg.store.grid import HEAD_CELLS, PATCH_PX

MAX_UNSHARDED_IMAGES = 2_000  # up to here each image is a file of its own: a hundred thousand files at most
MAX_SHARD_BYTES = 100 * 2**20  # a larger shard is written no faster and costs memory
MAX_IMAGES_PER_SHARD = 64
CELLS = {"grid": HEAD_CELLS, "image": PATCH_PX}  # side of a stored map; native keeps the block's own


@dataclass(frozen=True)
class BlockShape:
    """A block of a model: its channels and the side of its map for one 256 px patch, in cells."""

    channels: int
    side: int

    def stored(self, layout: str) -> tuple[int, int, int]:
        """Return (C, h, w) of one patch in a layout."""
        side = CELLS.get(layout, self.side)
        return self.channels, side, side


def patch_bytes(
    shapes: Mapping[int, BlockShape], *, layout: str, dtype: str, packing: str = "none", patches_per_image: int = 1
) -> dict[int, int]:
    """Return the bytes of one patch at one timestep, per block.

    Without compression they are exact, on disk as in memory; with a compressing packing they are the size on disk to be
    expected, from the measured `Packing.size_ratio`. Scales, where there are any, are shared by an image's patches.
    """
    sizes = {}
    for block, shape in shapes.items():
        arrays = PACKINGS[packing].arrays("", (patches_per_image, *shape.stored(layout)), dtype)
        image_bytes = sum(array.image_bytes for array in arrays) * PACKINGS[packing].size_ratio
        sizes[block] = round(image_bytes / patches_per_image)
    return sizes


def images_per_unit(images: int, largest_bytes: int) -> int:
    """Return how many images are written and recorded together: 1, or in large sets as many as fill a shard.

    largest_bytes: uncompressed bytes of one image's largest block.
    """
    if images <= MAX_UNSHARDED_IMAGES:
        return 1
    return max(1, min(MAX_IMAGES_PER_SHARD, MAX_SHARD_BYTES // largest_bytes))


def format_bytes(size_bytes: float, *, packing: str = "none") -> str:
    """Format a size in decimal units with three digits: 12345678 -> `12.3 MB`.

    With a compressing packing, the size can only be expected: `about 12.3 MB`.
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 999.5 or unit == "TB":
            break
        size_bytes /= 1000
    digits = 0 if unit == "B" or size_bytes >= 99.95 else 1
    return f"{'' if PACKINGS[packing].size_ratio == 1 else 'about '}{size_bytes:.{digits}f} {unit}"


def fitting_layouts(
    shapes: Mapping[int, BlockShape],
    *,
    layouts: Iterable[str],
    free_bytes: int,
    patches: int,
    dtype: str,
    packing: str = "none",
    patches_per_image: int = 1,
) -> list[str]:
    """Return the layouts in which `patches` patches (times timesteps) are expected to fit into the free space."""
    sizes = {
        name: patch_bytes(shapes, layout=name, dtype=dtype, packing=packing, patches_per_image=patches_per_image)
        for name in layouts
    }
    return [name for name, per_block in sizes.items() if sum(per_block.values()) * patches <= free_bytes]
