"""The prediction mosaic of a whole image: windows blended tile by tile into class codes at several resolutions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from pathseg.train.predict.sliding_window import SlidingWindow
from pathseg.train.predict.tiles import TILE_PX, TileArray, TileWriter, empty_levels, intersection, tile_slices
from pathseg.train.predict.window_cache import WindowCache

Number = TypeVar("Number", float, np.ndarray)
NOT_COMPUTED = 255  # code of pixels without a prediction where no class is the background; in confidence maps too


@dataclass(frozen=True)
class ConfidenceMap:
    """How sure the predictions of a mosaic are, one value a pixel, at the mosaic's levels.

    levels: (h, w) uint8 as those of the codes, the value in 254ths of `maximum`; `NOT_COMPUTED` where there is none.
    """

    levels: tuple[TileArray, ...]
    maximum: float

    @classmethod
    def empty(cls, folder: Path | None, name: str, size: tuple[int, int], *, maximum: float) -> ConfidenceMap:
        """Make a map without values of (H, W) px, in files below `folder`, or in memory without one."""
        return cls(empty_levels(folder, size, name=name, fill=NOT_COMPUTED), maximum)

    def steps(self, values: np.ndarray, computed: np.ndarray) -> np.ndarray:
        """Return values (h, w), 0..maximum, as the levels hold them, uint8, where `computed` (h, w) bool."""
        scaled = values / self.maximum
        np.clip(scaled, 0, 1, out=scaled)
        scaled *= NOT_COMPUTED - 1
        steps = np.rint(scaled, out=scaled).astype(np.uint8)
        steps[~computed] = NOT_COMPUTED
        return steps

    def tiles(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yield rows, columns and values (h, w) uint8 of each tile at full resolution, row by row."""
        yield from _read_tiles(self.levels[0])

    def mean(self, steps: np.ndarray) -> float:
        """Return the mean value of pixels of a level, uint8 without `NOT_COMPUTED`; NaN of none."""
        return self.of_steps(float(steps.mean(dtype=np.float64))) if steps.size else math.nan

    def of_steps(self, steps: Number) -> Number:
        """Return the value of steps of the levels, or their means."""
        return steps / (NOT_COMPUTED - 1) * self.maximum


@dataclass(frozen=True)
class Confidence:
    """Maps of the predicted class's probability and of how uncertain the prediction is, in nats.

    of_ensemble: whether the uncertainty is that of an ensemble's members; else it is the entropy of the probabilities.
    """

    probability: ConfidenceMap
    uncertainty: ConfidenceMap
    of_ensemble: bool


@dataclass(frozen=True)
class Mosaic:
    """Class codes (H, W) uint8 of a whole image, also at half, a quarter, ... of that size.

    levels: `levels[0]` has full resolution, each next one half of it, down to a single tile. fill: the code of pixels
    that were not computed; tiles without others take no bytes. pixels: (K,) computed pixels by class. probabilities:
    path of a Zarr group with `probabilities` (K, H, W) float16, NaN where not computed, and `uncertainty` (H, W) if the
    head gives one; None where they were not kept. confidence: None where it was not asked for.
    """

    levels: tuple[TileArray, ...]
    fill: int
    pixels: np.ndarray
    probabilities: Path | None = None
    confidence: Confidence | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in px at full resolution."""
        return self.levels[0].shape

    def codes(self, level: int = 0) -> np.ndarray:
        """Return a whole level in memory, (h, w) uint8."""
        return self.levels[level][:, :]

    def tiles(self, level: int = 0) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yield rows, columns and codes (h, w) uint8 of each tile of a level, row by row."""
        yield from _read_tiles(self.levels[level])

    def level_within(self, longest_px: int) -> int:
        """Return the finest level whose longer side is at most so many px, else the coarsest."""
        fitting = (number for number, codes in enumerate(self.levels) if max(codes.shape) <= longest_px)
        return next(fitting, len(self.levels) - 1)


@dataclass(frozen=True)
class MosaicSettings:
    """How predicted windows become a mosaic.

    fill: code of pixels that are not computed. folder: the mosaic is written to files in it, else kept in memory.
    tissue: (h, w) bool over the whole image in any resolution; pixels outside of it count as not computed, in a window
    or not. probabilities: path of a Zarr group to write the maps to, the uncertainty too if there is one.
    confidence: whether to keep the confidence of each pixel as well.
    """

    classes: int
    fill: int
    folder: Path | None = None
    tissue: np.ndarray | None = None
    probabilities: Path | None = None
    uncertainty: bool = False
    confidence: bool = False


def blend_windows(cache: WindowCache, windows: SlidingWindow, settings: MosaicSettings) -> Mosaic:
    """Blend the windows of a cache into a mosaic, each tile once.

    Memory holds a tile, a few windows and what `TileWriter` keeps.
    """
    indices = {number: index for index, number in enumerate(windows.selected)}
    mosaic = _MosaicWriter((windows.rows.length, windows.cols.length), settings)
    for rows, cols in tile_slices(mosaic.size):
        maps, computed = _blended_tile(cache, windows, indices, rows, cols)
        if maps is not None:
            mosaic.write(rows, cols, maps, computed)
    return mosaic.finish()


def join_windows(predicted: Iterable[np.ndarray], windows: SlidingWindow, settings: MosaicSettings) -> Mosaic:
    """Put windows that lie side by side into a mosaic, each as it comes.

    Memory holds one of them and what `TileWriter` keeps.

    predicted: the maps (M, h, w) of each selected window, in their order.
    """
    height, width = size = windows.rows.length, windows.cols.length
    mosaic = _MosaicWriter(size, settings)
    for number, maps in zip(windows.selected, predicted, strict=True):
        y, x = windows.corner(number)
        maps = maps[:, : height - y, : width - x]
        _, h, w = maps.shape
        mosaic.write(slice(y, y + h), slice(x, x + w), maps, np.ones((h, w), bool))
    return mosaic.finish()


class _MosaicWriter:
    """Writes regions of a mosaic with its coarser levels, each once and from the top down."""

    def __init__(self, size: tuple[int, int], settings: MosaicSettings) -> None:
        self.size, self._settings = size, settings
        self._levels = empty_levels(settings.folder, size, name="codes", fill=settings.fill)
        self._confidence: Confidence | None = None
        if settings.confidence:
            self._confidence = _empty_confidence(
                settings.folder, size, settings.classes, of_ensemble=settings.uncertainty
            )
        self._probabilities: Mapping[str, zarr.Array] = {}
        if (path := settings.probabilities) is not None:
            self._probabilities = _probability_arrays(path, size, settings.classes, settings.uncertainty)
        self._pixels = np.zeros(settings.classes, np.int64)
        confidence = self._confidence
        measured = () if confidence is None else (confidence.probability, confidence.uncertainty)
        self._code_tiles = TileWriter(self._levels)
        self._confidence_tiles = [TileWriter(one.levels) for one in measured]

    def write(self, rows: slice, cols: slice, maps: np.ndarray, computed: np.ndarray) -> None:
        """Write the maps (M, h, w) of a region where they are computed, (h, w) bool, and there is tissue."""
        self._flush(rows.start)
        classes, tissue = self._settings.classes, self._settings.tissue
        if tissue is not None:
            computed = computed & resize_nearest(tissue, self.size, rows, cols)
        codes, probability = _most_probable(maps[:classes])
        self._pixels += np.bincount(codes[computed], minlength=classes)
        codes[~computed] = self._settings.fill
        self._code_tiles.write(rows, cols, codes)
        if self._probabilities:
            known = np.where(computed, maps, np.nan)
            self._probabilities["probabilities"][:, rows, cols] = known[:classes]
            if self._settings.uncertainty:
                self._probabilities["uncertainty"][rows, cols] = known[classes]
        if self._confidence is not None:
            uncertainty = maps[classes] if self._settings.uncertainty else _entropy(maps[:classes])
            measured = (self._confidence.probability, probability), (self._confidence.uncertainty, uncertainty)
            for tiles, (one, values) in zip(self._confidence_tiles, measured, strict=True):
                tiles.write(rows, cols, one.steps(values, computed))

    def finish(self) -> Mosaic:
        """Return the mosaic."""
        self._flush()
        settings = self._settings
        return Mosaic(self._levels, settings.fill, self._pixels, settings.probabilities, self._confidence)

    def _flush(self, row: int | None = None) -> None:
        for tiles in (self._code_tiles, *self._confidence_tiles):
            tiles.flush(row)


def resize_nearest(
    codes: np.ndarray, size: tuple[int, int], rows: slice | None = None, cols: slice | None = None, *,
    extent: tuple[float, float] | None = None,
) -> np.ndarray:  # fmt: skip
    """Resize (h, w) codes to (H, W), or to these rows and columns of it: the value at each new pixel's centre.

    extent: height and width of what is resized, in px of the codes, where that ends within their last px.
    """
    picks = []
    for part, new, old in zip((rows, cols), size, extent or codes.shape, strict=True):
        first, last = (0, new) if part is None else (part.start, part.stop)
        picks.append(((np.arange(first, last) + 0.5) * (old / new)).astype(np.intp))
    return codes[picks[0]][:, picks[1]]


def _most_probable(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the code of each pixel's most probable class, of equals the smallest, and its probability.

    (K, h, w) float32 -> (h, w) uint8, (h, w) float32. Class by class: NumPy's `argmax` over them takes three times as
    long.
    """
    codes, largest = np.zeros(probabilities.shape[1:], np.uint8), probabilities[0].copy()
    for code, one in enumerate(probabilities[1:], 1):
        codes[one > largest] = code
        np.maximum(largest, one, out=largest)
    return codes, largest


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy of each pixel in nats, (K, h, w) -> (h, w); class by class, which needs memory for one."""
    total = np.zeros(probabilities.shape[1:], np.float32)
    scratch = np.empty_like(total)
    for one in probabilities:
        np.log(np.maximum(one, np.finfo(np.float32).tiny, out=scratch), out=scratch)
        scratch *= one
        total -= scratch
    return total


def _empty_confidence(folder: Path | None, size: tuple[int, int], classes: int, *, of_ensemble: bool) -> Confidence:
    probability = ConfidenceMap.empty(folder, "probability", size, maximum=1.0)
    uncertainty = ConfidenceMap.empty(folder, "uncertainty", size, maximum=math.log(max(2, classes)))
    return Confidence(probability, uncertainty, of_ensemble)


def _probability_arrays(path: Path, size: tuple[int, int], classes: int, uncertainty: bool) -> Mapping[str, zarr.Array]:
    group = zarr.create_group(LocalStore(path), overwrite=True, zarr_format=3)
    shapes: dict[str, tuple[int, ...]] = {"probabilities": (classes, *size)}
    if uncertainty:
        shapes["uncertainty"] = size
    return {
        name: group.create_array(
            name,
            shape=shape,
            chunks=(*shape[:-2], TILE_PX, TILE_PX),
            dtype="float16",
            fill_value=float("nan"),
            compressors=[BloscCodec(cname="zstd", shuffle="shuffle")],
            dimension_names=("class", "row", "column")[-len(shape) :],
        )
        for name, shape in shapes.items()
    }


def _blended_tile(
    cache: WindowCache, windows: SlidingWindow, indices: Mapping[int, int], rows: slice, cols: slice
) -> tuple[np.ndarray | None, np.ndarray]:
    """The blended maps (M, h, w) of a tile, None where no window meets it, and where they are computed, (h, w) bool.

    Next to a window that was not selected the weights of the others are scaled to add up to 1.
    """
    shape = rows.stop - rows.start, cols.stop - cols.start
    total = np.zeros(shape, np.float32)
    maps: np.ndarray | None = None
    for r in windows.rows.windows_within(rows.start, rows.stop):
        for c in windows.cols.windows_within(cols.start, cols.stop):
            index = indices.get(r * len(windows.cols.starts) + c)
            if index is None:
                continue
            tile_rows, window_rows = intersection(rows, windows.rows.starts[r], windows.rows.window)
            tile_cols, window_cols = intersection(cols, windows.cols.starts[c], windows.cols.window)
            values = cache.read(index)  # (M, h, w)
            weights = windows.rows.weights(r)[window_rows, None] * windows.cols.weights(c)[None, window_cols]
            maps = np.zeros((len(values), *shape), np.float32) if maps is None else maps
            maps[:, tile_rows, tile_cols] += values[:, window_rows, window_cols] * weights
            total[tile_rows, tile_cols] += weights
    computed = total > 0
    if maps is None or not computed.any():
        return None, computed
    return maps / np.where(computed, total, 1), computed


def _read_tiles(level: TileArray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    for rows, cols in tile_slices(level.shape):
        yield rows, cols, level[rows, cols]
