"""Whole slides, read with OpenSlide by region at the um/px that a head was trained at."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from openslide import OpenSlide
from PIL import Image

from pathseg.extract.datasets.image_files import no_size_limit, require_upright
from pathseg.extract.inputs.tissue_mask import MIN_INK_PX, find_tissue
from pathseg.store.records import file_states
from pathseg.store.resolution import MppSource, require_plausible_mpp
from pathseg.store.runtime.regular_files import read_file

MARGIN_PX = 4  # read around a region, so that the resampling filter has the neighbours it has in the next region
READ_PX = 4096  # longest side of a region that is decoded at once: 64 MiB
TISSUE_PX = 2048  # longest side of the overview for the tissue mask: 24 um/px for a slide of 50 mm
RIM_UM = 20  # by which the tissue mask is dilated: pale edges are hard to see on the overview
MIN_TISSUE_UM2 = 10_000  # smallest area of tissue, a disc of 113 um; dust is smaller
KEPT_MASKS = 8  # tissue masks in memory, 4 MiB each
INK_UM = 20  # side of the squares whose mean colour tells ink; a pen stroke is hundreds wide
MPP = ("openslide.mpp-y", "openslide.mpp-x")
BOUNDS = ("openslide.bounds-y", "openslide.bounds-x", "openslide.bounds-height", "openslide.bounds-width")


def is_slide(path: Path) -> bool:
    """Return whether OpenSlide reads the file: vendors' formats and tiled TIFF, not plain images."""
    return OpenSlide.detect_format(path) is not None


def slide_files(path: Path) -> tuple[Path, ...]:
    """Return all files that hold a slide, `path` first.

    Of MRXS those in its data folder, of VMS and VMU those that it names, of DICOM those of its series beside it.
    """
    others: Iterable[Path] = ()
    match path.suffix.lower():
        case ".mrxs":
            others = path.with_suffix("").rglob("*")
        case ".vms" | ".vmu":
            lines = read_file(path).decode(errors="replace").splitlines()
            names = (line.partition("=")[2].strip() for line in lines)
            others = (path.parent / name for name in names if name and Path(name).name == name)
        case ".dcm" if (series := dicom_series(path)) is not None:
            beside = (one for one in path.parent.iterdir() if one.suffix.lower() == ".dcm")
            others = (one for one in beside if dicom_series(one) == series)
    return path, *sorted({one for one in others if one.is_file()} - {path})


def _content_digest(files: Sequence[Path], quickhash: str) -> str:
    """SHA-256 of all files of a slide and of the quick hash.

    The quick hash leaves full resolution out, so it does not tell two versions of a slide apart.
    """
    digest = hashlib.sha256(quickhash.encode())
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def dicom_series(path: Path) -> str | None:
    """Return the UID of the series that a DICOM slide's file belongs to; None for a file that OpenSlide cannot read."""
    try:
        with OpenSlide(path) as slide:
            return slide.properties.get("dicom.SeriesInstanceUID")
    except Exception:  # whoever opens the file gets the error
        return None


class Slide:
    """A whole slide, read at `mpp` um/px; an `InputImage`.

    Where a slide states the bounds of the scanned area (MRXS), coordinates are relative to them, as in QuPath; `origin`
    is where they begin.
    """

    slide = True
    mpp_note: str | None = None

    def __init__(self, path: Path, *, mpp: float, file_mpp: float | None = None) -> None:
        """Open a slide.

        mpp: um/px to read at. file_mpp: um/px at full resolution; replaces what the slide states. Raises ValueError
        naming the file when it cannot be read, or states no um/px or one that no scan has.
        """
        self.id, self.path, self._file_mpp = path.stem, path, file_mpp
        self.mpp: float | None = mpp
        self.mpp_from: MppSource | None = "tag" if file_mpp is None else "flag"
        if OpenSlide.detect_format(path) == "generic-tiff":  # any program's; of these OpenSlide ignores the turn
            _require_upright(path)
        with self._reading():
            self._slide = OpenSlide(path)
            properties = self._slide.properties
            mpp_y, mpp_x = (file_mpp or float(properties.get(name, "nan")) for name in MPP)
            top, left, *sides = self._bounds(properties)
            self._quickhash = properties.get("openslide.quickhash-1", "")  # of its properties and smallest level
        self.origin = top, left
        height, width = self.file_px = sides[0], sides[1]
        if not all(math.isfinite(stated) and stated > 0 for stated in (mpp_y, mpp_x)):
            self.close()
            raise ValueError(
                f"{path}: the slide does not say its um/px; pass --mpp, e.g. --mpp 0.25 for most 40x scans"
            )
        try:
            for stated in (mpp_y, mpp_x):
                require_plausible_mpp(stated, source=str(path), flag="--mpp")
        except ValueError:
            self.close()
            raise
        self.scale = mpp / mpp_y, mpp / mpp_x
        self.size = max(1, round(height / self.scale[0])), max(1, round(width / self.scale[1]))

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All files that hold the slide, `path` first."""
        with self._reading():
            return slide_files(self.path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content of its files; reads them whole."""
        with self._reading():
            return _content_digest(self.files, self._quickhash)

    def read(self, y: int, x: int, height: int, width: int, *, mirrored: bool = False) -> np.ndarray:
        """Return a region in px at `mpp`, (height, width, 3) uint8 RGB, white where nothing was scanned.

        mirrored: without effect, a slide shows what lies around a region.
        """
        return self._region((y, x), (height, width), self.scale)

    def overview(self, longest_px: int) -> np.ndarray:
        """Return the whole slide, longer side at most `longest_px`, read in blocks of at most READ_PX a side."""
        factor = max(1.0, max(self.size) / longest_px)
        height, width = (max(1, round(side / factor)) for side in self.size)
        scale = self.file_px[0] / height, self.file_px[1] / width
        level = self._slide.level_downsamples[self._level(scale)]
        step = max(1, int((READ_PX - 2 * MARGIN_PX) * level / max(scale)))
        overview = np.empty((height, width, 3), np.uint8)
        for y in range(0, height, step):
            for x in range(0, width, step):
                h, w = min(step, height - y), min(step, width - x)
                overview[y : y + h, x : x + w] = self._region((y, x), (h, w), scale)
        return overview

    def tissue(self) -> np.ndarray:
        """Return the tissue mask of an overview, from MIN_TISSUE_UM2 on, dilated by RIM_UM: (h, w) bool, read-only.

        It is found once while the files stay as they are: extract and predict both take it, in `refine` of one process.
        """
        assert self.mpp is not None, "slides are read at a known um/px"
        return _tissue(self.path, file_states(self.files), self.mpp, self._file_mpp)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def _level(self, scale: tuple[float, float]) -> int:
        # 1 % above, so that a level of downsample 4.0003 is used for scale 4
        return self._slide.get_best_level_for_downsample(min(scale) * 1.01)

    def _region(self, corner: tuple[int, int], size: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
        """Return a region resampled to `size` px; corner and size in px that measure `scale` px of the file."""
        level = self._level(scale)
        down = self._slide.level_downsamples[level]
        first = [
            o / down + p * s / down for o, p, s in zip(self.origin, corner, scale, strict=True)
        ]  # in px of the level
        span = [n * s / down for n, s in zip(size, scale, strict=True)]
        start = [math.floor(f) - MARGIN_PX for f in first]
        count = [math.ceil(f + n) + MARGIN_PX - s for f, n, s in zip(first, span, start, strict=True)]
        with self._reading():
            start_xy = round(start[1] * down), round(start[0] * down)
            pixels = self._slide.read_region(start_xy, level, (count[1], count[0]))
        white = Image.new("RGB", pixels.size, (255, 255, 255))
        white.paste(pixels, mask=pixels.getchannel("A"))
        top, left = first[0] - start[0], first[1] - start[1]
        box = left, top, left + span[1], top + span[0]
        return np.asarray(white.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box))

    def _bounds(self, properties: Mapping[str, str]) -> list[int]:
        if all(name in properties for name in BOUNDS):
            return [int(properties[name]) for name in BOUNDS]
        width, height = self._slide.dimensions
        return [0, 0, height, width]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # OpenSlide's own errors, and properties that are no numbers
            why = (str(e).splitlines() or [type(e).__name__])[0]
            raise ValueError(f"{self.path}: the slide is damaged or cut short: {why}; replace the file") from e


@lru_cache(maxsize=KEPT_MASKS)
def _tissue(path: Path, state: str | None, mpp: float, file_mpp: float | None) -> np.ndarray:
    """The tissue mask of a slide whose files have this state."""
    with closing(Slide(path, mpp=mpp, file_mpp=file_mpp)) as slide:
        overview = slide.overview(TISSUE_PX)
        px_per_um = overview.shape[0] / (mpp * slide.size[0])
    mask = find_tissue(
        overview,
        rim_px=max(1.0, RIM_UM * px_per_um),
        min_area_px=MIN_TISSUE_UM2 * px_per_um**2,
        ink_px=max(MIN_INK_PX, round(INK_UM * px_per_um)),
    )
    mask.flags.writeable = False
    return mask


def _require_upright(path: Path) -> None:
    with no_size_limit():
        try:
            file = Image.open(path, formats=("TIFF",))
        except Exception:  # what Pillow does not know of TIFF, OpenSlide may
            return
    with file:
        require_upright(path, file)
