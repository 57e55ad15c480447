"""Regions of slides, too large for one image: brought to a scale, cut into overlapping patches and views of them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import numpy as np
from PIL import Image

from pathseg.extract.datasets.image_files import codes_of

CUT_PX = 800  # side of a patch; the paper's, of which a view is cropped
VIEW_PX = 768  # side of a view: 3x3 patches of the encoders
SLACK_PX = CUT_PX - VIEW_PX
STRIP_PX = 512  # rows of a shrunk region that are made at once
IGNORED = 255  # code of pixels that count nowhere

Region = tuple[np.ndarray, np.ndarray]  # image (H, W, 3) uint8, class codes (H, W) uint8


class RegionReader:
    """Gives regions by name and keeps the last one, so that cutting its patches one after another decodes it once.

    Memory is that of one region, whatever their number. Threads that ask for the same region decode it once.
    """

    def __init__(self, decode: Callable[[str], Region]) -> None:
        self._decode, self._lock = decode, threading.Lock()
        self._last: tuple[str, Region] | None = None

    def read(self, name: str) -> Region:
        """The region, read-only. Raises as `decode`."""
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = None  # first, so that there are never two in memory
                self._last = name, self._decode(name)
            return self._last[1]


def patch_starts(length: int, stride: int) -> tuple[int, ...]:
    """Where patches of `CUT_PX` begin along a side: every `stride` px, the last flush with the edge; at least one."""
    last = max(0, length - CUT_PX)
    return (*range(0, last, stride), last)


def view_offset(patch: str, view: int, *, seed: int) -> tuple[int, int]:
    """Where a view begins in its patch, (y, x) in px: view 0 is the centre, others are drawn, each place as likely.

    A drawn view depends on seed, patch and number alone (SHA-256 of `"{seed}/{patch}/view {number}"`).
    """
    if view == 0:
        return SLACK_PX // 2, SLACK_PX // 2
    drawn = hashlib.sha256(f"{seed}/{patch}/view {view}".encode()).digest()
    y, x = int.from_bytes(drawn[:8], "big"), int.from_bytes(drawn[8:16], "big")
    return y % (SLACK_PX + 1), x % (SLACK_PX + 1)


def scaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Height and width of a region shrunk by a factor; what is left of a last pixel is cut off."""
    height, width = (max(1, int(side / factor + 1e-6)) for side in size)
    return height, width


def shrink_image(image: Image.Image, factor: float) -> np.ndarray:
    """A decoded RGB image shrunk by averaging areas (Pillow's box filter; a factor of 2 takes the mean of 2x2 px).

    (H, W, 3) uint8. Strip by strip, so that no more is in memory than the image as Pillow holds it and the result.
    """
    height, width = scaled_size((image.height, image.width), factor)
    # Pillow keeps edges as float32: only with such factors do strips begin where they would in the whole, to the bit
    step = STRIP_PX if (factor * 8).is_integer() else height
    small = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, step):
        rows = min(step, height - y)
        box = (0, y * factor, min(image.width, width * factor), min(image.height, (y + rows) * factor))
        small[y : y + rows] = np.asarray(image.resize((width, rows), Image.Resampling.BOX, box=box))
    return small


def shrink_mask(mask: Image.Image, factor: float) -> np.ndarray:
    """A decoded mask shrunk by a factor: the code at the centre of each new pixel (nearest), (H, W) in its integers."""
    size = scaled_size((mask.height, mask.width), factor)
    rows, cols = (
        np.minimum(((np.arange(new) + 0.5) * factor).astype(np.intp), old - 1)
        for new, old in zip(size, (mask.height, mask.width), strict=True)
    )
    strips = []
    for y in range(0, len(rows), STRIP_PX):
        taken = rows[y : y + STRIP_PX, None]
        strip = codes_of(mask.crop((0, int(taken[0, 0]), mask.width, int(taken[-1, 0]) + 1)))
        strips.append(strip[taken - taken[0], cols])
    return np.concatenate(strips)


def fill_up(values: np.ndarray, *, mirrored: bool) -> np.ndarray:
    """A region of less than `CUT_PX` a side made that large, below and to the right: mirrored tissue, or `IGNORED`."""
    lacking = [(0, max(0, CUT_PX - side)) for side in values.shape[:2]] + [(0, 0)] * (values.ndim - 2)
    if not any(after for _, after in lacking):
        return values
    if mirrored:
        return np.pad(values, lacking, mode="reflect")
    return np.pad(values, lacking, constant_values=IGNORED)
