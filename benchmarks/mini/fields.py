"""Draw the fields that `mini` is trained on: augmented 256 px crops of free images and of generated tissue.

Every field is drawn from (seed, split, its number), so it does not depend on the number of processes. The scale is
between about 30x and 10x; the two sides are scaled up to 1.4 times differently, because images are often resized to a
square before they are cut into patches. Augmentation: rotation, mirroring, scale and stain.

Sources: BreCaHAD (Aksac et al. 2019, figshare 7379186, CC BY 4.0), a slide region of OpenSlide's test data (CC0), two
crops of BCSS (CC0) and pathseg's own generated tissue. No image of GlaS.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from pathseg.extract.datasets.synthetic.painting import STAINS, draw_tissue

PX = 256
HELD_OUT = 4  # the last images of BreCaHAD, used for measurements only
MPP = (0.35, 1.1)  # um/px of a field, log-uniform; GlaS is 0.62
MAX_ASPECT = 1.4  # largest ratio of the scales of the two sides
SHEETS = 96  # images of generated tissue that fields are cropped from
SHEET_PX = 640

# name -> share of the fields, um/px of the files, their paths in the data folder
SOURCES: dict[str, tuple[float, float, str]] = {
    "brecahad": (0.60, 0.25, "brecahad/*.jpg"),
    "slide": (0.22, 0.50, "slides/*.svs"),
    "bcss": (0.06, 0.50, "bcss/crops/images/*.png"),
    "generated": (0.12, 0.50, ""),
}


@cache
def files(data: Path, source: str, split: str) -> tuple[Path, ...]:
    """List the images of a source and split; `held` is the last four images of BreCaHAD, `train` all others."""
    paths = tuple(sorted(data.glob(SOURCES[source][2])))
    if not paths:
        raise FileNotFoundError(f"no {SOURCES[source][2]} in {data}")
    if source != "brecahad":
        return paths
    return paths[-HELD_OUT:] if split == "held" else paths[:-HELD_OUT]


@cache
def read_image(path: Path) -> Image.Image:
    """Decode an image with Pillow, which reads single-level slides too."""
    with Image.open(path) as image:
        return image.convert("RGB")


@cache
def generated_tissue(seed: int, number: int) -> Image.Image:
    """Draw image `number` of generated tissue."""
    return Image.fromarray(draw_tissue(np.random.default_rng([seed, 7, number]), SHEET_PX).image)


def restain(rng: np.random.Generator, field: np.ndarray) -> np.ndarray:
    """Change the amounts of hematoxylin, eosin and the residual, and the white level; (256, 256, 3) uint8."""
    density = -np.log((field.reshape(-1, 3).astype(np.float32) + 1) / 256)
    stains = np.array(STAINS[0], np.float32)
    stains = np.vstack([stains, np.cross(*stains)])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    amounts = density @ np.linalg.inv(stains)
    amounts *= rng.uniform([0.6, 0.6, 0.5], [1.6, 1.6, 1.5]).astype(np.float32)
    changed = stains + rng.normal(0, 0.04, stains.shape).astype(np.float32)
    density = amounts @ changed + rng.uniform(-0.02, 0.06)
    return np.clip(256 * np.exp(-density) - 1, 0, 255).reshape(field.shape).astype(np.uint8)


def crop(rng: np.random.Generator, image: Image.Image, mpp: float) -> np.ndarray:
    """Crop a field at a random position, scale, mirroring and quarter turn, (256, 256, 3) uint8."""
    mean_mpp = np.exp(rng.uniform(*np.log(MPP)))
    target_mpp = mean_mpp * np.exp(np.array([0.5, -0.5]) * rng.uniform(-1, 1) * np.log(MAX_ASPECT))
    sides = np.minimum(np.maximum(PX * target_mpp / mpp, 160), image.size)
    left, top = rng.uniform(0, np.array(image.size) - sides)
    box = (left, top, left + sides[0], top + sides[1])
    field = np.asarray(image.resize((PX, PX), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
    field = np.rot90(field, rng.integers(4))
    return field[:, ::-1] if rng.integers(2) else field


def draw_field(data: Path, seed: int, split: str, number: int) -> np.ndarray:
    """Draw field `number` of a split (`train`, `held`), (256, 256, 3) uint8."""
    rng = np.random.default_rng([seed, split == "held", number])
    names = list(SOURCES)
    source = "brecahad" if split == "held" else names[rng.choice(len(names), p=[SOURCES[name][0] for name in names])]
    if source == "generated":
        image = generated_tissue(seed, int(rng.integers(SHEETS)))
    else:
        paths = files(data, source, split)
        image = read_image(paths[rng.integers(len(paths))])
    field = crop(rng, image, SOURCES[source][1])
    return restain(rng, field) if rng.random() < 0.8 else np.ascontiguousarray(field)


def draw_fields(data: Path, out: Path, *, seed: int, split: str, count: int, processes: int = 2) -> np.ndarray:
    """Draw all fields of a split, (count, 256, 256, 3) uint8; save them in `out` and read them from there next time."""
    path = out / f"fields-{split}-{seed}-{count}.npy"
    if not path.exists():
        with ProcessPoolExecutor(processes) as pool:
            fields = np.stack(list(pool.map(partial(draw_field, data, seed, split), range(count), chunksize=256)))
        partial_path = path.with_suffix(".partial.npy")
        np.save(partial_path, fields)
        partial_path.rename(path)
    return np.load(path, mmap_mode="r")
