"""How much memory reading regions takes: whether it grows with their number, and how with the size of the largest.

    python benchmarks/regions.py [--out benchmarks/results/regions.json]

Draws regions in BCSS's layout into a temporary folder, then lists them and reads every view in a process of its own for
each number and size of regions; the peak is what Linux says of that process, less what it has after its imports.

Measured: with 2 regions of 24 Mpx and with 8, listing takes 64 MB and reading 145 MB; with 2 of 96 Mpx 176 and 506 MB.
So memory does not grow with their number, but by 5 bytes a pixel of the largest one: 4 for the image as Pillow decodes
it, 1 for what is kept of image and mask at 0.5 um/px.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import keep, machine, peak_bytes
from PIL import Image

from pathseg.extract.datasets.registry import DatasetOptions, open_dataset

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


def read(root: Path) -> dict[str, int]:
    """List and read the data set: views, and peaks above what this process has after its imports."""
    before = peak_bytes()
    dataset = open_dataset("bcss", DatasetOptions(root=root))
    listed = peak_bytes()
    for sample in dataset.samples:
        dataset.load(sample)
    return {"views": len(dataset.samples), "list_bytes": listed - before, "read_bytes": peak_bytes() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/regions.json")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # one data set, in its own process
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(arguments.read)))
        return
    about, rows = machine(Path(tempfile.gettempdir())), []
    for count, megapixels in CASES:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder), count, SIZES[megapixels])
            command = [sys.executable, __file__, "--read", folder]
            said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        rows.append({"regions": count, "megapixels": megapixels, **said})
        print(f"  {count} regions of {megapixels} Mpx, {said['views']} views: listing takes "
              f"{said['list_bytes'] / 1e6:.0f} MB, reading {said['read_bytes'] / 1e6:.0f} MB at most")  # fmt: skip
    keep(arguments.out, "memory", rows, about=about)


if __name__ == "__main__":
    main()
