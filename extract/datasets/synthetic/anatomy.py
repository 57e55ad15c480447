"""The anatomy of generated tissue: masks of glands and lumens, and the directions that cells point in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

MARGIN_PX = 40  # drawn around the image and cut off, so that glands and cells run on beyond its edge
GLAND_MIN_PX = 400  # a smaller piece is a fleck of the warp, not a gland
LUMEN_MIN_PX = 30  # a smaller opening is a fleck of the noise, not a lumen


@dataclass(frozen=True)
class GlandStyle:
    """How the tissue of one image grows, each from 0 to 1.

    atypia: from round glands with one row of nuclei to irregular ones with dark, stacked nuclei. goblets:
    how much of the epithelium is filled with mucin. looseness: from dense collagen to oedema. inflammation:
    round cells in the stroma.
    """

    atypia: float
    goblets: float
    looseness: float
    inflammation: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> GlandStyle:
        """A random style; mucin is lost as atypia grows, as it is in colon."""
        atypia = float(rng.beta(0.8, 0.8))
        goblets = float(rng.uniform(0.2, 1.0) * max(0.0, 1.0 - 1.6 * atypia))
        return cls(atypia, goblets, float(rng.beta(1.5, 2.0)), float(rng.beta(1.3, 1.8)))


@dataclass(frozen=True)
class Anatomy:
    """The layout of one piece of tissue; all arrays are (S, S), in px.

    glands: uint16 ids, 0 = stroma. lumen: bool, inside glands. depth: distance from the gland's outer edge,
    inside glands. gap: distance to the nearest gland, in the stroma. wall: thickness of the epithelium at each
    pixel. inward: (2, S, S) unit vectors (y, x) that point from the gland's edge to its middle.
    """

    glands: np.ndarray
    lumen: np.ndarray
    depth: np.ndarray
    gap: np.ndarray
    wall: np.ndarray
    inward: np.ndarray


def smooth_noise(rng: np.random.Generator, side: int, *, scale: float) -> np.ndarray:
    """(side, side) float32 noise of mean 0 and deviation 1 whose blobs are about `scale` px wide."""
    cells = max(4, int(np.ceil(side / scale)) + 3)
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    box = (1, 1, 1 + side / scale, 1 + side / scale)
    fine = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC, box=box))
    return (fine - fine.mean()) / (fine.std() + 1e-6)


def grow_glands(rng: np.random.Generator, side: int, *, style: GlandStyle) -> Anatomy:
    """Lay out glands on a square of `side` px: their outlines, then what follows from their distance."""
    glands = _whole(_warp(rng, _place(rng, side, style), style))
    inside = glands > 0
    depth = ndimage.distance_transform_edt(inside).astype(np.float32)
    gap = ndimage.distance_transform_edt(~inside).astype(np.float32)
    wall = _walls(rng, glands, style)
    lumen = _open_lumens(inside & (depth > wall))
    slope = np.stack(np.gradient(ndimage.gaussian_filter(depth - gap, 3.0)))  # (2, S, S)
    inward = (slope / (np.hypot(*slope) + 1e-6)).astype(np.float32)
    return Anatomy(glands, lumen, depth, gap, wall, inward)


def _place(rng: np.random.Generator, side: int, style: GlandStyle) -> np.ndarray:
    """(side, side) uint16 ids of tubes cut at all angles: across (discs), obliquely (ovals), lengthwise."""
    glands = np.zeros((side, side), np.uint16)
    crowding = rng.uniform(4, 22) * (1.0 - 0.5 * style.atypia)  # px of stroma between neighbours
    size = rng.uniform(34, 48) + 14 * style.atypia  # mean radius of a tube in px
    tilt, spread = rng.uniform(0, np.pi), rng.uniform(0.2, 1.2)  # crypts of one region are roughly parallel
    lengthwise = rng.beta(0.7, 1.0)
    number = 0
    for _ in range(int(90 * (side / 592) ** 2) + 10):
        spine = _spine(rng, side, rng.normal(tilt, spread), _length(rng, size, lengthwise))
        radius = size * rng.uniform(0.65, 1.3)
        reach = np.asarray(_tube(side, spine, radius + crowding))
        if not glands[reach > 0].any():
            number += 1
            glands[np.asarray(_tube(side, spine, radius)) > 0] = number
    return glands


def _length(rng: np.random.Generator, size: float, lengthwise: float) -> float:
    if rng.random() < lengthwise:
        return size * rng.uniform(2.0, 8.0)
    return size * rng.uniform(0.0, 1.2)


def _spine(rng: np.random.Generator, side: int, angle: float, length: float) -> np.ndarray:
    """(n, 2) points (x, y) of a bent line, about 6 px apart."""
    steps = max(2, int(length / 6))
    bend = rng.normal(0, 0.7) / steps
    heading = angle + bend * np.arange(steps) + 0.25 * np.sin(np.arange(steps) * 0.18 + rng.uniform(0, 6))
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * length / steps, axis=0)
    return path - path.mean(0) + rng.uniform(0, side, 2)


def _tube(side: int, spine: np.ndarray, radius: float) -> Image.Image:
    """A mask of everything closer than `radius` px to the spine."""
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    for x, y in spine.tolist():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return mask


def _warp(rng: np.random.Generator, glands: np.ndarray, style: GlandStyle) -> np.ndarray:
    """Push the outlines about: slow bulges, and with atypia buds and folds."""
    side = len(glands)
    source = np.indices(glands.shape, dtype=np.float32)  # (2, S, S): the pixel that each pixel comes from
    for scale, reach in ((70, 9 + 9 * style.atypia), (28, 1.5 + 4 * style.atypia), (9, 0.7)):
        source += reach * np.stack([smooth_noise(rng, side, scale=scale) for _ in range(2)])
    rows, cols = np.clip(np.rint(source), 0, side - 1).astype(np.intp)
    return glands[rows, cols]


def _whole(glands: np.ndarray) -> np.ndarray:
    """One piece without holes for each gland (the largest), 2 px or more from the others, numbered from 1."""
    whole = np.zeros_like(glands)
    for number, found in enumerate(ndimage.find_objects(glands), 1):
        if found is None:
            continue
        box = tuple(slice(max(0, side.start - 2), side.stop + 2) for side in found)
        near = ndimage.binary_dilation(whole[box] > 0, iterations=2)
        pieces, count = ndimage.label((glands[box] == number) & ~near)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        if count and sizes.max() >= GLAND_MIN_PX:
            piece = ndimage.binary_fill_holes(pieces == sizes.argmax() + 1) & ~near
            whole[box][piece] = whole.max() + 1
    return whole


def _walls(rng: np.random.Generator, glands: np.ndarray, style: GlandStyle) -> np.ndarray:
    """(S, S) float32 thickness of the epithelium: it varies by gland and slowly over the image, with a ragged edge."""
    side = len(glands)
    usual = 28 + 11 * style.atypia + 9 * style.goblets
    each = rng.uniform(0.75, 1.3, int(glands.max()) + 1).astype(np.float32)
    slow = 1 + 0.13 * smooth_noise(rng, side, scale=45)
    ragged = (1.2 + 2.2 * style.atypia) * smooth_noise(rng, side, scale=11) + 0.8 * smooth_noise(rng, side, scale=5)
    return np.asarray(usual * each[glands] * slow + ragged, np.float32)


def _open_lumens(opening: np.ndarray) -> np.ndarray:
    """Drop the flecks that noise leaves around a lumen."""
    pieces, count = ndimage.label(opening)
    large = np.bincount(pieces.ravel(), minlength=count + 1) >= LUMEN_MIN_PX
    large[0] = False
    return large[pieces]
