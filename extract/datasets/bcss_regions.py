"""Regions of slides: shrunk to a resolution and cut into overlapping tiles and crops (views) of these."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import numpy as np
from PIL import Image

from pathseg.extract.datasets.image_files import mask_codes

TILE_PX = 800  # side of a tile in px, the paper's; views are cropped from it
VIEW_PX = 768  # side of a view in px: 3x3 patches of 256 px
VIEW_RANGE_PX = TILE_PX - VIEW_PX
STRIP_PX = 512  # rows of a shrunk region that are computed at a time
IGNORED = 255  # code of pixels that count in no loss, class weight or metric

Region = tuple[np.ndarray, np.ndarray]  # image (H, W, 3) uint8, class codes (H, W) uint8


class RegionReader:
    """Decode regions by name and cache the last one, so that the tiles of a region decode it once.

    Thread-safe; at most one region is in memory.
    """

    def __init__(self, decode: Callable[[str], Region]) -> None:
        self._decode, self._lock = decode, threading.Lock()
        self._last: tuple[str, Region] | None = None

    def read(self, name: str) -> Region:
        """Return image and class codes of a region, not to be written to. Raises as `decode`."""
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = None  # first, so that there are never two in memory
                self._last = name, self._decode(name)
            return self._last[1]


def tile_starts(length: int, stride: int) -> tuple[int, ...]:
    """Return the first px of each tile along a side: every `stride` px, the last flush with the edge; at least one."""
    last = max(0, length - TILE_PX)
    return (*range(0, last, stride), last)


def view_offset(tile: str, view: int, *, seed: int) -> tuple[int, int]:
    """Return (y, x) of a view's first px in its tile: view 0 is the centre, others are drawn uniformly.

    A drawn view depends on seed, tile and view only (SHA-256 of `"{seed}/{tile}/view {view}"`).
    """
    if view == 0:
        return VIEW_RANGE_PX // 2, VIEW_RANGE_PX // 2
    drawn = hashlib.sha256(f"{seed}/{tile}/view {view}".encode()).digest()
    y, x = int.from_bytes(drawn[:8], "big"), int.from_bytes(drawn[8:16], "big")
    return y % (VIEW_RANGE_PX + 1), x % (VIEW_RANGE_PX + 1)


def scaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return height and width of a region shrunk by a factor; a last incomplete pixel is cut off."""
    height, width = (max(1, int(side / factor + 1e-6)) for side in size)
    return height, width


def shrink_image(image: Image.Image, factor: float) -> np.ndarray:
    """Shrink a decoded RGB image by averaging areas (Pillow's box filter): (H, W, 3) uint8.

    Strip by strip, so that memory holds Pillow's image and the result only.
    """
    height, width = scaled_size((image.height, image.width), factor)
    # Pillow has float32 box edges: with multiples of 1/8 they are exact, and strips equal the whole image to the bit
    step = STRIP_PX if (factor * 8).is_integer() else height
    small = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, step):
        rows = min(step, height - y)
        box = (0, y * factor, min(image.width, width * factor), min(image.height, (y + rows) * factor))
        small[y : y + rows] = np.asarray(image.resize((width, rows), Image.Resampling.BOX, box=box))
    return small


def shrink_mask(mask: Image.Image, factor: float) -> np.ndarray:
    """Shrink a decoded mask by nearest neighbour, the code at the centre of each new pixel: (H, W), dtype kept."""
    size = scaled_size((mask.height, mask.width), factor)
    rows, cols = (
        np.minimum(((np.arange(new) + 0.5) * factor).astype(np.intp), old - 1)
        for new, old in zip(size, (mask.height, mask.width), strict=True)
    )
    strips = []
    for y in range(0, len(rows), STRIP_PX):
        taken = rows[y : y + STRIP_PX, None]
        strip = mask_codes(mask.crop((0, int(taken[0, 0]), mask.width, int(taken[-1, 0]) + 1)))
        strips.append(strip[taken - taken[0], cols])
    return np.concatenate(strips)


def pad_to_tile(values: np.ndarray, *, mirrored: bool) -> np.ndarray:
    """Pad a region to at least `TILE_PX` a side, below and to the right, with mirrored tissue or with `IGNORED`."""
    padding = [(0, max(0, TILE_PX - side)) for side in values.shape[:2]] + [(0, 0)] * (values.ndim - 2)
    if not any(after for _, after in padding):
        return values
    if mirrored:
        return np.pad(values, padding, mode="reflect")
    return np.pad(values, padding, constant_values=IGNORED)
