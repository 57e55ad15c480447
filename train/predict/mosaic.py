"""The whole answer of a picture, put together tile by tile: class codes at several resolutions, probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore, MemoryStore

from pathseg.train.predict.sliding_window import Plan
from pathseg.train.predict.window_cache import Answers

TILE_PX = 512  # of all that is written: a tile of a class mask is 256 KiB


class Canvas:
    """Class codes (H, W) uint8 in tiles, and half, a quarter, ... of that size; `codes[0]` is the finest.

    In memory for an image, on disk for a slide. What was not computed has the code `empty`, and its tiles take no
    room.
    """

    def __init__(self, folder: Path | None, size: tuple[int, int], *, empty: int) -> None:
        self.size, self.empty = size, empty
        store = MemoryStore() if folder is None else LocalStore(folder / "codes.zarr")
        group = zarr.create_group(store, overwrite=True)
        self.codes = [self._level(group, 0)]
        while max(self.codes[-1].shape) > TILE_PX:
            self.codes.append(self._level(group, len(self.codes)))

    def tiles(self, level: int = 0) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each tile, row by row."""
        return _tiles(self.codes[level].shape)

    def thin(self) -> None:
        """Fill the coarser levels: of every two pixels along each axis the first."""
        for level in range(1, len(self.codes)):
            finer, coarser = self.codes[level - 1], self.codes[level]
            for rows, cols in self.tiles(level):
                twice = [slice(s.start * 2, min(s.stop * 2, n)) for s, n in zip((rows, cols), finer.shape, strict=True)]
                codes = np.asarray(finer[twice[0], twice[1]])[::2, ::2]
                if (codes != self.empty).any():
                    coarser[rows, cols] = codes

    def within(self, longest_px: int) -> int:
        """The finest level whose longer side is at most so many px, else the coarsest."""
        fitting = (level for level, codes in enumerate(self.codes) if max(codes.shape) <= longest_px)
        return next(fitting, len(self.codes) - 1)

    def _level(self, group: zarr.Group, level: int) -> zarr.Array:
        height, width = (-(-side // 2**level) for side in self.size)
        return group.create_array(
            f"level{level}",
            shape=(height, width),
            chunks=(TILE_PX, TILE_PX),
            dtype="uint8",
            fill_value=self.empty,
            compressors=[BloscCodec(cname="zstd", clevel=1)],
        )


def assemble(
    answers: Answers,
    plan: Plan,
    canvas: Canvas,
    *,
    classes: int,
    tissue: np.ndarray | None = None,
    probabilities: zarr.Group | None = None,
) -> np.ndarray:
    """Blend the windows into the canvas, its coarser levels too; (K,) pixels of each class where anything counts.

    tissue: (h, w) bool over the whole; what lies outside of it counts as not computed, in a window or not.
    With a group (`probability_arrays`) the blended maps are written there. Memory holds a tile and a few windows.
    """
    places = {number: index for index, number in enumerate(plan.kept)}
    counts = np.zeros(classes, np.int64)
    for rows, cols in canvas.tiles():
        maps, computed = _blended(answers, plan, places, rows, cols)
        if maps is None:
            continue
        if tissue is not None:
            computed &= nearest(tissue, canvas.size, rows, cols)
        codes = np.where(computed, maps[:classes].argmax(axis=0), canvas.empty).astype(np.uint8)
        canvas.codes[0][rows, cols] = codes
        counts += np.bincount(codes[computed], minlength=classes)[:classes]
        if probabilities is not None:
            maps = np.where(computed, maps, np.nan)
            probabilities["probabilities"][:, rows, cols] = maps[:classes]
            if len(maps) > classes:
                probabilities["uncertainty"][rows, cols] = maps[classes]
    canvas.thin()
    return counts


def probability_arrays(path: Path, size: tuple[int, int], *, classes: int, uncertain: bool, about: dict) -> zarr.Group:
    """A Zarr group at a path: `probabilities` (K, H, W) float16, NaN where nothing was computed; attributes `about`.

    `uncertainty` (H, W) lies beside it where the head gives one.
    """
    group = zarr.create_group(LocalStore(path), attributes=about, overwrite=True)
    shapes = {"probabilities": (classes, *size)} | ({"uncertainty": tuple(size)} if uncertain else {})
    for name, shape in shapes.items():
        chunks = (*shape[:-2], TILE_PX, TILE_PX)
        packed = [BloscCodec(cname="zstd", shuffle="shuffle")]
        group.create_array(
            name, shape=shape, chunks=chunks, dtype="float16", fill_value=float("nan"), compressors=packed
        )
    return group


def nearest(
    codes: np.ndarray, size: tuple[int, int], rows: slice | None = None, cols: slice | None = None
) -> np.ndarray:
    """(h, w) codes brought to a size (H, W), or a part of it: the value at the centre of each new pixel."""
    picks = []
    for part, new, old in zip((rows, cols), size, codes.shape, strict=True):
        first, last = (0, new) if part is None else (part.start, part.stop)
        picks.append(((np.arange(first, last) + 0.5) * (old / new)).astype(np.intp))
    return codes[picks[0][:, None], picks[1]]


def _blended(
    answers: Answers, plan: Plan, places: dict[int, int], rows: slice, cols: slice
) -> tuple[np.ndarray | None, np.ndarray]:
    """The blended maps (M, h, w) of a tile, None where no window meets it, and where they count, (h, w) bool.

    Beside a window that was left out as glass the remaining weights are brought to 1.
    """
    shape = rows.stop - rows.start, cols.stop - cols.start
    total, maps = np.zeros(shape, np.float32), None
    across = plan.cols.meeting(cols.start, cols.stop)
    for r in plan.rows.meeting(rows.start, rows.stop):
        for c in across:
            index = places.get(r * len(plan.cols.starts) + c)
            if index is None:
                continue
            into, part = _shared(rows, plan.rows.starts[r], plan.rows.window)
            beside, piece = _shared(cols, plan.cols.starts[c], plan.cols.window)
            values = answers.read(index)
            weights = plan.rows.weights(r)[part, None] * plan.cols.weights(c)[None, piece]
            maps = np.zeros((len(values), *shape), np.float32) if maps is None else maps
            maps[:, into, beside] += values[:, part, piece] * weights
            total[into, beside] += weights
    computed = total > 0
    if maps is None or not computed.any():
        return None, computed
    return maps / np.where(computed, total, 1), computed


def _shared(tile: slice, start: int, window: int) -> tuple[slice, slice]:
    """Where a tile and a window meet along an axis, counted in the tile and counted in the window."""
    first, last = max(tile.start, start), min(tile.stop, start + window)
    return slice(first - tile.start, last - tile.start), slice(first - start, last - start)


def _tiles(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    for y in range(0, shape[0], TILE_PX):
        for x in range(0, shape[1], TILE_PX):
            yield slice(y, min(y + TILE_PX, shape[0])), slice(x, min(x + TILE_PX, shape[1]))
