"""Peak memory of `pathseg predict` on slides of several sizes, and its time beside that of its forward passes.

    python -m benchmarks.train.predict [--only memory,windows] [--sides 5000,50000] [--region 1344]
                                       [--overlaps 16,64] [--turns 1] [--out FILE]

memory   Draws square tiled TIFFs with these sides in px, each with the same four pieces of tissue on background, trains
         a linear head on the bundled model for one epoch, and predicts each slide in all formats with the command line.
         Reported is the peak resident memory of that process: does it grow with the slide?
windows  Predicts a slide of `--region` px a side that is all tissue from its pixels with `mini`, for each overlap:
         seconds of the whole call of `predict`, which writes a pyramid, an overlay and GeoJSON, but for loading the
         model, and of the forward passes in it, which are timed one by one. windows_without_overlap: as many as would
         cover the slide side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
import torch

from benchmarks.machine import RESULTS, describe_machine, module_command, save_rows
from pathseg.extract.datasets.synthetic.painting import draw_tissue
from pathseg.extract.inputs.images import open_input_image
from pathseg.extract.models.load import load_model
from pathseg.extract.online_features import online_features
from pathseg.store.grid import PATCH_PX
from pathseg.store.key import StoreKey
from pathseg.store.runtime import workspace as paths
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.feature_sources import ComputeFeatures, computed_features
from pathseg.train.predict.predictor import predict

TILE_PX, PIECE_PX = 512, 240  # of the file; of a piece of tissue, more than the 10,000 um2 below which it is dust
BACKGROUND, MPP = 243, 0.5  # grey value; um/px
DOWNSAMPLES = (1, 4, 16)  # of the pyramid's levels


def piece_corners(side: int) -> list[tuple[int, int]]:
    """Return the top left corners (y, x) of the pieces: near the corners of the slide, each inside one tile."""
    near, far = 8, (side // TILE_PX - 1) * TILE_PX + 8
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


class TimedModel:
    """Loads the models of a head; adds up the seconds of loading, of their calls, and the patches of these."""

    def __init__(self) -> None:
        self.loading, self.seconds, self.patches = 0.0, 0.0, 0

    def __call__(self, key: StoreKey, t: int, blocks: Sequence[int], *, batch_size: int) -> ComputeFeatures:
        """Load the model of a store's features."""
        started = time.perf_counter()
        compute = online_features(load_model(key.model), key, t, blocks, batch_size=batch_size)
        self.loading += time.perf_counter() - started

        def timed(patches: np.ndarray, indices: Sequence[int], image_id: str) -> Mapping[int, torch.Tensor]:
            started = time.perf_counter()
            features = compute(patches, indices, image_id)
            self.seconds += time.perf_counter() - started
            self.patches += len(patches)
            return features

        return timed


def time_windows(folder: Path, side: int, overlaps: Sequence[int], turns: int) -> list[dict[str, object]]:
    """Return a row for each overlap and turn, in alternation."""
    slide = folder / "region.tif"
    image = draw_tissue(np.random.default_rng(0), side).image
    with tifffile.TiffWriter(slide) as file:
        px_per_cm = 1e4 / MPP
        file.write(
            image, tile=(TILE_PX, TILE_PX), photometric="rgb", compression="zlib",
            resolution=(px_per_cm, px_per_cm), resolutionunit="CENTIMETER", metadata=None,
        )  # fmt: skip
    run, rows = paths.run_path(folder, "head"), []
    for turn in range(turns):
        for overlap in overlaps:
            model, out = TimedModel(), folder / f"windows-{overlap}-{turn}"
            started, used = time.perf_counter(), time.process_time()
            result = predict(
                [slide], run, out, PredictConfig(overlap=overlap, tissue="all"), features=computed_features(model),
                open_image=open_input_image, trained_mpp=MPP,
            )  # fmt: skip
            whole, used = time.perf_counter() - started - model.loading, time.process_time() - used
            (record,) = result.images
            rows.append({
                "side_px": side, "overlap_px": overlap, "turn": turn, "windows": record.windows,
                "windows_without_overlap": (-(-side // PATCH_PX)) ** 2, "patches": model.patches, "whole_s": whole,
                "forward_s": model.seconds, "processor_s": used, "patches_per_s": model.patches / whole,
                "whole_over_forward": whole / model.seconds,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def train(folder: Path) -> None:
    """Train the head in a workspace."""
    workspace = ("--workspace", folder)
    run_pathseg("extract", "--dataset", "synthetic", "--model", "mini", "--resize", 256, "--limit", 3, "--blocks", "4",
                "--layout", "native", *workspace)  # fmt: skip
    run_pathseg("train-head", "--blocks", "4", "--head", "linear", "--epochs", 1, "--lr", "1e-2", "--name", "head",
                *workspace)  # fmt: skip


def peak_memory(folder: Path, sides: Sequence[int]) -> list[dict[str, object]]:
    """Return a row for each side of a slide."""
    rows: list[dict[str, object]] = []
    for side in sides:
        slide = folder / f"slide-{side}.tif"
        draw_slide(slide, side)
        peak = run_pathseg("predict", slide, "--run", "head", "--out", folder / "out", "--format",
                           "mask,overlay,geojson,probabilities", "--workspace", folder)  # fmt: skip
        record = json.loads((folder / "out" / "_done" / f"{slide.stem}.json").read_text())
        windows = [record["windows"], record["windows_in_all"]]
        rows.append({"side_px": side, "peak_mb": round(peak), "windows": windows})
        print(f"{side} x {side} px: peak memory {peak:.0f} MB, {windows[0]} of {windows[1]} windows")
    return rows


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="memory,windows", help="a comma list")
    parser.add_argument("--sides", default="5000,50000", help="px, a comma list")
    parser.add_argument("--region", type=int, default=1344, help="side of the slide that windows are timed on, px")
    parser.add_argument("--overlaps", default="16,64", help="px, a comma list")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "predict.json")
    arguments = parser.parse_args()
    machine, wanted = describe_machine(Path(tempfile.gettempdir())), arguments.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder)
        if "memory" in wanted:
            rows = peak_memory(folder, [int(side) for side in arguments.sides.split(",")])
            save_rows(arguments.out, "memory", rows, machine=machine)
        if "windows" in wanted:
            overlaps = [int(overlap) for overlap in arguments.overlaps.split(",")]
            rows = time_windows(folder, arguments.region, overlaps, arguments.turns)
            save_rows(arguments.out, "windows", rows, machine=machine)


if __name__ == "__main__":
    main()
