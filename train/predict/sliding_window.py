"""Sliding windows over an image that is larger than what a head takes at once, and the weights that blend them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from pathseg.store.sampling import scaled_range


@dataclass(frozen=True)
class WindowAxis:
    """Windows along one axis of an image: evenly spaced, flush with both ends, neighbours share `overlap` px or more.

    length: of the image, px. window: length of a window, px. An image that is shorter than a window has one window,
    which reaches beyond its end. Raises ValueError for an overlap below 1 px or above a third of the window, beyond
    which more than two windows would share a pixel.
    """

    length: int
    window: int
    overlap: int

    def __post_init__(self) -> None:
        if not 1 <= self.overlap <= self.window // 3:
            raise ValueError(
                f"the overlap must be 1 to {self.window // 3} px, a third of the {self.window} px that the head was "
                f"trained on, got {self.overlap}; pass another --overlap"
            )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First px of each window."""
        last = self.length - self.window
        if last <= 0:
            return (0,)
        count = 1 + math.ceil(last / (self.window - self.overlap))
        return tuple(round(i * last / (count - 1)) for i in range(count))

    @cached_property
    def borders(self) -> tuple[float, ...]:
        """Position (px) of the border between each window and the next: the middle of their overlap."""
        return tuple((start + self.window + following) / 2 for start, following in pairwise(self.starts))

    def extent(self, index: int) -> tuple[int, int]:
        """Return the first px and the px after the last in which a window has any weight, within the image."""
        half = self.overlap / 2
        first = 0 if index == 0 else math.floor(self.borders[index - 1] - half)
        last = self.length if index == len(self.starts) - 1 else math.ceil(self.borders[index] + half)
        return first, min(last, self.length)

    def weights(self, index: int) -> np.ndarray:
        """Return a window's blending weights, (window,) float32; the weights of all windows add up to 1 at each px.

        1 inside the window, falling linearly over `overlap` px around a border.
        """
        centres = self.starts[index] + np.arange(self.window) + 0.5
        weights = np.ones(self.window)
        if index > 0:
            weights *= np.clip((centres - self.borders[index - 1]) / self.overlap + 0.5, 0, 1)
        if index < len(self.starts) - 1:
            weights *= np.clip((self.borders[index] - centres) / self.overlap + 0.5, 0, 1)
        return weights.astype(np.float32)

    def windows_within(self, start: int, stop: int) -> list[int]:
        """Return the indices of the windows that have weight somewhere in px start..stop."""
        firsts, lasts = self._extents
        return np.flatnonzero((firsts < stop) & (lasts > start)).tolist()

    @cached_property
    def _extents(self) -> np.ndarray:
        return np.array([self.extent(i) for i in range(len(self.starts))]).T  # (2, windows): firsts, lasts


@dataclass(frozen=True)
class AdjacentAxis(WindowAxis):
    """Windows side by side from the first px, as those of a slide in a store; the last may reach beyond the end."""

    overlap: int = 0

    def __post_init__(self) -> None:
        """Check nothing: there is no overlap."""

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First px of each window."""
        return tuple(range(0, self.length, self.window))

    def weights(self, index: int) -> np.ndarray:
        """Return ones, (window,) float32."""
        return np.ones(self.window, np.float32)


@dataclass(frozen=True)
class SlidingWindow:
    """The windows over an image, numbered row by row, and the numbers of those to compute (`selected`, ascending)."""

    rows: WindowAxis
    cols: WindowAxis
    selected: tuple[int, ...]

    @classmethod
    def over(
        cls, size: tuple[int, int], *, window: tuple[int, int], overlap: int, tissue: np.ndarray | None = None
    ) -> SlidingWindow:
        """Lay windows (height, width) over an image (H, W), all in px; with an overlap of 0 side by side.

        tissue: (h, w) bool over the same area, in any resolution: only windows with weight in a pixel of tissue are
        selected. Without it all are.
        """
        rows, cols = (
            WindowAxis(length, own, overlap) if overlap else AdjacentAxis(length, own)
            for length, own in zip(size, window, strict=True)
        )
        if tissue is None:
            return cls(rows, cols, tuple(range(len(rows.starts) * len(cols.starts))))
        seen = np.zeros((len(rows.starts), len(cols.starts)), bool)
        for r in range(seen.shape[0]):
            for c in range(seen.shape[1]):
                seen[r, c] = tissue[_of_mask(rows, r, tissue.shape[0]), _of_mask(cols, c, tissue.shape[1])].any()
        return cls(rows, cols, tuple(np.flatnonzero(seen).tolist()))

    @property
    def total(self) -> int:
        """Number of windows, selected or not."""
        return len(self.rows.starts) * len(self.cols.starts)

    def row_col(self, number: int) -> tuple[int, int]:
        """Return the row and column of a window."""
        return divmod(number, len(self.cols.starts))

    def corner(self, number: int) -> tuple[int, int]:
        """Return y and x (px) of a window's upper left corner."""
        row, col = self.row_col(number)
        return self.rows.starts[row], self.cols.starts[col]


def _of_mask(axis: WindowAxis, index: int, mask_length: int) -> slice:
    """The extent of a window in px of a mask of another length along this axis."""
    first, last = axis.extent(index)
    return scaled_range(first, last, length=axis.length, mask_length=mask_length)
