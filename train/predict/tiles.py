"""Maps of a mosaic in compressed tiles, each of which is written once: in files, or in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numcodecs import Blosc

TILE_PX = 512  # side of a tile in memory and in every file: 256 KiB of class codes


class TileArray:
    """A map (H, W) uint8 in compressed tiles of TILE_PX px a side; those that hold nothing but `fill` take no bytes.

    Tiles are appended to a file, or kept in memory without one. Where they lie in the file is known to this process
    alone. A chunked Zarr array takes 5 ms a tile for what takes 1 ms here, and a file for each.
    """

    def __init__(self, shape: tuple[int, int], *, fill: int, path: Path | None = None) -> None:
        """path: of the file, which is emptied; without it tiles are kept in memory."""
        self.shape, self.fill = shape, fill
        self._path, self._codec = path, Blosc("zstd", clevel=1, shuffle=Blosc.BITSHUFFLE)
        self._in_memory: dict[tuple[int, int], bytes] = {}
        self._in_file: dict[tuple[int, int], tuple[int, int]] = {}  # corner -> first byte and number of bytes
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    def write_tile(self, y: int, x: int, values: np.ndarray) -> None:
        """Write the tile whose first px is (y, x), whole as far as the map reaches."""
        content = self._codec.encode(np.ascontiguousarray(values))
        if self._path is None:
            self._in_memory[y, x] = content
            return
        with self._path.open("ab") as file:
            self._in_file[y, x] = file.tell(), len(content)
            file.write(content)

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """Return a region, (h, w) uint8."""
        (top, bottom, _), (left, right, _) = (one.indices(length) for one, length in zip(part, self.shape, strict=True))
        region = np.full((bottom - top, right - left), self.fill, np.uint8)
        for rows, cols in tile_slices(self.shape, slice(top, bottom), slice(left, right)):
            if (tile := self._tile(rows, cols)) is not None:
                of_region, of_tile = zip(
                    intersection(slice(top, bottom), rows.start, tile.shape[0]),
                    intersection(slice(left, right), cols.start, tile.shape[1]),
                    strict=True,
                )
                region[of_region] = tile[of_tile]
        return region

    def _tile(self, rows: slice, cols: slice) -> np.ndarray | None:
        """Return a tile, None where it was not written."""
        corner, shape = (rows.start, cols.start), (rows.stop - rows.start, cols.stop - cols.start)
        if corner in self._in_memory:
            content = self._in_memory[corner]
        elif corner in self._in_file:
            assert self._path is not None, "tiles are in memory or in the file"
            first, size = self._in_file[corner]
            with self._path.open("rb") as file:
                file.seek(first)
                content = file.read(size)
        else:
            return None
        return np.frombuffer(self._codec.decode(content), np.uint8).reshape(shape)


class TileWriter:
    """Writes regions of (H, W) uint8 that come from the top down, and of each finished tile its part of coarser levels.

    Memory holds the tiles of which regions cover a part, at most a row of tiles of each level: 1 KiB a px of the map's
    width, half of that where regions are whole tiles.
    """

    def __init__(self, levels: tuple[TileArray, ...]) -> None:
        """levels: the first of full resolution, each next one half of it."""
        self._array, self._begun = levels[0], dict[tuple[int, int], np.ndarray]()
        self._coarser = TileWriter(levels[1:]) if len(levels) > 1 else None

    def write(self, rows: slice, cols: slice, values: np.ndarray) -> None:
        """Take the values (h, w) of a region; write the tiles that it covers."""
        for tile_rows, tile_cols in tile_slices(self._array.shape, rows, cols):
            y, x = corner = tile_rows.start, tile_cols.start
            of_rows, own_rows = intersection(tile_rows, rows.start, rows.stop - rows.start)
            of_cols, own_cols = intersection(tile_cols, cols.start, cols.stop - cols.start)
            part = values[own_rows, own_cols]
            shape = tile_rows.stop - y, tile_cols.stop - x
            if part.shape == shape:
                self._write_tile(y, x, part)
                continue
            if corner not in self._begun:
                self._begun[corner] = np.full(shape, self._array.fill, np.uint8)
            self._begun[corner][of_rows, of_cols] = part

    def flush(self, row: int | None = None) -> None:
        """Write the tiles of all levels that end above a row, without one all of them."""
        for y, x in [corner for corner in self._begun if row is None or corner[0] + TILE_PX <= row]:
            self._write_tile(y, x, self._begun.pop((y, x)))
        if self._coarser is not None:
            self._coarser.flush(None if row is None else row // 2)

    def _write_tile(self, y: int, x: int, values: np.ndarray) -> None:
        """Write a finished tile, and of it one of every two px along each axis, so that no new code arises.

        Pixel i of level L covers px i * 2^L to (i + 1) * 2^L of level 0. Of two pixels neither lies at their centre;
        the second is taken for even i, the first for odd i, so that the errors cancel and objects stay where they are.
        """
        if (values == self._array.fill).all():
            return
        self._array.write_tile(y, x, values)
        if self._coarser is not None:
            rows, cols = (
                slice(first // 2, first // 2 + -(-length // 2))
                for first, length in zip((y, x), values.shape, strict=True)
            )
            picks = (_alternately(part, length) for part, length in zip((rows, cols), values.shape, strict=True))
            self._coarser.write(rows, cols, values[np.ix_(*picks)])


def empty_levels(folder: Path | None, size: tuple[int, int], *, name: str, fill: int) -> tuple[TileArray, ...]:
    """Return an empty map of (H, W) px, and of half, a quarter, ... of that size, down to a single tile.

    folder: of the files, which are named after `name`; without it tiles are kept in memory.
    """
    shapes = [size]
    while max(shapes[-1]) > TILE_PX:
        height, width = (-(-side // 2 ** len(shapes)) for side in size)
        shapes.append((height, width))
    return tuple(
        TileArray(shape, fill=fill, path=None if folder is None else folder / f"{name}-level{number}.tiles")
        for number, shape in enumerate(shapes)
    )


def tile_slices(
    shape: tuple[int, int], rows: slice | None = None, cols: slice | None = None
) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of each tile of (H, W), row by row; of these rows and columns those that meet them."""
    height, width = shape
    top, bottom = (0, height) if rows is None else (rows.start, rows.stop)
    left, right = (0, width) if cols is None else (cols.start, cols.stop)
    for y in range(top // TILE_PX * TILE_PX, bottom, TILE_PX):
        for x in range(left // TILE_PX * TILE_PX, right, TILE_PX):
            yield slice(y, min(y + TILE_PX, height)), slice(x, min(x + TILE_PX, width))


def intersection(tile: slice, start: int, length: int) -> tuple[slice, slice]:
    """Return the px that a tile and `length` px from `start` share along an axis, counted from either's first px."""
    first, last = max(tile.start, start), min(tile.stop, start + length)
    return slice(first - tile.start, last - tile.start), slice(first - start, last - start)


def _alternately(coarse: slice, length: int) -> np.ndarray:
    """The indices, among `length` finer pixels, of those that a range of coarser pixels takes."""
    i = np.arange(coarse.start, coarse.stop)
    return np.minimum(2 * (i - coarse.start) + (i % 2 == 0), length - 1)
