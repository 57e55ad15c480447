"""Size and resolution of a store's images, and the interface of new images that are read at that resolution."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pathseg.store.contents import Contents
from pathseg.store.grid import fitted_size
from pathseg.store.resolution import MppSource


@dataclass(frozen=True)
class Sampling:
    """Size and resolution of the images that a head is trained on.

    size: height and width in px, as the head sees them. mpp: um/px at that size, None where it is unknown. resized:
    whether whole images were resized to that size, aspect ratio not kept unless they are padded. original_px: median
    height and width of the image files in px. padded: whether images fill the upper left of that size.
    """

    size: tuple[int, int]
    mpp: float | None
    resized: bool
    original_px: tuple[int, int]
    padded: bool = False

    @classmethod
    def of(cls, contents: Contents) -> Sampling:
        """Derive the sampling from a store's contents. After a resize, mpp is the geometric mean of both axes."""
        listed = [contents.images[index] for index in contents.listed]
        original = _median([image.height for image in listed]), _median([image.width for image in listed])
        size, mpp, resized = contents.key.size, contents.key.mpp, contents.key.preprocessing.resized
        padded = contents.key.preprocessing.padded
        if resized and mpp is not None:
            mpp *= math.sqrt(math.prod(original) / math.prod(fitted_size(original, size) if padded else size))
        return cls(size, mpp, resized, original, padded)

    @property
    def stretch(self) -> float:
        """How much longer a length becomes along the height than along the width; 1 where the aspect ratio is kept."""
        if not self.resized or self.padded:
            return 1.0
        return (self.size[0] / self.original_px[0]) / (self.size[1] / self.original_px[1])

    @property
    def file_mpp(self) -> float | None:
        """um/px of the image files, None where it is unknown; the geometric mean of both axes as `mpp`."""
        if self.mpp is None or not self.resized:
            return self.mpp
        filled = fitted_size(self.original_px, self.size) if self.padded else self.size
        return self.mpp * math.sqrt(math.prod(filled) / math.prod(self.original_px))

    @property
    def mpp_axes(self) -> tuple[float, float] | None:
        """Vertical and horizontal um/px at `size`, None where it is unknown."""
        return None if self.mpp is None else (self.mpp / math.sqrt(self.stretch), self.mpp * math.sqrt(self.stretch))

    def mpp_text(self, unit: str = "um/px") -> str:
        """Format um/px at `size`, of both axes where they differ."""
        if self.mpp_axes is None:
            return f"{unit} not stated"
        vertical, horizontal = (f"{mpp:.3g}" for mpp in self.mpp_axes)
        return f"{vertical} {unit}" if vertical == horizontal else f"{horizontal} {unit} across, {vertical} {unit} down"


class InputImage(Protocol):
    """An image file or whole slide, read at the resolution that a head was trained at.

    id: stem of the file name. size: (H, W) in px at that resolution. file_px: (h0, w0) in px of the file. scale: px of
    the file per px at that resolution, (vertical, horizontal). mpp: um/px at that resolution, None where it is unknown.
    mpp_from: where the um/px of the file is from, None where mpp is. mpp_note: a warning on it, None without one.
    slide: whether it is a whole slide, read by region. origin: (y, x) of the first px in px of the file, not (0, 0)
    where a slide states the bounds of what was scanned.
    """

    id: str
    path: Path
    size: tuple[int, int]
    file_px: tuple[int, int]
    scale: tuple[float, float]
    mpp: float | None
    mpp_from: MppSource | None
    mpp_note: str | None
    slide: bool
    origin: tuple[int, int]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that hold it, `path` first."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content of its files."""

    def read(self, y: int, x: int, height: int, width: int, *, mirrored: bool = False) -> np.ndarray:
        """Return a region, (height, width, 3) uint8 RGB, white beyond the edges; with `mirrored` an image goes on
        mirrored there. Raises ValueError if damaged.
        """

    def overview(self, longest_px: int) -> np.ndarray:
        """Return the whole image in the file's aspect ratio, (h, w, 3) uint8, longer side at most `longest_px`."""

    def tissue(self) -> np.ndarray | None:
        """Return the tissue mask of the whole slide, (h, w) bool; None for an image, which is all tissue."""

    def close(self) -> None:
        """Close the file."""


def read_field(image: InputImage, y: int, x: int, height: int, width: int, *, margin: int) -> np.ndarray:
    """Return a region of an image as a model sees it with its surroundings, (height + 2m, width + 2m, 3) uint8 RGB.

    The region itself is white beyond the edges of the image; in the margin an image goes on mirrored there.
    """
    region = image.read(y, x, height, width)
    if not margin:
        return region
    field = image.read(y - margin, x - margin, height + 2 * margin, width + 2 * margin, mirrored=True).copy()
    field[margin:-margin, margin:-margin] = region
    return field


def scaled_range(first: int, last: int, *, length: int, mask_length: int) -> slice:
    """Return px first to last (exclusive) of an axis in px of a mask of the same extent; at least one px.

    length, mask_length: of the axis, in px of the image and in px of the mask.
    """
    times = mask_length / length
    start = math.floor(first * times)
    return slice(start, max(math.ceil(last * times), start + 1))


def _median(values: list[int]) -> int:
    return int(statistics.median(values))
