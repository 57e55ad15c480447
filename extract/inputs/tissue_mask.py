"""Where a slide holds tissue and where only glass, seen on a thumbnail."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Otsu's rule splits any picture in two, so also one that is all tissue or all glass. Its threshold on the saturation
# (0..255) is kept within what is surely not glass above, and within what scanners and JPEG make of white glass below.
LOWEST, HIGHEST = 8, 25


def find_tissue(thumbnail: np.ndarray, *, rim_px: float) -> np.ndarray:
    """(h, w, 3) uint8 RGB -> (h, w) bool, True where there is tissue: saturation above Otsu's threshold (1979).

    A 3x3 median takes specks away. What is white inside of tissue (lumens, fat) belongs to it, and so does a rim of
    `rim_px` around it, so that no edge of tissue and no lumen that opens to the glass is lost.
    """
    saturation = ndimage.median_filter(_saturation(thumbnail), size=3, mode="nearest")
    threshold = np.clip(otsu(saturation), LOWEST, HIGHEST)
    found = ndimage.binary_fill_holes(saturation > threshold)
    return ndimage.distance_transform_edt(~found) <= rim_px if found.any() else found


def otsu(values: np.ndarray) -> int:
    """Otsu's threshold of uint8 values: t such that <= t and > t differ most (between-class variance)."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, levels = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (levels[-1] * below / below[-1] - levels) ** 2 / (below * above)
    return int(np.argmax(np.nan_to_num(between, nan=0.0, posinf=0.0)))


def _saturation(rgb: np.ndarray) -> np.ndarray:
    """HSV saturation, (h, w) uint8."""
    highest = rgb.max(axis=2).astype(np.float32)
    spread = highest - rgb.min(axis=2)
    return np.round(255 * spread / np.maximum(highest, 1)).astype(np.uint8)
