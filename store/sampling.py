"""How the images of a store were taken, and what a new image is once it was brought to the same."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pathseg.store.contents import Contents

RESIZED = "resized to "  # how a data set's `preprocessing` begins when whole images were brought to one size


@dataclass(frozen=True)
class Sampling:
    """size: height and width in px of what a head sees at once. mpp: um/px at that size, None where nobody knows.

    resized: whether whole images were brought to that size, aspect ratio not kept. original_px: their height and width
    before that (medians).
    """

    size: tuple[int, int]
    mpp: float | None
    resized: bool
    original_px: tuple[int, int]

    @classmethod
    def of(cls, contents: Contents) -> Sampling:
        """Of a store's images. After a resize um/px is the geometric mean of both axes."""
        heights, widths = ([getattr(image, side) for image in contents.images] for side in ("height", "width"))
        original = int(statistics.median(heights)), int(statistics.median(widths))
        size, mpp = contents.key.size, contents.key.mpp
        resized = contents.key.preprocessing.startswith(RESIZED)
        if resized and mpp is not None:
            mpp *= math.sqrt(math.prod(original) / math.prod(size))
        return cls(tuple(size), mpp, resized, original)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "size": list(self.size),
            "mpp": self.mpp,
            "resized": self.resized,
            "original_px": list(self.original_px),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Sampling:
        """The inverse of `to_dict`. Raises KeyError for what is missing."""
        return cls(tuple(values["size"]), values["mpp"], values["resized"], tuple(values["original_px"]))


class Picture(Protocol):
    """An image or slide at the resolution a head was trained at.

    id: the file's stem. size: (H, W) at that resolution. file_px: (h0, w0) of the file. scale: px of the file in one px
    here, (down, across). mpp: um/px here, None where nobody knows. slide: whether it is one, read by region.
    digest: of the file's content, to know it from another of the same name.
    """

    id: str
    path: Path
    size: tuple[int, int]
    file_px: tuple[int, int]
    scale: tuple[float, float]
    mpp: float | None
    slide: bool
    digest: str

    def read(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """A region, (height, width, 3) uint8 RGB; white beyond the edges. Raises ValueError for a damaged file."""

    def overview(self, longest_px: int) -> np.ndarray:
        """The whole in the file's own aspect ratio, (h, w, 3) uint8, its longer side at most so many px."""

    def tissue(self) -> np.ndarray | None:
        """(h, w) bool over the whole, True where there is tissue; None for an image, which is tissue throughout."""

    def close(self) -> None:
        """Let go of the file."""
