"""A prediction mosaic as a pyramidal tiled TIFF, which OpenSlide, QuPath and any TIFF reader open."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pathseg.train.colours import rgb
from pathseg.train.predict.mosaic import Mosaic
from pathseg.train.predict.tiles import TILE_PX

UM_PER_CM = 10_000
DEFLATE_LEVEL = 6
CLASSIC_TIFF_PX = 2**31  # beyond it the file may be too large for the 32-bit offsets of a classic TIFF


def write_pyramid(mosaic: Mosaic, path: Path, *, mpp: float, colours: Sequence[str], legend: str) -> None:
    """Write all levels of a mosaic, tile by tile: 8-bit class codes with a palette, deflate, resolution in px per cm.

    mpp: um/px at full resolution. colours: a hex colour `#rrggbb` per class; other codes are white. legend: the image
    description.
    """
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=mosaic.size[0] * mosaic.size[1] > CLASSIC_TIFF_PX) as file:
        for level, codes in enumerate(mosaic.levels):
            px_per_cm = UM_PER_CM / (mpp * 2**level)  # not by the sides, which are rounded up
            file.write(
                _compressed_tiles(mosaic, level),
                shape=codes.shape,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="palette",
                colormap=_colormap(colours),
                compression="zlib",
                resolution=(px_per_cm, px_per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,  # 1: a reduced copy; readers of pyramids look for it
                description=legend if not level else None,
                metadata=None,
                software="pathseg",
            )


def _compressed_tiles(mosaic: Mosaic, level: int) -> Iterator[bytes]:
    """The tiles of a level, padded to whole tiles and compressed; those without prediction are compressed once."""
    blank = np.full((TILE_PX, TILE_PX), mosaic.fill, np.uint8)
    compressed_blank = zlib.compress(blank.tobytes(), DEFLATE_LEVEL)
    for _, _, codes in mosaic.tiles(level):
        if (codes == mosaic.fill).all():
            yield compressed_blank
            continue
        tile = blank.copy()
        tile[: codes.shape[0], : codes.shape[1]] = codes
        yield zlib.compress(tile.tobytes(), DEFLATE_LEVEL)


def _colormap(colours: Sequence[str]) -> np.ndarray:
    """TIFF's palette, (3, 256) uint16."""
    table = np.full((3, 256), 0xFFFF, np.uint16)
    for code, colour in enumerate(colours):
        table[:, code] = [value * 257 for value in rgb(colour)]
    return table
