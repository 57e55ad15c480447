"""The tissue mask of a slide, found on a thumbnail."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Otsu's method splits every image in two, also one that is all tissue or all background. So its threshold on the
# saturation (0..255) is clipped: up to 8 is noise of scanners and JPEG on a white background, above 25 surely tissue.
MIN_THRESHOLD, MAX_THRESHOLD = 8, 25
DARK = 50  # brightest channel below which a px is unlit or ink: of near black, noise and JPEG make saturated colours
ALL_NEIGHBOURS = np.ones((3, 3), bool)


def find_tissue(thumbnail: np.ndarray, *, rim_px: float, min_area_px: float = 16) -> np.ndarray:
    """Return the tissue mask of an RGB thumbnail: (h, w, 3) uint8 -> (h, w) bool, saturation above Otsu's threshold.

    A 3x3 median removes specks; near-black pixels and those beside them are no tissue; holes (lumens, fat) are filled;
    objects below `min_area_px` (dust) are dropped; the mask is dilated by `rim_px`, so that it covers pale edges and
    lumens that open to the background. Source: Otsu 1979.
    """
    saturation = ndimage.median_filter(_saturation(thumbnail), size=3, mode="nearest")
    brightest = ndimage.median_filter(thumbnail.max(axis=2), size=3, mode="nearest")
    lit = ~ndimage.binary_dilation(brightest < DARK, ALL_NEIGHBOURS)
    threshold = np.clip(otsu(saturation[lit]) if lit.any() else MAX_THRESHOLD, MIN_THRESHOLD, MAX_THRESHOLD)
    found = ndimage.binary_fill_holes((saturation > threshold) & lit)
    objects, _ = ndimage.label(found, ALL_NEIGHBOURS)
    large = np.bincount(objects.ravel()) >= min_area_px
    large[0] = False  # background
    found = large[objects]
    return ndimage.distance_transform_edt(~found) <= rim_px if found.any() else found


def otsu(values: np.ndarray) -> int:
    """Return Otsu's threshold t of uint8 values, which maximises the between-class variance of <= t and > t."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, levels = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (levels[-1] * below / below[-1] - levels) ** 2 / (below * above)
    return int(np.argmax(np.nan_to_num(between, nan=0.0, posinf=0.0)))


def _saturation(rgb: np.ndarray) -> np.ndarray:
    """Return the HSV saturation of RGB: (h, w) uint8."""
    value = rgb.max(axis=2).astype(np.float32)
    chroma = value - rgb.min(axis=2)
    return np.round(255 * chroma / np.maximum(value, 1)).astype(np.uint8)
