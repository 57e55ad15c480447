"""Painting generated tissue: hematoxylin and eosin per pixel, and the RGB image that a scanner records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from pathseg.extract.datasets.synthetic.anatomy import MARGIN_PX, Anatomy, GlandStyle, grow_glands, smooth_noise

# Optical density of hematoxylin and eosin in red, green, blue in two laboratories; a slide lies between them.
STAINS = (
    ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)),  # Macenko et al. 2009, the usual reference
    ((0.6443, 0.7167, 0.2669), (0.0928, 0.9541, 0.2831)),  # Ruifrok and Johnston 2001
)
INK_SCALE = 2  # cells are drawn at twice the size and reduced, which smooths their edges
OUTLINE = 16  # corners of a cell


@dataclass(frozen=True)
class Tissue:
    """A painted piece.

    image: (S, S, 3) uint8 RGB. glands: (S, S) uint16 ids, 0 = stroma. lumen: (S, S) bool, inside glands.
    """

    image: np.ndarray
    glands: np.ndarray
    lumen: np.ndarray


class StainField:
    """A grey image of the tissue's size on which cells are drawn, one over another."""

    def __init__(self, side: int, rng: np.random.Generator) -> None:
        self._grey = Image.new("L", (side * INK_SCALE, side * INK_SCALE))
        self._rng = rng

    def ovals(self, centres: np.ndarray, along: np.ndarray, *, axes: np.ndarray, shade: np.ndarray) -> None:
        """Draw n uneven ovals.

        centres: (n, 2) (y, x) in px. along: (n, 2) directions (y, x) of the first axis. axes: (n, 2) half
        axes in px. shade: (n,) grey from 1 to 255; the outline is a little lighter, which separates neighbours.
        """
        count, rng = len(centres), self._rng
        along = along / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-6)
        turn = np.linspace(0, 2 * np.pi, OUTLINE, endpoint=False)
        lean = 0.09 * rng.standard_normal((count, 1)) * np.cos(2 * turn + rng.uniform(0, 6, (count, 1)))
        reach = 1 + lean + 0.05 * rng.standard_normal((count, OUTLINE))
        first, second = axes[:, :1] * np.cos(turn) * reach, axes[:, 1:] * np.sin(turn) * reach
        y = centres[:, :1] + 0.5 + first * along[:, :1] + second * along[:, 1:]  # (n, 16)
        x = centres[:, 1:] + 0.5 + first * along[:, 1:] - second * along[:, :1]
        outlines = (np.stack([x, y], 2) * INK_SCALE).reshape(count, 2 * OUTLINE).tolist()
        pen = ImageDraw.Draw(self._grey)
        for outline, grey in zip(outlines, np.clip(shade, 1, 255).astype(int).tolist(), strict=True):
            pen.polygon(outline, fill=grey, outline=int(grey * 0.82))

    def read(self) -> np.ndarray:
        """(S, S) float32 from 0 to 1."""
        return np.asarray(self._grey.reduce(INK_SCALE), np.float32) / 255


def draw_tissue(rng: np.random.Generator, side: int) -> Tissue:
    """One piece of H&E-like tissue of `side` px at 0.5 um/px; all that is random comes from `rng`."""
    style = GlandStyle.draw(rng)
    anatomy = grow_glands(rng, side + 2 * MARGIN_PX, style=style)
    fibres = _fibres(rng, anatomy)
    stains = _ground(rng, anatomy, style, fibres)  # (2, S, S) float32: hematoxylin, eosin
    _fill_lumens(rng, stains, anatomy)
    _add_mucin(rng, stains, anatomy, style)
    _add_blood(rng, stains, anatomy)
    _add_nuclei(rng, stains, anatomy, style, fibres)
    cut = slice(MARGIN_PX, MARGIN_PX + side)
    kept, glands = np.unique(anatomy.glands[cut, cut], return_inverse=True)
    if kept[0] > 0:
        glands = glands + 1  # no stroma in sight: the first id is a gland all the same
    return Tissue(_scan(rng, stains[:, cut, cut]), glands.astype(np.uint16), anatomy.lumen[cut, cut].copy())


def _fibres(rng: np.random.Generator, anatomy: Anatomy) -> np.ndarray:
    """(2, S, S) unit vectors (y, x) along the collagen: wavy, and wrapped around glands that are near."""
    side = len(anatomy.glands)
    angle = rng.uniform(0, np.pi) + 0.8 * smooth_noise(rng, side, scale=150) + 0.45 * smooth_noise(rng, side, scale=26)
    near = np.exp(-anatomy.gap / 18.0)
    around = np.arctan2(-anatomy.inward[1], anatomy.inward[0])  # at right angles to inward
    # A fibre has no front, so directions are blended as doubled angles.
    blend_y = (1 - near) * np.sin(2 * angle) + near * np.sin(2 * around)
    blend_x = (1 - near) * np.cos(2 * angle) + near * np.cos(2 * around)
    angle = np.arctan2(blend_y, blend_x) / 2
    return np.stack([np.sin(angle), np.cos(angle)]).astype(np.float32)


def _ground(rng: np.random.Generator, anatomy: Anatomy, style: GlandStyle, fibres: np.ndarray) -> np.ndarray:
    """(2, S, S) float32: cytoplasm with its streaks, collagen with its fibres and clefts."""
    side, inside = len(anatomy.glands), anatomy.glands > 0
    grain = _combed(rng, np.where(inside, anatomy.inward, fibres))
    patchy = smooth_noise(rng, side, scale=60)
    apical = np.clip(anatomy.depth / anatomy.wall, 0, 1)
    cell_h = 0.36 - 0.16 * apical + 0.16 * style.atypia + 0.06 * grain + 0.03 * patchy
    cell_e = 0.38 + 0.10 * apical + 0.07 * grain + 0.05 * patchy
    loose = 0.62 * grain + 0.55 * smooth_noise(rng, side, scale=38) + 0.3 * smooth_noise(rng, side, scale=9)
    cleft = _step(loose - 1.9 + 2.3 * style.looseness, 0.25)
    peeled = smooth_noise(rng, side, scale=50) + 0.35 * smooth_noise(rng, side, scale=8) - 0.5  # shrunk off the gland
    cleft = np.maximum(cleft, _step(1.5 + 3.5 * peeled - anatomy.gap, 1.0))
    membrane = np.exp(-((anatomy.gap - 2.0) ** 2) / 3.0)
    stroma_h = (0.10 + 0.05 * grain + 0.04 * patchy) * (1 - 0.9 * cleft)
    stroma_e = 0.50 - 0.22 * style.looseness + 0.17 * grain + 0.10 * patchy + 0.12 * membrane
    stroma_e = stroma_e * (1 - 0.93 * cleft)
    stains = np.stack([np.where(inside, cell_h, stroma_h), np.where(inside, cell_e, stroma_e)])
    return np.clip(stains, 0.0, None).astype(np.float32)


def _combed(rng: np.random.Generator, along: np.ndarray) -> np.ndarray:
    """(S, S) noise averaged along a field of directions (a line integral convolution), deviation 1."""
    side = along.shape[1]
    noise = ndimage.gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), 0.9)
    rows, cols = np.indices((side, side), dtype=np.float32)
    total = np.zeros((side, side), np.float32)
    for step in range(-12, 13, 2):
        y = np.clip(rows + step * along[0], 0, side - 1).astype(np.intp)
        x = np.clip(cols + step * along[1], 0, side - 1).astype(np.intp)
        total += noise[y, x]
    return total / total.std()


def _step(values: np.ndarray, width: float) -> np.ndarray:
    """0 below zero, 1 above it, soft over about `width`."""
    return 1 / (1 + np.exp(-np.clip(values / width, -30, 30)))


def _fill_lumens(rng: np.random.Generator, stains: np.ndarray, anatomy: Anatomy) -> None:
    """Empty the lumens, then put secretion and dead cells into some of them."""
    side = len(anatomy.glands)
    stains *= np.where(anatomy.lumen, 0.05, 1.0)
    full = rng.random(int(anatomy.glands.max()) + 1) < 0.35
    into_lumen = anatomy.depth - anatomy.wall - 7
    clumps = smooth_noise(rng, side, scale=22) + 0.6 * smooth_noise(rng, side, scale=6)
    grains = smooth_noise(rng, side, scale=3.5)
    debris = _step(np.minimum(into_lumen / 3, 2 * clumps + 0.6 + 0.7 * grains), 0.35)
    debris *= anatomy.lumen & full[anatomy.glands]
    stains[0] += debris * (0.14 + 0.06 * clumps + 0.07 * grains + 0.9 * (grains > 1.9))
    stains[1] += debris * (0.40 + 0.10 * clumps + 0.08 * grains)
    np.clip(stains, 0.0, None, out=stains)


def _scatter(rng: np.random.Generator, chance: np.ndarray, spacing: int) -> np.ndarray:
    """Draw points (n, 2), (y, x), at least `spacing` px apart along an axis, with probability `chance` per px."""
    centres = np.argwhere(rng.random(chance.shape, dtype=np.float32) < chance)
    rng.shuffle(centres)
    taken = np.zeros(chance.shape, bool)
    kept = []
    for y, x in centres.tolist():
        if not taken[y, x]:
            kept.append((y, x))
            taken[max(0, y - spacing + 1) : y + spacing, max(0, x - spacing + 1) : x + spacing] = True
    return np.array(kept, np.intp).reshape(-1, 2)


def _add_mucin(rng: np.random.Generator, stains: np.ndarray, anatomy: Anatomy, style: GlandStyle) -> None:
    """Goblet cells: pale ovals between the nuclei and the lumen, pointing to it."""
    side = len(anatomy.glands)
    body = (anatomy.glands > 0) & ~anatomy.lumen
    rich = smooth_noise(rng, side, scale=40) < 4.0 * style.goblets - 2.0
    zone = body & rich & (anatomy.depth > 17 + 6 * style.atypia)
    centres = _scatter(rng, zone * 0.3, 12)
    axes = rng.uniform((6.5, 4.5), (11.0, 6.5), (len(centres), 2))
    field = StainField(side, rng)
    along = anatomy.inward[:, centres[:, 0], centres[:, 1]].T
    field.ovals(centres, along, axes=axes, shade=rng.uniform(190, 255, len(centres)))
    pale = ndimage.gaussian_filter(field.read(), 0.7) * body
    stains *= 1 - 0.88 * pale
    stains[0] += 0.05 * pale * (1 + 0.6 * smooth_noise(rng, side, scale=3))


def _add_blood(rng: np.random.Generator, stains: np.ndarray, anatomy: Anatomy) -> None:
    """Red cells, strongly eosinophilic, where capillaries happen to be cut."""
    side = len(anatomy.glands)
    vessels = (smooth_noise(rng, side, scale=30) > 2.1) & (anatomy.gap > 5)
    centres = _scatter(rng, vessels * 0.2, 9)
    axes = rng.uniform(4.5, 6.0, (len(centres), 1)).repeat(2, 1)
    field = StainField(side, rng)
    field.ovals(centres, np.ones((len(centres), 2)), axes=axes, shade=rng.uniform(150, 255, len(centres)))
    red = field.read() * (anatomy.glands == 0)
    stains[0] *= 1 - red
    stains[1] += red * (0.95 - stains[1])


def _add_nuclei(
    rng: np.random.Generator, stains: np.ndarray, anatomy: Anatomy, style: GlandStyle, fibres: np.ndarray
) -> None:
    """All nuclei on one stain field, then into the stains with a darker rim and grains of chromatin."""
    side = len(anatomy.glands)
    field = StainField(side, rng)
    _draw_spindles(rng, field, anatomy, fibres)
    _draw_round_cells(rng, field, anatomy, style)
    _draw_palisade(rng, field, anatomy, style)
    shade = field.read()
    cover = np.clip(shade * 3, 0, 1)
    rim = cover - ndimage.gaussian_filter(cover, 1.6)
    chromatin = 1 + 0.24 * smooth_noise(rng, side, scale=2.6) + 0.9 * rim
    stains[0] += cover * (1.65 * shade * chromatin - stains[0])
    stains[1] *= 1 - 0.3 * cover
    np.clip(stains, 0.0, None, out=stains)


def _draw_spindles(rng: np.random.Generator, field: StainField, anatomy: Anatomy, fibres: np.ndarray) -> None:
    """Fibroblasts: thin nuclei along the fibres."""
    crowd = np.clip(0.004 + 0.004 * smooth_noise(rng, len(fibres[0]), scale=40), 0.0004, None)
    centres = _scatter(rng, (anatomy.gap > 3) * crowd, int(rng.integers(11, 18)))
    count = len(centres)
    along = fibres[:, centres[:, 0], centres[:, 1]].T + rng.normal(0, 0.15, (count, 2))
    axes = rng.uniform((5.0, 1.5), (10.0, 2.8), (count, 2))
    field.ovals(centres, along, axes=axes, shade=rng.normal(155, 28, count))


def _draw_round_cells(rng: np.random.Generator, field: StainField, anatomy: Anatomy, style: GlandStyle) -> None:
    """Lymphocytes and plasma cells: small, round, dark, in crowds."""
    crowd = smooth_noise(rng, len(anatomy.glands), scale=55) + 2.2 * style.inflammation
    centres = _scatter(rng, (anatomy.gap > 4) * np.clip(0.02 * crowd - 0.024, 0.0006, None), 9)
    count = len(centres)
    axes = rng.uniform(3.4, 5.0, (count, 1)) * np.array([[1.08, 0.95]])
    field.ovals(centres, rng.standard_normal((count, 2)), axes=axes, shade=rng.normal(190, 28, count))


def _draw_palisade(rng: np.random.Generator, field: StainField, anatomy: Anatomy, style: GlandStyle) -> None:
    """Epithelial nuclei: a row near the outer edge, pointing inward; with atypia more rows, larger cells."""
    sway = 2.0 * smooth_noise(rng, len(anatomy.glands), scale=9)
    body = (anatomy.glands > 0) & ~anatomy.lumen & (anatomy.depth < 0.74 * anatomy.wall)
    length, width = 6.4 + 2.0 * style.atypia, 3.3 + 0.7 * style.atypia
    for row in range(1 + round(2.4 * style.atypia + rng.uniform(-0.3, 0.5))):
        level = length + 2 + row * 1.25 * length + sway
        zone = body & (np.abs(anatomy.depth - level) < 1.3)
        centres = _scatter(rng, zone * (0.75 if row == 0 else 0.45), round(2 * width - 1))
        count = len(centres)
        along = anatomy.inward[:, centres[:, 0], centres[:, 1]].T + rng.normal(0, 0.16, (count, 2))
        axes = np.array([length, width]) * rng.uniform((0.75, 0.8), (1.25, 1.2), (count, 2))
        field.ovals(centres, along, axes=axes, shade=rng.normal(148 + 20 * style.atypia, 24, count))


def _scan(rng: np.random.Generator, stains: np.ndarray) -> np.ndarray:
    """(2, S, S) stains -> (S, S, 3) uint8: Beer-Lambert, the slide's own dyes and light, blur, noise."""
    one, other = np.array(STAINS)
    mix = rng.uniform(0.25, 1.0)
    vectors = ((1 - mix) * one + mix * other) * rng.normal(1, 0.06, (2, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    strength = rng.uniform(0.75, 1.25, (2, 1)) * rng.uniform(0.85, 1.15)
    density = np.einsum("shw,sc->hwc", stains, 1.35 * strength * vectors)  # (S, S, 3), natural logarithm
    light = rng.uniform(0.93, 0.99) * rng.normal(1, 0.008, 3)
    blur_px = rng.uniform(0.5, 0.8)
    image = ndimage.gaussian_filter(light * np.exp(-density), (blur_px, blur_px, 0))
    image += rng.normal(0, 0.012, image.shape[:2])[..., None] + rng.normal(0, 0.006, image.shape)
    return np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)
