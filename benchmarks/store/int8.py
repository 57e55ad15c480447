"""Whether features stored as signed bytes serve as well as float16: their error, heads trained on them, S3.

    python -m benchmarks.store.int8 --root GLAS [--only error,dice,s3] [--release DIR] [--seeds 0,1,2,3,4] [--out FILE]

error  Features of the first two 256 px patches of each of two GlaS images, of `mini` and of a release folder (one of
       the paper's size with random weights, 2 GB, is written without it), by block: root mean square of the error
       over that of the values, with one scale a channel (as `--packing int8` has it) and with scale and offset; the
       largest value of a channel over the root mean square of the channel, the median and the largest over channels.
dice   GlaS images resized to 256 px, `mini`, all blocks, linear heads of --epochs at a rate of 1e-2 from a store of
       float16 and one of bytes, the same seeds: mean Dice on each test split, the deviation over seeds, and the mean
       difference of the two with its largest value.
s3     The shapes of the paper's model, random values, two images of 256 px on an S3 server on the same machine: seconds
       until all are read and brought to float32, bytes relative to float16, in alternating turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.constant_model import FULL_SIZE
from benchmarks.extract.full_size_release import write_release
from benchmarks.machine import RESULTS, describe_machine, median_ratio, save_rows
from benchmarks.store.packings import patches_of
from benchmarks.store.random_store import random_store
from benchmarks.store.s3_server import s3_server
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.models import load_model
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.pipeline import extract
from pathseg.store.format.packing import LARGEST, PACKINGS
from pathseg.store.format.rounding import as_stored
from pathseg.train.config import HeadConfig, Layer
from pathseg.train.data.reader import FeatureReader
from pathseg.train.training.sweep import train

BLOCKS = tuple(FULL_SIZE)
Rows = list[dict[str, object]]
STORED = ("none", "int8")


def with_offset(values: torch.Tensor) -> torch.Tensor:
    """Round values (P, C, h, w) of one image to signed bytes with a scale and an offset a channel, and back."""
    low, high = values.amin(dim=(0, 2, 3), keepdim=True), values.amax(dim=(0, 2, 3), keepdim=True)
    step = ((high - low) / (2 * LARGEST)).clamp(min=torch.finfo(torch.float32).tiny)
    return ((values - low) / step).round() * step + low


def measure_error(name: str, model: FeatureModel, folder: Path) -> Rows:
    """Return a row for each block."""
    images, rows = [model.features(patches, t=50) for patches in patches_of(folder)[:2]], []
    for block in model.blocks:
        errors, offsets, peaks = [], [], []
        for maps in images:
            values = maps[block].float()
            errors.append(float((as_stored(values, PACKINGS["int8"]) - values).norm() / values.norm()))
            offsets.append(float((with_offset(values) - values).norm() / values.norm()))
            peaks.append(values.abs().amax(dim=(0, 2, 3)) / values.square().mean(dim=(0, 2, 3)).sqrt())  # (C,)
        peak = torch.cat(peaks)
        row = {
            "model": name,
            "block": block,
            "symmetric": statistics.fmean(errors),
            "offset": statistics.fmean(offsets),
        }
        row |= {"peak_median": float(peak.median()), "peak_largest": float(peak.max())}
        rows.append({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})
        print(f"  {rows[-1]}", flush=True)
    return rows


def measure_dice(root: Path, seeds: tuple[int, ...], epochs: int) -> Rows:
    """Return a row for each test split."""
    dice: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset("glas", DatasetOptions(root=root, resize=256))
        for packing in STORED:
            config = ExtractConfig(layout="native", packing=packing)
            store = extract(dataset, load_model("mini"), f"{folder}/{packing}.zarr", config).store
            heads = [
                HeadConfig(blocks=BLOCKS, head_type="linear", lr=1e-2, epochs=epochs, seed=seed, val_fraction=0.25)
                for seed in seeds
            ]
            for run in train(store, heads, f"{folder}/{packing}").runs:
                for split, found in run.metrics.splits.items():
                    dice.setdefault(split, {}).setdefault(packing, []).append(found.scores.dice or 0.0)
    rows: Rows = []
    for split, found in dice.items():
        differences = [one - other for one, other in zip(found["int8"], found["none"], strict=True)]
        row: dict[str, object] = {"split": split, "seeds": len(seeds), "epochs": epochs}
        for packing in STORED:
            row |= {packing: statistics.fmean(found[packing]), f"{packing}_sd": statistics.stdev(found[packing])}
        row |= {"difference": statistics.fmean(differences), "largest_difference": max(map(abs, differences))}
        rows.append({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})
        print(f"  {rows[-1]}", flush=True)
    return rows


def measure_s3(turns: int) -> Rows:
    """Return a row for each packing."""
    layers, times = [Layer(0, 50, block) for block in BLOCKS], {name: list[float]() for name in STORED}
    with s3_server() as bucket:
        readers = {
            name: FeatureReader(
                random_store(f"{bucket}/{name}.zarr", ["train"] * 2, packing=name, side=256), layers,
                device=torch.device("cpu"), memory_bytes=0,
            )
            for name in STORED
        }  # fmt: skip
        for turn in range(turns + 1):
            for name, reader in readers.items():
                started = time.perf_counter()
                for batch in reader.batches(range(2), 1):
                    for maps in batch.features.values():
                        maps.float()
                times[name] += [time.perf_counter() - started] * bool(turn)  # the first warms up
        read = {name: reader.bytes_read for name, reader in readers.items()}
    rows: Rows = []
    for name in STORED:
        row = {"packing": name, "s_an_image": min(times[name]) / 2, "bytes": read[name] / read["none"]}
        rows.append(row | {"times_none": median_ratio(times[name], times["none"])})
        print(f"  {rows[-1]}", flush=True)
    return rows


def main() -> None:
    """Measure the chosen parts and save their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the GlaS images")
    parser.add_argument("--only", default="error,dice,s3")
    parser.add_argument("--release", type=Path, help="release folder of the paper's size")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--epochs", type=int, default=10, help="of dice")
    parser.add_argument("--turns", type=int, default=6, help="of s3")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8.json")
    arguments = parser.parse_args()
    machine, parts = describe_machine(Path(tempfile.gettempdir())), arguments.only.split(",")
    if "error" in parts:
        rows = measure_error("mini", load_model("mini"), arguments.root)
        with tempfile.TemporaryDirectory() as folder:
            release = arguments.release or Path(folder)
            if arguments.release is None:
                write_release(release, seed=0, ema=False)
            rows += measure_error("full size, random weights", load_model(str(release)), arguments.root)
        save_rows(arguments.out, "error", rows, machine=machine)
    if "dice" in parts:
        rows = measure_dice(arguments.root, tuple(map(int, arguments.seeds.split(","))), arguments.epochs)
        save_rows(arguments.out, "dice", rows, machine=machine)
    if "s3" in parts:
        save_rows(arguments.out, "s3", measure_s3(arguments.turns), machine=machine)


if __name__ == "__main__":
    main()
