"""How much memory reading regions takes: whether it grows with their number, and how with the size of the largest.

    python benchmarks/regions.py

Draws regions in BCSS's layout into a temporary folder, then lists them and reads every view in a process of its own for
each number and size of regions; the peak is what Linux says of that process, less what it has after its imports.

Measured: with 2 regions of 24 Mpx and with 8, listing takes 64 MB and reading 145 MB; with 2 of 96 Mpx 176 and 506 MB.
So memory does not grow with their number, but by 5 bytes a pixel of the largest one: 4 for the image as Pillow decodes
it, 1 for what is kept of image and mask at 0.5 um/px.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pathseg.extract.datasets import DatasetOptions, open_dataset

SIZES = {24: (4000, 6000), 96: (8000, 12000)}  # Mpx -> px at 0.25 um/px: the mean of the data set, four times that
CASES = ((2, 24), (8, 24), (2, 96))  # regions, Mpx of each


def draw(root: Path, regions: int, size: tuple[int, int]) -> None:
    """Noise that compresses as badly as tissue, masks of stripes; every other region is of a test institute."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    tile = rng.normal(190, 25, (2000, 2000, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(np.tile(tile, (size[0] // 2000, size[1] // 2000, 1)))
    mask = Image.fromarray(np.repeat(np.arange(size[0]) // 500 + 1, size[1]).reshape(size).astype(np.uint8))
    for number in range(regions):
        institute = ("A2", "OL")[number % 2]
        name = f"TCGA-{institute}-{number:04d}-DX1_xmin0_ymin0_MPP-0.2500.png"
        image.save(root / "images" / name, compress_level=1)
        mask.save(root / "masks" / name)


def peak_mb() -> float:
    """The largest memory of this process so far."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def read(root: Path, what: str) -> None:
    """List and read the data set; prints what it is, views and peaks."""
    before = peak_mb()
    dataset = open_dataset("bcss", DatasetOptions(root=root))
    listed = peak_mb()
    for sample in dataset.samples:
        dataset.load(sample)
    print(f"{what}, {len(dataset.samples)} views: listing takes {listed - before:.0f} MB, "
          f"reading {peak_mb() - before:.0f} MB at most")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        read(Path(sys.argv[1]), sys.argv[2])
    else:
        for count, megapixels in CASES:
            with tempfile.TemporaryDirectory() as folder:
                draw(Path(folder), count, SIZES[megapixels])
                subprocess.run([sys.executable, __file__, folder, f"{count} regions of {megapixels} Mpx"], check=True)
