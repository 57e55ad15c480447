"""Whether predicting a slide takes more memory the larger the slide is.

    python benchmarks/predict.py [--sides 5000,50000] [--out benchmarks/results/predict.json]

Draws tiled TIFFs of so many px a side, the same four pieces of tissue on glass, trains a linear head on the
bundled model for one epoch, and predicts each slide by the command line with all formats in a process of its own.
Printed is the largest resident size of that process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import tifffile
from machine import keep, machine

from pathseg.extract.datasets.synthetic.painting import draw_tissue

TILE, PIECE = 512, 200  # px: of the file; of a piece of tissue, which one window sees whole
GLASS, MPP = 243, 0.5
LEVELS = (1, 4, 16)  # downsamples


def pieces(side):
    """Corners of the tissue: near all four ends of the slide, each inside one tile of the file."""
    near, far = 40, (side // TILE - 1) * TILE + 40
    return [(y, x) for y in (near, far) for x in (near, far)]


def tiles(side, times, tissue):
    """The tiles of a level, compressed; all glass is compressed once."""
    nothing = zlib.compress(np.full((TILE, TILE, 3), GLASS, np.uint8).tobytes())
    count = -(-side // times)
    for top in range(0, count, TILE):
        for left in range(0, count, TILE):
            there = [(y // times - top, x // times - left) for y, x in pieces(side)]
            there = [(y, x) for y, x in there if -PIECE < y < TILE and -PIECE < x < TILE]
            if not there:
                yield nothing
                continue
            tile, thin = np.full((TILE + PIECE, TILE + PIECE, 3), GLASS, np.uint8), tissue[::times, ::times]
            for y, x in there:
                if y >= 0 and x >= 0:
                    tile[y : y + len(thin), x : x + len(thin)] = thin
            yield zlib.compress(np.ascontiguousarray(tile[:TILE, :TILE]).tobytes())


def draw_slide(path, side):
    """A pyramidal tiled TIFF, written tile by tile."""
    tissue = draw_tissue(np.random.default_rng(0), 256).image[:PIECE, :PIECE]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for times in LEVELS:
            pitch = 1e4 / MPP / times
            file.write(
                tiles(side, times, tissue), shape=(-(-side // times), -(-side // times), 3), dtype=np.uint8,
                tile=(TILE, TILE), photometric="rgb", compression="zlib", subfiletype=int(times > 1),
                resolution=(pitch, pitch), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip


def pathseg(*arguments):
    """Run a command to its end: its largest resident size in MB."""
    command = [sys.executable, "-m", "pathseg.cli", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024


def main():
    """Measure each side and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", default="5000,50000", help="px, a comma list")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/predict.json")
    arguments, rows = parser.parse_args(), []
    about = machine(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory() as place:
        work = ("--workspace", place)
        pathseg("extract", "--dataset", "synthetic", "--model", "mini", "--resize", 256, "--limit", 3, "--blocks", "4",
                "--layout", "native", *work)  # fmt: skip
        pathseg(
            "train-head", "--blocks", "4", "--head", "linear", "--epochs", 1, "--lr", "1e-2", "--name", "head", *work
        )
        for side in map(int, arguments.sides.split(",")):
            slide = Path(place) / f"slide-{side}.tif"
            draw_slide(slide, side)
            peak = pathseg("predict", slide, "--run", "head", "--out", Path(place) / "out", "--format",
                           "mask,overlay,geojson,probabilities", *work)  # fmt: skip
            record = json.loads((Path(place) / "out" / "_done" / f"{slide.stem}.json").read_text())
            windows = [record["windows"], record["windows_in_all"]]
            rows.append({"side_px": side, "peak_mb": round(peak), "windows": windows})
            print(f"{side} x {side} px: {peak:.0f} MB at most, {windows[0]} of {windows[1]} windows")
    keep(arguments.out, "memory", rows, about=about)


if __name__ == "__main__":
    main()
