"""Peak memory of reading BCSS regions: does it grow with their number, and how with the size of the largest?

    python -m benchmarks.extract.regions [--out FILE]

Draws regions in BCSS's layout into a temporary folder, then lists them and reads every view, in a new process for each
number and size of regions. Reported is the peak resident memory of that process above that after its imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import RESULTS, describe_machine, module_command, peak_bytes, save_rows
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset

SIZES = {24: (4000, 6000), 96: (8000, 12000)}  # Mpx -> px at 0.25 um/px: the mean of the data set, four times that
CASES = ((2, 24), (8, 24), (2, 96))  # regions, Mpx of each


def draw_regions(root: Path, regions: int, size: tuple[int, int]) -> None:
    """Write images of noise, as hard to compress as tissue, and striped masks; every other one is a test region."""
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


def read_regions(root: Path) -> dict[str, int]:
    """List and read the data set; return the number of views and the peak memory above that after the imports."""
    before = peak_bytes()
    dataset = open_dataset("bcss", DatasetOptions(root=root))
    listed = peak_bytes()
    for sample in dataset.samples:
        dataset.load(sample)
    return {"views": len(dataset.samples), "list_bytes": listed - before, "read_bytes": peak_bytes() - before}


def main() -> None:
    """Measure every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "regions.json")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # one data set, in a process of its own
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read_regions(arguments.read)))
        return
    machine, rows = describe_machine(Path(tempfile.gettempdir())), []
    for count, megapixels in CASES:
        with tempfile.TemporaryDirectory() as folder:
            draw_regions(Path(folder), count, SIZES[megapixels])
            command = module_command("benchmarks.extract.regions", "--read", folder)
            row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        rows.append({"regions": count, "megapixels": megapixels, **row})
        print(f"  {count} regions of {megapixels} Mpx, {row['views']} views: listing takes "
              f"{row['list_bytes'] / 1e6:.0f} MB, reading {row['read_bytes'] / 1e6:.0f} MB at most")  # fmt: skip
    save_rows(arguments.out, "memory", rows, machine=machine)


if __name__ == "__main__":
    main()
