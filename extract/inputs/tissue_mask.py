"""The tissue mask of a slide, found on a thumbnail."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Otsu's method splits every image in two, also one that is all tissue or all background. So its threshold on the
# saturation (0..255) is clipped: up to 8 is noise of scanners and JPEG on a white background, above 25 surely tissue.
MIN_THRESHOLD, MAX_THRESHOLD = 8, 25
DARK = 50  # brightest channel below which a px is unlit or ink: of near black, noise and JPEG make saturated colours
# Haematoxylin and eosin absorb green most, so red and blue are above it in their purple and pink (Schreiber et al.
# 2024, doi 10.1038/s41598-023-50183-4). Ink is another, strong colour. Brown and yellow stay tissue: DAB, pigments.
GREEN_OVER_RED = 0.2  # of the chroma, from which on a px is green, cyan or blue: hue 72 to 228 degrees
RED_HUE = 0.1  # of the chroma, by which green and blue of red ink differ at most: hue within 6 degrees of red
INK_SATURATION, RED_INK_SATURATION = 0.35, 0.7
BLACK_INK, BLACK_INK_EDGE = 110, 200  # brightest channel (0..255) up to which gray is black ink, or the edge of it
GRAY_CHROMA = 16  # of 255
MIN_INK_PX = 3  # side of the squares whose mean colour is looked at for ink
ALL_NEIGHBOURS = np.ones((3, 3), bool)


def find_tissue(
    thumbnail: np.ndarray, *, rim_px: float, min_area_px: float = 16, ink_px: int = MIN_INK_PX
) -> np.ndarray:
    """Return the tissue mask of an RGB thumbnail: (h, w, 3) uint8 -> (h, w) bool, saturation above Otsu's threshold.

    A 3x3 median removes specks; near-black pixels, pen ink and the pixels beside them are no tissue; holes (lumens,
    fat) are filled; objects below `min_area_px` (dust) are dropped; the mask is dilated by `rim_px`, so that it covers
    pale edges and lumens that open to the background. ink_px: as of `find_ink`. Source: Otsu 1979.
    """
    saturation = ndimage.median_filter(_saturation(thumbnail), size=3, mode="nearest")
    brightest = ndimage.median_filter(thumbnail.max(axis=2), size=3, mode="nearest")
    lit = ~ndimage.binary_dilation((brightest < DARK) | find_ink(thumbnail, mean_px=ink_px), ALL_NEIGHBOURS)
    threshold = np.clip(otsu(saturation[lit]) if lit.any() else MAX_THRESHOLD, MIN_THRESHOLD, MAX_THRESHOLD)
    found = ndimage.binary_fill_holes((saturation > threshold) & lit)
    objects, _ = ndimage.label(found, ALL_NEIGHBOURS)
    large = np.bincount(objects.ravel()) >= min_area_px
    large[0] = False  # background
    found = large[objects]
    return ndimage.distance_transform_edt(~found) <= rim_px if found.any() else found


def find_ink(thumbnail: np.ndarray, *, mean_px: int = MIN_INK_PX) -> np.ndarray:
    """Return where there is blue, green, red or black pen ink on an RGB thumbnail: (h, w, 3) uint8 -> (h, w) bool.

    Ink is blue, green or red and saturated, or black; pixels of its kind that are connected with it are its blurred
    edges, however pale. Purple ink has the colour of tissue and is not found. mean_px: side of the squares whose mean
    colour counts: of a fine thumbnail those of some um, as colour fringes of nuclei and folds are blue and green.
    """
    smooth = ndimage.uniform_filter(thumbnail.astype(np.float32), size=(mean_px, mean_px, 1), mode="nearest")
    channels = np.rint(smooth).astype(np.int32)  # (h, w, 3)
    red, green, blue = channels.transpose(2, 0, 1)
    brightest = channels.max(axis=2)
    chroma = brightest - channels.min(axis=2)
    lit, coloured = brightest >= DARK, 255 * chroma > MIN_THRESHOLD * brightest
    ink = np.zeros(red.shape, bool)
    for alike, strong in (
        (coloured & (green - red >= GREEN_OVER_RED * chroma), lit & (chroma >= INK_SATURATION * brightest)),
        (coloured & (np.abs(green - blue) <= RED_HUE * chroma), lit & (chroma >= RED_INK_SATURATION * brightest)),
        ((chroma <= GRAY_CHROMA) & (brightest <= BLACK_INK_EDGE), brightest <= BLACK_INK),
    ):
        ink |= ndimage.binary_propagation(alike & strong, ALL_NEIGHBOURS, mask=alike)
    return ink


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
