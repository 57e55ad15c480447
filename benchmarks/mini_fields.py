"""The fields that `mini` learns from: 256 px cuts of free images and of generated tissue, turned, scaled and restained.

Every field is drawn from (seed, part, its number), so it is the same whatever the number of processes. The scale runs
from about 30x to 10x, with the two sides scaled up to 1.4 times differently, because images are often made square
before they are cut.

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
HELD_OUT = 4  # the last images of BreCaHAD, for the measurements alone
MPP = (0.35, 1.1)  # um/px of a field, drawn evenly in the logarithm; GlaS is 0.62
SQUEEZE = 1.4  # most that one side is scaled more than the other
SHEETS = 96  # pieces of generated tissue that fields are cut from
SHEET_PX = 640

# Share of the fields, um/px of the files, and where they lie below the data folder.
SOURCES: dict[str, tuple[float, float, str]] = {
    "brecahad": (0.60, 0.25, "brecahad/*.jpg"),
    "slide": (0.22, 0.50, "slides/*.svs"),
    "bcss": (0.06, 0.50, "bcss/crops/images/*.png"),
    "generated": (0.12, 0.50, ""),
}


@cache
def files(data: Path, source: str, part: str) -> tuple[Path, ...]:
    """The images of a source; part: `train` or `held`, which is the last four images of BreCaHAD."""
    found = tuple(sorted(data.glob(SOURCES[source][2])))
    if not found:
        raise FileNotFoundError(f"no {SOURCES[source][2]} in {data}")
    if source != "brecahad":
        return found
    return found[-HELD_OUT:] if part == "held" else found[:-HELD_OUT]


@cache
def pixels(path: Path) -> Image.Image:
    """A decoded image; a single-level slide is a TIFF that Pillow reads."""
    with Image.open(path) as image:
        return image.convert("RGB")


@cache
def sheet(seed: int, number: int) -> Image.Image:
    """A piece of generated tissue."""
    return Image.fromarray(draw_tissue(np.random.default_rng([seed, 7, number]), SHEET_PX).image)


def restain(rng: np.random.Generator, field: np.ndarray) -> np.ndarray:
    """Other amounts of hematoxylin, eosin and the rest, and another white: (256, 256, 3) uint8."""
    density = -np.log((field.reshape(-1, 3).astype(np.float32) + 1) / 256)
    stains = np.array(STAINS[0], np.float32)
    stains = np.vstack([stains, np.cross(*stains)])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    amounts = density @ np.linalg.inv(stains)
    amounts *= rng.uniform([0.6, 0.6, 0.5], [1.6, 1.6, 1.5]).astype(np.float32)
    turned = stains + rng.normal(0, 0.04, stains.shape).astype(np.float32)
    density = amounts @ turned + rng.uniform(-0.02, 0.06)
    return np.clip(256 * np.exp(-density) - 1, 0, 255).reshape(field.shape).astype(np.uint8)


def cut(rng: np.random.Generator, image: Image.Image, mpp: float) -> np.ndarray:
    """A field of the image: a random place, scale, mirror and quarter turn, (256, 256, 3) uint8."""
    wanted = np.exp(rng.uniform(*np.log(MPP))) * np.exp(np.array([0.5, -0.5]) * rng.uniform(-1, 1) * np.log(SQUEEZE))
    sides = np.minimum(np.maximum(PX * wanted / mpp, 160), image.size)
    left, top = rng.uniform(0, np.array(image.size) - sides)
    box = (left, top, left + sides[0], top + sides[1])
    field = np.asarray(image.resize((PX, PX), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
    field = np.rot90(field, rng.integers(4))
    return field[:, ::-1] if rng.integers(2) else field


def draw(data: Path, seed: int, part: str, number: int) -> np.ndarray:
    """Field `number` of a part (`train`, `held`)."""
    rng = np.random.default_rng([seed, part == "held", number])
    names = list(SOURCES)
    source = "brecahad" if part == "held" else names[rng.choice(len(names), p=[SOURCES[name][0] for name in names])]
    if source == "generated":
        image = sheet(seed, int(rng.integers(SHEETS)))
    else:
        found = files(data, source, part)
        image = pixels(found[rng.integers(len(found))])
    field = cut(rng, image, SOURCES[source][1])
    return restain(rng, field) if rng.random() < 0.8 else np.ascontiguousarray(field)


def draw_fields(data: Path, out: Path, *, seed: int, part: str, count: int, processes: int = 2) -> np.ndarray:
    """All fields of a part, (count, 256, 256, 3) uint8, kept in `out` and read from there the next time."""
    path = out / f"fields-{part}-{seed}-{count}.npy"
    if not path.exists():
        with ProcessPoolExecutor(processes) as pool:
            fields = np.stack(list(pool.map(partial(draw, data, seed, part), range(count), chunksize=256)))
        partial_path = path.with_suffix(".partial.npy")
        np.save(partial_path, fields)
        partial_path.rename(path)
    return np.load(path, mmap_mode="r")
