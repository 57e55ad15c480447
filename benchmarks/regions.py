"""How much memory reading regions of 24 megapixels takes, and whether it grows with their number.

    python benchmarks/regions.py

Draws regions in BCSS's layout into a temporary folder, then lists them and reads every view in a process of its own for
each number of regions; the peak is what Linux says of that process, less what it has after its imports.

Measured: listing takes 98 MB, reading 253 MB, with 2 regions and with 8: the image as decoded and as an array of bytes,
and what is kept of it at 0.5 um/px.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pathseg.extract.datasets import DatasetOptions, open_dataset

SIZE = (4000, 6000)  # px at 0.25 um/px, the mean of the data set


def draw(root: Path, regions: int) -> None:
    """Noise that compresses as badly as tissue, masks of stripes; every other region is of a test institute."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    image = Image.fromarray(rng.normal(190, 25, (*SIZE, 3)).clip(0, 255).astype(np.uint8))
    mask = Image.fromarray(np.repeat(np.arange(SIZE[0]) // 500 + 1, SIZE[1]).reshape(SIZE).astype(np.uint8))
    for number in range(regions):
        institute = ("A2", "OL")[number % 2]
        name = f"TCGA-{institute}-{number:04d}-DX1_xmin0_ymin0_MPP-0.2500.png"
        image.save(root / "images" / name, compress_level=1)
        mask.save(root / "masks" / name)


def peak_mb() -> float:
    """The largest memory of this process so far."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def read(root: Path, regions: int) -> None:
    """List and read the data set; prints views and peaks."""
    before = peak_mb()
    dataset = open_dataset("bcss", DatasetOptions(root=root))
    listed = peak_mb()
    for sample in dataset.samples:
        dataset.load(sample)
    print(f"{regions} regions, {len(dataset.samples)} views: listing takes {listed - before:.0f} MB, "
          f"reading {peak_mb() - before:.0f} MB at most")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        read(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        for count in (2, 8):
            with tempfile.TemporaryDirectory() as folder:
                draw(Path(folder), count)
                subprocess.run([sys.executable, __file__, folder, str(count)], check=True)
