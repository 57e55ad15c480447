"""What each packing costs: the error of stored features, and the time until a head has them as float32.

    python -m benchmarks.store.packings [--only error,time,codec] [--images DIR] [--folder DIR] [--turns 6] [--out FILE]

error  Features of the first two 256 px patches of each of three images in DIR (generated tissue without it), `mini`,
       by block: root mean square of the error over that of the values, after what `Packing.encode` stores.
time   All 13 blocks of four images of 768 px with the shapes of the paper's model, random values, warm page cache: read
       from the store, decoded, checked, and brought to float32, in alternating turns; seconds that pass, and seconds of
       all cores, relative to `--packing none`, which reads float16.
codec  The packings with a compressor, one such image, in as many threads as the store reads with: GB/s of values that
       `FeatureStore.read` and `StoreWriter.write_features` reach, and Blosc alone on the same chunks in memory, in
       alternating turns. `share` is the time of Blosc over that of the call; `share_with_bytes` that of Blosc and of
       reading or writing the compressed bytes with their CRC-32C alone, over that of the call.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import cast

import google_crc32c
import numpy as np
import torch

from benchmarks.constant_model import FULL_SIZE
from benchmarks.extract.stage_one import tissue_patches
from benchmarks.machine import RESULTS, describe_machine, median_ratio, save_rows, time_in_turn
from benchmarks.store.random_store import random_store, random_values
from pathseg.extract.datasets.image_files import list_files, read_image
from pathseg.extract.models import load_model
from pathseg.store.blocks import array_name
from pathseg.store.format.arrays import chunk_names
from pathseg.store.format.chunks import CRC_BYTES, ChunkFormat, chunk_format
from pathseg.store.format.packing import PACKINGS
from pathseg.store.format.rounding import as_stored
from pathseg.store.grid import PATCH_PX
from pathseg.store.location.local import LocalFolder
from pathseg.store.writer import StoreWriter
from pathseg.train.config import Layer
from pathseg.train.data.reader import FeatureReader

IMAGES = 4  # of which the first is not read ahead
Rows = list[dict[str, object]]


def patches_of(folder: Path | None) -> list[np.ndarray]:
    """Return two patches (2, 256, 256, 3) uint8 of each of three images."""
    if folder is None:
        return list(tissue_patches(6).reshape(3, 2, PATCH_PX, PATCH_PX, 3))
    files = [path for path in list_files(folder) if not path.stem.endswith("_anno")][:3]
    images = [read_image(path)[:PATCH_PX, : 2 * PATCH_PX] for path in files]
    return [np.stack([image[:, :PATCH_PX], image[:, PATCH_PX:]]) for image in images]


def measure_error(folder: Path | None) -> Rows:
    """Return the relative error of each block for every packing that rounds; of `none` that of float16."""
    model, rows = load_model("mini"), []
    images = [model.features(patches, t=50) for patches in patches_of(folder)]
    for name, packing in PACKINGS.items():
        by_block = {}
        for block in model.blocks:
            errors = []
            for maps in images:
                values = maps[block]
                found = as_stored(values if packing.scaled else values.half(), packing).float()
                errors.append(float((found - values).norm() / values.norm()))
            by_block[str(block)] = round(statistics.fmean(errors), 5)
        rows.append({"packing": name, "relative_error": by_block})
        print(f"  {name:>8}: relative error {min(by_block.values()):.4f} to {max(by_block.values()):.4f}", flush=True)
    return rows


def measure_time(parent: Path, turns: int) -> Rows:
    """Return milliseconds an image, bytes an image and the ratio to `none` for every packing."""
    layers = [Layer(0, 50, block) for block in FULL_SIZE]
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        readers = {
            name: FeatureReader(
                random_store(f"{folder}/{name}.zarr", ["train"] * IMAGES, packing=name), layers,
                device=torch.device("cpu"), memory_bytes=0,
            )
            for name in PACKINGS
        }  # fmt: skip
        floats: dict[Layer, torch.Tensor] = {}

        def epoch(name: str) -> tuple[float, float]:
            started = time.perf_counter(), time.process_time()
            for batch in readers[name].batches(range(IMAGES), 1):
                for layer, maps in batch.features.items():
                    if maps.dtype != torch.float32:
                        floats.setdefault(layer, torch.empty(maps.shape)).copy_(maps)
            return time.perf_counter() - started[0], time.process_time() - started[1]

        times: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        for turn in range(turns + 1):
            for name, own in times.items():
                taken = epoch(name)
                own += [taken] * bool(turn)  # the first warms up
        stored = {name: sum(f.stat().st_size for f in Path(folder, f"{name}.zarr", "t50").rglob("*")) for name in times}
    rows: Rows = []
    for name, own in times.items():
        passed, all_cores = (
            median_ratio(*([pair[kind] for pair in turns_of] for turns_of in (own, times["none"]))) for kind in (0, 1)
        )
        rows.append({
            "packing": name, "ms_an_image": min(own)[0] * 1000 / IMAGES, "bytes_an_image": stored[name] // IMAGES,
            "times_none": passed, "times_none_cpu": all_cores,
        })  # fmt: skip
        print(f"  {name:>8}: {min(own)[0] * 1000 / IMAGES:.0f} ms an image, {passed:.2f} of none (all cores: "
              f"{all_cores:.2f}), {stored[name] / stored['none']:.2f} of the bytes", flush=True)  # fmt: skip
    return rows


def measure_codec(parent: Path, turns: int) -> Rows:
    """Return a row for reading and one for writing, for each packing with a compressor."""
    compressed = [name for name, packing in PACKINGS.items() if packing.compressor is not None]
    return [row for packing in compressed for row in _codec_rows(packing, parent, turns)]


def _codec_rows(packing: str, parent: Path, turns: int) -> Rows:
    with tempfile.TemporaryDirectory(dir=parent) as folder, ThreadPoolExecutor(LocalFolder.concurrency) as threads:
        store = random_store(f"{folder}/{packing}.zarr", ["train"], packing=packing)
        location, writer = store.location, StoreWriter(store.location, store.contents)
        given = random_values(store.contents)
        writer.write_features(0, t=50, features=((block, [given[block]]) for block in given))
        arrays = {block: store.array(array_name(50, block)) for block in given}
        files = {block: f"{array.path}/{chunk_names(array, 0, 1)[0]}" for block, array in arrays.items()}
        coded = {block: location.read(name)[:-CRC_BYTES] for block, name in files.items()}
        codecs = {block: cast(ChunkFormat, chunk_format(array)).blosc for block, array in arrays.items()}
        values = store.read(0)  # what is coded: of `rounded` the rounded values

        def decode(block: int) -> None:
            codecs[block].decode(coded[block], out=values[block])

        def encode(block: int) -> None:
            codecs[block].encode(values[block])

        def read_bytes(block: int) -> None:
            with location.open(files[block]) as file:
                google_crc32c.value(file.read())

        def write_bytes(block: int) -> None:
            google_crc32c.value(coded[block])
            location.write(f"{files[block]}.copy", coded[block])

        times = time_in_turn({
            **{call.__name__: partial(_in_threads, threads, call, list(given))
               for call in (decode, encode, read_bytes, write_bytes)},
            "read": lambda: store.read(0, out=values),
            "write": lambda: writer.write_features(0, t=50, features=((block, [given[block]]) for block in given)),
        }, turns)  # fmt: skip
    size, rows = sum(maps.nbytes for maps in values.values()), list[dict[str, object]]()
    for name, codec in (("read", "decode"), ("write", "encode")):
        with_bytes = [sum(pair) for pair in zip(times[codec], times[f"{name}_bytes"], strict=True)]
        row = {
            "packing": packing, "call": name, "gb_s": size / min(times[name]) / 1e9,
            "codec_gb_s": size / min(times[codec]) / 1e9, "share": median_ratio(times[codec], times[name]),
            "share_with_bytes": median_ratio(with_bytes, times[name]),
        }  # fmt: skip
        rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
        print(f"  {rows[-1]}", flush=True)
    return rows


def _in_threads(threads: ThreadPoolExecutor, call: Callable[[int], None], blocks: Sequence[int]) -> None:
    list(threads.map(call, blocks))


def main() -> None:
    """Measure the chosen parts and save their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="error,time,codec")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="of the stores")
    parser.add_argument("--images", type=Path, help="folder of images; generated tissue without it")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS / "packings.json")
    arguments = parser.parse_args()
    machine, parts = describe_machine(arguments.folder), arguments.only.split(",")
    if "error" in parts:
        save_rows(arguments.out, "error", measure_error(arguments.images), machine=machine)
    if "time" in parts:
        save_rows(arguments.out, "time", measure_time(arguments.folder, arguments.turns), machine=machine)
    if "codec" in parts:
        save_rows(arguments.out, "codec", measure_codec(arguments.folder, arguments.turns), machine=machine)


if __name__ == "__main__":
    main()
