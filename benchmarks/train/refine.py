"""Seconds from changed outlines to a segmented slide: `pathseg refine` on a generated slide, again and again.

    python -m benchmarks.train.refine [--side 20000] [--workspace DIR] [--model mini] [--blocks 4-6] [--rounds 3]
                                      [--out FILE]

Draws a square slide (pyramidal TIFF, 0.5 um/px) with one large piece of generated tissue on it, at 20,000 px a side on
30 % of its area, and outlines ten glands and ten discs of stroma. The first round computes the features of all tissue,
which takes long. Before each further round as many outlines are added, so that only labels change; its seconds by step
are written to FILE.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely
import shapely.affinity
import tifffile

from benchmarks.machine import RESULTS, describe_machine, module_command, save_rows
from benchmarks.train.outlines import DISC_PX, MPP, Outline, areas, write_outlines
from pathseg.extract.datasets.synthetic.painting import Tissue, draw_tissue

TILE_PX, BACKGROUND = 512, 243
PIECE_PX = 2048  # side of a square of tissue, which repeats
CENTRE, RADIUS = (4, 4), 3.1  # of the tissue, in such squares
EACH_ROUND = 10  # outlines of each class that are added
STEP = re.compile(r"(extract|train-head|predict) ([0-9.]+) s")


def is_tissue(row: int, col: int) -> bool:
    """Return whether a square holds tissue."""
    return (row - CENTRE[0]) ** 2 + (col - CENTRE[1]) ** 2 < RADIUS**2


def draw_tiles(side: int, downsample: int, image: np.ndarray) -> Iterator[bytes]:
    """Yield the compressed tiles of a level, row by row; each of the piece's tiles is compressed once."""
    small, across = image[::downsample, ::downsample], PIECE_PX // downsample
    empty = zlib.compress(np.full((TILE_PX, TILE_PX, 3), BACKGROUND, np.uint8).tobytes(), 1)
    known: dict[tuple[int, int], bytes] = {}
    for top in range(0, -(-side // downsample), TILE_PX):
        for left in range(0, -(-side // downsample), TILE_PX):
            if across >= TILE_PX:
                inside = is_tissue(top // across, left // across)
                key = top % across, left % across
                if inside and key not in known:
                    y, x = key
                    known[key] = zlib.compress(
                        np.ascontiguousarray(small[y : y + TILE_PX, x : x + TILE_PX]).tobytes(), 1
                    )
                yield known[key] if inside else empty
                continue
            tile = np.full((TILE_PX, TILE_PX, 3), BACKGROUND, np.uint8)
            for y in range(0, TILE_PX, across):
                for x in range(0, TILE_PX, across):
                    if is_tissue((top + y) // across, (left + x) // across):
                        tile[y : y + across, x : x + across] = small
            yield zlib.compress(tile.tobytes(), 1)


def draw_slide(path: Path, side: int) -> Tissue:
    """Write the slide; return the piece of tissue that it repeats."""
    piece = draw_tissue(np.random.default_rng(0), PIECE_PX)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for downsample in (1, 4, 16):
            level, px_per_cm = -(-side // downsample), 1e4 / MPP / downsample
            file.write(
                draw_tiles(side, downsample, piece.image), shape=(level, level, 3), dtype=np.uint8,
                tile=(TILE_PX, TILE_PX), photometric="rgb", compression="zlib", subfiletype=int(downsample > 1),
                resolution=(px_per_cm, px_per_cm), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    return piece


def outlines_of(piece: Tissue) -> dict[str, list[Outline]]:
    """Return glands and discs of stroma of the square of tissue in the centre, in random order."""
    rng, glands = np.random.default_rng(1), areas(piece.glands.astype(np.int32))
    stroma = shapely.union_all(areas((piece.glands == 0).astype(np.int32)))
    discs = [shapely.Point(*rng.uniform(0, PIECE_PX, 2)).buffer(DISC_PX).intersection(stroma) for _ in range(400)]
    found = {"gland": glands, "stroma": [disc for disc in discs if disc.geom_type == "Polygon" and not disc.is_empty]}
    y, x = (PIECE_PX * square for square in CENTRE)
    return {
        name: [("slide", name, shapely.affinity.translate(own[i], x, y)) for i in rng.permutation(len(own))]
        for name, own in found.items()
    }


def refine(slide: Path, workspace: Path, model: str, blocks: str) -> dict[str, float]:
    """Run the command in a process of its own; return the seconds of each step, and of the whole process."""
    which = ["--model", model, "--blocks", blocks, "--workspace", workspace]
    command = module_command("pathseg.cli", "refine", slide, *which)
    started = time.perf_counter()
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    whole = time.perf_counter() - started
    return {
        "whole": whole,
        **{step: float(taken) for step, taken in STEP.findall(done.stdout.strip().splitlines()[-1])},
    }


def main() -> None:
    """Draw the slide, run all rounds, save those in which only labels change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000, help="of the slide, px")
    parser.add_argument("--workspace", type=Path, default=Path("pathseg-refine"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--blocks", default="4-6")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "refine.json")
    arguments = parser.parse_args()
    root = arguments.workspace / "slides"
    root.mkdir(parents=True, exist_ok=True)
    outlines, rows = outlines_of(draw_slide(root / "slide.tif", arguments.side)), []
    for number in range(1, arguments.rounds + 1):
        drawn = [outline for own in outlines.values() for outline in own[: number * EACH_ROUND]]
        write_outlines(root, drawn, ["slide"])
        seconds = refine(root / "slide.tif", arguments.workspace, arguments.model, arguments.blocks)
        print(f"round {number}, {len(drawn)} outlines: {seconds}", flush=True)
        about = {"round": number, "side_px": arguments.side, "model": arguments.model, "blocks": arguments.blocks}
        rows.append({**about, "outlines": len(drawn), **seconds})
    save_rows(arguments.out, f"refine-{arguments.side}", rows, machine=describe_machine(arguments.workspace))


if __name__ == "__main__":
    main()
