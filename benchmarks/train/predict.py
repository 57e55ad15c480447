"""Peak memory of `pathseg predict` on slides of several sizes: does it grow with the slide?

    python -m benchmarks.train.predict [--sides 5000,50000] [--out FILE]

Draws square tiled TIFFs with these sides in px, each with the same four pieces of tissue on background, trains a linear
head on the bundled model for one epoch, and predicts each slide in all formats with the command line. Reported is the
peak resident memory of that process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from benchmarks.machine import RESULTS, describe_machine, module_command, save_rows
from pathseg.extract.datasets.synthetic.painting import draw_tissue

TILE_PX, PIECE_PX = 512, 200  # of the file; of a piece of tissue, which fits into one window
BACKGROUND, MPP = 243, 0.5  # grey value; um/px
DOWNSAMPLES = (1, 4, 16)  # of the pyramid's levels


def piece_corners(side: int) -> list[tuple[int, int]]:
    """Return the top left corners (y, x) of the pieces: near the corners of the slide, each inside one tile."""
    near, far = 40, (side // TILE_PX - 1) * TILE_PX + 40
    return [(y, x) for y in (near, far) for x in (near, far)]


def draw_tiles(side: int, downsample: int, tissue: np.ndarray) -> Iterator[bytes]:
    """Yield the compressed tiles of a level row by row; tiles of background are compressed once."""
    empty = zlib.compress(np.full((TILE_PX, TILE_PX, 3), BACKGROUND, np.uint8).tobytes())
    level_side = -(-side // downsample)
    small = tissue[::downsample, ::downsample]
    for top in range(0, level_side, TILE_PX):
        for left in range(0, level_side, TILE_PX):
            corners = [(y // downsample - top, x // downsample - left) for y, x in piece_corners(side)]
            corners = [(y, x) for y, x in corners if -PIECE_PX < y < TILE_PX and -PIECE_PX < x < TILE_PX]
            if not corners:
                yield empty
                continue
            tile = np.full((TILE_PX + PIECE_PX, TILE_PX + PIECE_PX, 3), BACKGROUND, np.uint8)
            for y, x in corners:
                if y >= 0 and x >= 0:
                    tile[y : y + len(small), x : x + len(small)] = small
            yield zlib.compress(np.ascontiguousarray(tile[:TILE_PX, :TILE_PX]).tobytes())


def draw_slide(path: Path, side: int) -> None:
    """Write a pyramidal tiled TIFF tile by tile."""
    tissue = draw_tissue(np.random.default_rng(0), 256).image[:PIECE_PX, :PIECE_PX]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for downsample in DOWNSAMPLES:
            level_side, px_per_cm = -(-side // downsample), 1e4 / MPP / downsample
            file.write(
                draw_tiles(side, downsample, tissue), shape=(level_side, level_side, 3), dtype=np.uint8,
                tile=(TILE_PX, TILE_PX), photometric="rgb", compression="zlib", subfiletype=int(downsample > 1),
                resolution=(px_per_cm, px_per_cm), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip


def run_pathseg(*arguments: object) -> float:
    """Run a command of pathseg and return its peak resident memory in MB."""
    command = module_command("pathseg.cli", *arguments)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read()}")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Measure every side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="5000,50000", help="px, a comma list")
    parser.add_argument("--out", type=Path, default=RESULTS / "predict.json")
    arguments, rows = parser.parse_args(), []
    machine = describe_machine(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory() as folder:
        workspace = ("--workspace", folder)
        run_pathseg("extract", "--dataset", "synthetic", "--model", "mini", "--resize", 256, "--limit", 3,
                    "--blocks", "4", "--layout", "native", *workspace)  # fmt: skip
        run_pathseg("train-head", "--blocks", "4", "--head", "linear", "--epochs", 1, "--lr", "1e-2", "--name", "head",
                    *workspace)  # fmt: skip
        for side in map(int, arguments.sides.split(",")):
            slide = Path(folder) / f"slide-{side}.tif"
            draw_slide(slide, side)
            peak = run_pathseg("predict", slide, "--run", "head", "--out", Path(folder) / "out", "--format",
                               "mask,overlay,geojson,probabilities", *workspace)  # fmt: skip
            record = json.loads((Path(folder) / "out" / "_done" / f"{slide.stem}.json").read_text())
            windows = [record["windows"], record["windows_in_all"]]
            rows.append({"side_px": side, "peak_mb": round(peak), "windows": windows})
            print(f"{side} x {side} px: peak memory {peak:.0f} MB, {windows[0]} of {windows[1]} windows")
    save_rows(arguments.out, "memory", rows, machine=machine)


if __name__ == "__main__":
    main()
