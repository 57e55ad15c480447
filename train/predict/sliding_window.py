"""Windows over a picture that is larger than what a head sees at once, and how their results are blended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of a picture: evenly spaced, flush with both ends, neighbours share `overlap` px or more.

    A picture that is shorter than a window has one, which reaches beyond its end.
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
        room = self.length - self.window
        if room <= 0:
            return (0,)
        count = 1 + math.ceil(room / (self.window - self.overlap))
        return tuple(round(i * room / (count - 1)) for i in range(count))

    @cached_property
    def borders(self) -> tuple[float, ...]:
        """Where one window hands over to the next: the middle of what they share."""
        starts = self.starts
        return tuple((a + self.window + b) / 2 for a, b in pairwise(starts))

    def reach(self, index: int) -> tuple[int, int]:
        """First px and the px after the last in which a window has any weight, within the picture."""
        half = self.overlap / 2
        first = 0 if index == 0 else math.floor(self.borders[index - 1] - half)
        last = self.length if index == len(self.starts) - 1 else math.ceil(self.borders[index] + half)
        return first, min(last, self.length)

    def weights(self, index: int) -> np.ndarray:
        """(window,) float32: 1 inside, falling linearly over `overlap` px around a border; all windows add up to 1."""
        centres = self.starts[index] + np.arange(self.window) + 0.5
        weights = np.ones(self.window)
        if index > 0:
            weights *= np.clip((centres - self.borders[index - 1]) / self.overlap + 0.5, 0, 1)
        if index < len(self.starts) - 1:
            weights *= np.clip((self.borders[index] - centres) / self.overlap + 0.5, 0, 1)
        return weights.astype(np.float32)

    def meeting(self, start: int, stop: int) -> list[int]:
        """The windows that have weight somewhere in start..stop."""
        firsts, lasts = self._reaches
        return np.flatnonzero((firsts < stop) & (lasts > start)).tolist()

    @cached_property
    def _reaches(self) -> np.ndarray:
        return np.array([self.reach(i) for i in range(len(self.starts))]).T  # (2, windows): firsts, lasts


@dataclass(frozen=True)
class Plan:
    """All windows of a picture, numbered row by row, and those of them that are computed (`kept`, ascending)."""

    rows: Axis
    cols: Axis
    kept: tuple[int, ...]

    @classmethod
    def of(cls, size: tuple[int, int], window: tuple[int, int], overlap: int, tissue: np.ndarray | None = None) -> Plan:
        """Windows (height, width) over a picture (H, W). tissue: (h, w) bool over the same area, in any resolution.

        With it only windows are kept that have weight in a pixel of tissue.
        """
        rows, cols = Axis(size[0], window[0], overlap), Axis(size[1], window[1], overlap)
        numbers = range(len(rows.starts) * len(cols.starts))
        if tissue is None:
            return cls(rows, cols, tuple(numbers))
        seen = np.zeros((len(rows.starts), len(cols.starts)), bool)
        for r in range(seen.shape[0]):
            for c in range(seen.shape[1]):
                seen[r, c] = tissue[_scaled(rows, r, tissue.shape[0]), _scaled(cols, c, tissue.shape[1])].any()
        return cls(rows, cols, tuple(np.flatnonzero(seen).tolist()))

    def place(self, number: int) -> tuple[int, int]:
        """Row and column of a window."""
        return divmod(number, len(self.cols.starts))

    def corner(self, number: int) -> tuple[int, int]:
        """y and x of a window's first px."""
        row, col = self.place(number)
        return self.rows.starts[row], self.cols.starts[col]


def _scaled(axis: Axis, index: int, length: int) -> slice:
    first, last = axis.reach(index)
    times = length / axis.length
    return slice(math.floor(first * times), max(math.ceil(last * times), math.floor(first * times) + 1))
