"""A class mask of a slide as a pyramidal tiled TIFF that OpenSlide, QuPath and any TIFF reader open."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pathseg.train.predict.mosaic import TILE_PX, Canvas

UM_PER_CM = 10_000
DEFLATE_LEVEL = 6


def write_pyramid(canvas: Canvas, path: Path, *, mpp: float, colours: Sequence[str], legend: str) -> None:
    """Write all levels of a canvas, tile by tile: 8-bit class codes with a palette, deflate, resolution in px per cm.

    mpp: um/px of the finest level. colours: a hex colour a class; what was not computed is white. legend: goes into the
    image description. BigTIFF where a classic one might be too small.
    """
    import tifffile

    big = canvas.size[0] * canvas.size[1] > 2**31
    with tifffile.TiffWriter(path, bigtiff=big) as file:
        for level, codes in enumerate(canvas.codes):
            times = [whole / part for whole, part in zip(canvas.size, codes.shape, strict=True)]
            file.write(
                _encoded(canvas, level),
                shape=codes.shape,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="palette",
                colormap=_colormap(colours),
                compression="zlib",
                resolution=(UM_PER_CM / mpp / times[1], UM_PER_CM / mpp / times[0]),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,  # 1: a reduced copy; readers of pyramids look for it
                description=legend if not level else None,
                metadata=None,
                software="pathseg",
            )


def _encoded(canvas: Canvas, level: int) -> Iterator[bytes]:
    """The tiles of a level, whole and compressed; those without tissue are compressed once."""
    empty = np.full((TILE_PX, TILE_PX), canvas.empty, np.uint8)
    nothing = zlib.compress(empty.tobytes(), DEFLATE_LEVEL)
    for rows, cols in canvas.tiles(level):
        codes = np.asarray(canvas.codes[level][rows, cols])
        if (codes == canvas.empty).all():
            yield nothing
            continue
        tile = empty.copy()
        tile[: codes.shape[0], : codes.shape[1]] = codes
        yield zlib.compress(tile.tobytes(), DEFLATE_LEVEL)


def _colormap(colours: Sequence[str]) -> np.ndarray:
    """(3, 256) uint16: TIFF's palette."""
    table = np.full((3, 256), 0xFFFF, np.uint16)
    for code, colour in enumerate(colours):
        table[:, code] = [int(colour[i : i + 2], 16) * 257 for i in (1, 3, 5)]
    return table
