"""Speed and memory of the feature store, against raw file I/O of the same bytes and against the forward passes alone.

    python -m benchmarks.store.store [--only io,extract,memory,resume] [--folder DIR] [--out FILE]

io       Write and read all 13 blocks of an image through StoreWriter and FeatureStore, and as plain files with the same
         bytes, in alternating turns. Ratios are medians over the turns; `best` compares the fastest turns. The page
         cache is warm, and only the store's completion record is flushed to disk. Values are normal, float16, native
         layout.
extract  `extract` with the bundled model on 512 px PNG files, against its forward passes on images in memory: in
         seconds, and in seconds of the processor, which other work on the machine hardly changes where threads do not
         spin while they wait (OMP_WAIT_POLICY=passive).
memory   Peak memory of `extract` for 10 and for 1,000 images (a model that computes nothing, the blocks of `mini`).
resume   Time to find that a store of 10,000 units is complete (tiny arrays, libraries already imported).

Targets: reading at 80 % of raw, writing at 70 %; 1.05 times the forward passes; the same memory; under 2 s.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.constant_model import FULL_SIZE, TINY, ConstantModel, blank_dataset
from benchmarks.machine import (
    RESULTS,
    describe_machine,
    median_ratio,
    module_command,
    peak_bytes,
    save_rows,
    seconds,
)
from benchmarks.store.random_store import random_contents
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset, DatasetOptions, open_dataset
from pathseg.extract.models.load import load_model
from pathseg.extract.pipeline import extract, open_extraction, run_extraction
from pathseg.extract.plan import contents_of
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import format_bytes
from pathseg.store.writer import StoreWriter

TURNS = 6  # of the store and of raw files, alternating
IO_IMAGES = 4  # images of a store that `io` reads and writes


def write_raw(folder: Path, maps: dict[int, np.ndarray], images: int) -> None:
    """Write the blocks of a unit as plain files."""
    for block, values in maps.items():
        with (folder / f"{block}.raw").open("wb", buffering=0) as file:
            for _ in range(images):
                file.write(values)


def read_raw(folder: Path, maps: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Read the first image of each plain file into memory."""
    return {b: np.fromfile(folder / f"{b}.raw", values.dtype, values.size) for b, values in maps.items()}


def time_io(folder: Path, blocks: dict[int, tuple[int, int]], packing: str, per_unit: int) -> dict[str, object]:
    """Measure writing and reading of one unit, `per_unit` images, through the store and as plain files."""
    rng = np.random.default_rng(0)
    maps = {b: rng.standard_normal((9, c, s, s), np.float32).astype(np.float16) for b, (c, s) in blocks.items()}
    contents = random_contents(["train"] * IO_IMAGES, blocks=blocks, packing=packing, images_per_unit=per_unit)
    writer = StoreWriter(folder / "io.zarr", contents)
    writer.add_arrays([50], blocks)
    raw, times = folder / "raw", {name: [] for name in ("write", "raw_write", "read", "raw_read")}
    raw.mkdir()
    unit_maps = [(b, [values] * per_unit) for b, values in maps.items()]
    for turn in range(TURNS):
        unit = turn % writer.store.contents.units
        for b in blocks:  # both write new files in every turn
            shutil.rmtree(folder / f"io.zarr/t50/block{b:02d}/c", ignore_errors=True)
            (raw / f"{b}.raw").unlink(missing_ok=True)
        times["write"].append(seconds(lambda unit=unit: writer.write_features(unit, t=50, features=unit_maps)))
        times["raw_write"].append(seconds(lambda: write_raw(raw, maps, per_unit)))
        store = FeatureStore.open(folder / "io.zarr")
        index = unit * per_unit
        store.read(index, t=50)  # opens the arrays, as the first read of a training run does
        times["read"].append(seconds(lambda store=store, index=index: store.read(index, t=50)))
        times["raw_read"].append(seconds(lambda: read_raw(raw, maps)))
    size_bytes = sum(values.nbytes for values in maps.values())
    bytes_on_disk = sum(path.stat().st_size for path in (folder / "io.zarr/t50").rglob("c/*/*/*/*/*"))
    shutil.rmtree(folder / "io.zarr")
    shutil.rmtree(raw)
    rates = {}
    for name, count in (("read", 1), ("write", per_unit)):
        store_times, raw_times = times[name], times[f"raw_{name}"]
        rates |= {
            f"{name}_mb_s": size_bytes * count / statistics.median(store_times) / 1e6,
            f"raw_{name}_mb_s": size_bytes * count / statistics.median(raw_times) / 1e6,
            f"{name}_ratio": median_ratio(raw_times, store_times),
            f"{name}_ratio_of_best": min(raw_times) / min(store_times),  # least disturbed by other processes
        }
    kept = bytes_on_disk / (size_bytes * per_unit)
    return {"image_bytes": size_bytes, "packing": packing, "images_per_unit": per_unit, "kept": kept, **rates}


def io_text(row: dict[str, float]) -> str:
    """Format the rates of one row of `io`."""
    rates = (
        f"{name} {row[f'{name}_mb_s']:5.0f} MB/s = {row[f'{name}_ratio']:.2f} of raw "
        f"(best {row[f'{name}_ratio_of_best']:.2f})"
        for name in ("read", "write")
    )
    return f"{row['kept']:.2f} of the bytes  " + "  ".join(rates)


def measure_io(folder: Path) -> list[dict[str, object]]:
    """Measure I/O for the blocks of both models, each packing and several images per unit."""
    mini = load_model("mini", condition="none").blocks
    rows = []
    for name, blocks in (("full", FULL_SIZE), ("mini", mini)):
        for packing, per_unit in (("none", 1), ("none", IO_IMAGES), ("lossless", 1), ("rounded", 1)):
            row = {"blocks": name, **time_io(folder, blocks, packing, per_unit)}
            rows.append(row)
            size = format_bytes(row["image_bytes"])
            print(f"  {name} {size:>8} an image, {packing:>8}, {per_unit} a unit: {io_text(row)}")
    return rows


def write_png_dataset(folder: Path, images: int, side: int | None = None) -> Dataset:
    """Write generated tissue as PNG files and open them as `--dataset folder`: decoding is cheaper than drawing.

    side: of the images in px, by default that of generated tissue.
    """
    drawn = open_dataset("synthetic", DatasetOptions(limit=images, resize=side))
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for sample in drawn.samples:
        pixels = drawn.load(sample)
        Image.fromarray(pixels.image).save(folder / "images" / f"{sample.id}.png")
        Image.fromarray(pixels.mask).save(folder / "masks" / f"{sample.id}.png")
    return open_dataset("folder", DatasetOptions(root=folder))


def measure_extract(folder: Path, images: int = 8, turns: int = 2) -> list[dict[str, object]]:
    """Measure a whole extraction with `mini` against its forward passes alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dataset, model = write_png_dataset(folder / "tissue", images), load_model("mini", device=device)
    rows = []
    for layout in ("native", "grid"):
        config, whole, forward = ExtractConfig(layout=layout), list[float](), list[float]()
        whole_cpu, forward_cpu = list[float](), list[float]()
        for turn in range(turns + 1):  # the first warms up
            extraction = open_extraction(dataset, model, folder / f"{layout}{turn}.zarr", config)
            loaded = [extraction.load(unit) for unit in range(images)]

            def passes(loaded=loaded, extraction=extraction):
                for unit in loaded:
                    extraction.compute(unit)

            for call, times, cpu_times in (
                (passes, forward, forward_cpu),
                (partial(run_extraction, extraction), whole, whole_cpu),
            ):
                cpu = time.process_time()
                times.append(seconds(call))
                cpu_times.append(time.process_time() - cpu)
            shutil.rmtree(folder / f"{layout}{turn}.zarr")
        ratio = median_ratio(whole[1:], forward[1:])
        row = {"layout": layout, "images": images, "threads": torch.get_num_threads()}
        row |= {"seconds": statistics.median(whole[1:]), "forward_s": statistics.median(forward[1:]), "ratio": ratio}
        row["processor_ratio"] = median_ratio(whole_cpu[1:], forward_cpu[1:])
        rows.append(row)
        print(
            f"  {layout}: {row['seconds']:.2f} s for {images} images, forward passes alone {row['forward_s']:.2f} s, "
            f"ratio {ratio:.3f}, of processor time {row['processor_ratio']:.3f}"
        )
    return rows


def extract_constant(folder: Path, images: int) -> None:
    """Extract features of the constant model, in this process."""
    dataset, config = blank_dataset(images, (256, 256)), ExtractConfig(layout="native")
    model = ConstantModel(load_model("mini", condition="none").blocks)
    extract(dataset, model, folder / "constant.zarr", config)


def measure_memory(folder: Path) -> list[dict[str, object]]:
    """Measure the peak memory of `extract` in a process of its own, for few and for many images."""
    rows = []
    for images in (10, 1000):
        subfolder = folder / str(images)
        subfolder.mkdir()
        command = module_command("benchmarks.store.store", "--extract-images", images, "--folder", subfolder)
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        written = sum(path.stat().st_size for path in subfolder.rglob("*") if path.is_file())
        rows.append({"images": images, "peak_bytes": peak, "written_bytes": written})
        print(f"  {images:>5} images, {format_bytes(written)} written: peak memory {format_bytes(peak)}")
        shutil.rmtree(subfolder)
    return rows


def measure_resume(folder: Path, units: int = 10_000) -> list[dict[str, object]]:
    """Measure a second run of `extract` on a complete store."""
    dataset, model, config = blank_dataset(units, (256, 256)), ConstantModel(TINY), ExtractConfig(layout="native")
    path = folder / "many.zarr"
    fill = seconds(lambda: extract(dataset, model, path, config))

    def resume() -> None:
        if extract(dataset, model, path, config).computed:
            raise AssertionError("the store was not complete")

    times = [seconds(resume) for _ in range(3)]
    opening = seconds(lambda: StoreWriter(path, contents_of(dataset, model, config)))
    row = {
        "units": units,
        "resume_s": statistics.median(times),
        "open_s": opening,
        "fill_ms_per_unit": fill / units * 1e3,
    }
    print(
        f"  {units} units: complete after {row['resume_s']:.2f} s (opening {opening:.2f} s); "
        f"filling took {row['fill_ms_per_unit']:.1f} ms a unit"
    )
    shutil.rmtree(path)
    return [row]


SECTIONS = {"io": measure_io, "extract": measure_extract, "memory": measure_memory, "resume": measure_resume}


def main() -> None:
    """Run the chosen sections, or one extraction for `memory`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma list of what to measure")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure, with 2 GB free"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "store.json")
    parser.add_argument("--extract-images", type=int, help=argparse.SUPPRESS)  # one run of `memory`
    arguments = parser.parse_args()
    if arguments.extract_images:
        extract_constant(arguments.folder, arguments.extract_images)
        print(peak_bytes())
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.only.split(","):
            print(name)
            machine = describe_machine(Path(folder))
            save_rows(arguments.out, name, SECTIONS[name](Path(folder)), machine=machine)


if __name__ == "__main__":
    main()
