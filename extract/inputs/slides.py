"""Whole slides through OpenSlide, read by region at the um/px that a head was trained at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from openslide import OpenSlide, OpenSlideError, lowlevel
from PIL import Image

from pathseg.extract.inputs.tissue_mask import find_tissue

MARGIN_PX = 4  # read around a region, so that the filter sees the same neighbours as in the next region
READ_PX = 4096  # longest side of what is decoded at once, whatever the level: 64 MiB
TISSUE_PX = 2048  # longest side of the overview that tissue is found on: 24 um/px for a slide of 50 mm
RIM_UM = 20  # of glass that counts as tissue: the thumbnail sees pale edges badly
MPP = ("openslide.mpp-y", "openslide.mpp-x")
BOUNDS = ("openslide.bounds-y", "openslide.bounds-x", "openslide.bounds-height", "openslide.bounds-width")


def is_slide(path: Path) -> bool:
    """Whether OpenSlide reads the file: vendors' slides and tiled TIFF, but no plain picture."""
    return OpenSlide.detect_format(path) is not None


class Slide:
    """A whole slide brought to `mpp` um/px; a `sampling.InputImage`.

    Where a slide states the bounds of what was scanned (MRXS does), only that is read, and all coordinates count from
    there, as QuPath does it.
    """

    slide = True

    def __init__(self, path: Path, *, mpp: float, file_mpp: float | None = None) -> None:
        """mpp: um/px to bring it to. file_mpp: um/px at full resolution, in place of what the slide says.

        Raises ValueError, naming the file, where it cannot be read or where um/px is not known.
        """
        self.id, self.path, self.mpp = path.stem, path, mpp
        with self._reading():
            self._slide = OpenSlide(path)
            properties = self._slide.properties
            pitch = (file_mpp, file_mpp) if file_mpp else tuple(float(properties.get(name, "nan")) for name in MPP)
            self._top, self._left, *sides = self._bounds(properties)
            self.digest = properties.get("openslide.quickhash-1", "")  # of its properties and smallest level
        self.file_px = tuple(sides)
        if not all(math.isfinite(one) and one > 0 for one in pitch):
            self.close()
            raise ValueError(
                f"{path}: the slide does not say its um/px; pass --mpp, e.g. --mpp 0.25 for most 40x scans"
            )
        self.scale = tuple(mpp / one for one in pitch)
        self.size = tuple(max(1, round(side / s)) for side, s in zip(self.file_px, self.scale, strict=True))

    def read(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """A region in px at `mpp`, (height, width, 3) uint8 RGB; white where nothing was scanned."""
        return self._region((y, x), (height, width), self.scale)

    def overview(self, longest_px: int) -> np.ndarray:
        """The whole slide, its longer side at most so many px; read piece by piece, whatever levels there are."""
        times = max(1.0, max(self.size) / longest_px)
        height, width = (max(1, round(side / times)) for side in self.size)
        scale = self.file_px[0] / height, self.file_px[1] / width
        level = self._slide.level_downsamples[self._level(scale)]
        step = max(1, int((READ_PX - 2 * MARGIN_PX) * level / max(scale)))
        picture = np.empty((height, width, 3), np.uint8)
        for y in range(0, height, step):
            for x in range(0, width, step):
                h, w = min(step, height - y), min(step, width - x)
                picture[y : y + h, x : x + w] = self._region((y, x), (h, w), scale)
        return picture

    def tissue(self) -> np.ndarray:
        """Where there is tissue and RIM_UM around it, seen on an overview."""
        picture = self.overview(TISSUE_PX)
        um_per_px = self.mpp * self.size[0] / picture.shape[0]
        return find_tissue(picture, rim_px=max(1.0, RIM_UM / um_per_px))

    def close(self) -> None:
        """Let go of the file."""
        self._slide.close()

    def _level(self, scale: tuple[float, float]) -> int:
        # a hair above, so that a level of downsample 4.0003 serves scale 4
        return self._slide.get_best_level_for_downsample(min(scale) * 1.01)

    def _region(self, place: tuple[int, int], size: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
        """A region of `size` px at `place`, both counted in px of `scale` px of the file each."""
        level = self._level(scale)
        down = self._slide.level_downsamples[level]
        origin = self._top, self._left
        first = [o / down + p * s / down for o, p, s in zip(origin, place, scale, strict=True)]  # in px of the level
        span = [n * s / down for n, s in zip(size, scale, strict=True)]
        start = [math.floor(f) - MARGIN_PX for f in first]
        count = [math.ceil(f + n) + MARGIN_PX - s for f, n, s in zip(first, span, start, strict=True)]
        with self._reading():
            corner = round(start[1] * down), round(start[0] * down)
            pixels = self._slide.read_region(corner, level, (count[1], count[0]))
        white = Image.new("RGB", pixels.size, (255, 255, 255))
        white.paste(pixels, mask=pixels.getchannel("A"))
        top, left = first[0] - start[0], first[1] - start[1]
        box = left, top, left + span[1], top + span[0]
        return np.asarray(white.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box))

    def _bounds(self, properties: dict[str, str]) -> list[int]:
        if all(name in properties for name in BOUNDS):
            return [int(properties[name]) for name in BOUNDS]
        width, height = self._slide.dimensions
        return [0, 0, height, width]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OpenSlideError, lowlevel.OpenSlideUnsupportedFormatError) as e:
            why = (str(e).splitlines() or [type(e).__name__])[0]
            raise ValueError(f"{self.path}: the slide is damaged or cut short: {why}; replace the file") from e
