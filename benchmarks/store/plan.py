"""Cost of a million patches and more: time and memory of driver and scheduler, bytes, files and GPU hours.

    python -m benchmarks.store.plan [--patches 1000000,10000000,100000000] [--per-gpu RATE] [--out FILE]

Simulated: the model (it computes nothing), the features (tensors of a few bytes) and, for the driver and the resume,
the store, of which only the completion records exist, as empty files with their real names. Measured: listing the
records and checking each unit (of the first number of --patches), the pipeline with its threads and queues and the
store's writer on `--units` units, and Dask's scheduler with one worker process where `distributed` is installed.
Computed: bytes and files; GPU hours and the rate of writing from --per-gpu, patches a second of the model on one GPU,
which `pathseg extract --limit` and `benchmarks.gpu` measure. Without it the table has neither.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

from benchmarks.constant_model import FULL_SIZE, TINY, ConstantModel, blank_dataset
from benchmarks.machine import RESULTS, describe_machine
from pathseg.extract.config import ExtractConfig
from pathseg.extract.pipeline import open_extraction, run_extraction
from pathseg.extract.plan import contents_of
from pathseg.extract.unit import missing_work
from pathseg.store.blocks import format_blocks
from pathseg.store.format.arrays import CHUNK_BYTES
from pathseg.store.format.packing import PACKINGS
from pathseg.store.format.size import BlockShape, format_bytes, patch_bytes
from pathseg.store.records import PIXELS, ArraySet
from pathseg.store.writer import StoreWriter

SIZE = (768, 768)  # px of an image: 9 patches, as in the paper
PATCHES = 9
STORED = ("none", "int8")  # packings whose size is exact
WINDOW = 1000  # units in flight, as in `extract --workers`
BLOCK_SETS = (tuple(FULL_SIZE), (4, 5, 6), (9, 10, 11, 12))  # all; the paper's best three; the finest


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def finished_store(folder: Path, units: int, per_unit: int) -> Path:
    """Make a store with empty completion records of every unit and array metadata without chunks; return its path."""
    dataset, config = blank_dataset(units * per_unit, SIZE), ExtractConfig(layout="native")
    contents = replace(contents_of(dataset, ConstantModel(TINY), config), images_per_unit=per_unit)
    writer = StoreWriter(folder / "plan.zarr", contents)
    writer.add_arrays([50], TINY)
    for arrays in (PIXELS, ArraySet(50, tuple(sorted(TINY)))):
        names = [arrays.record_file(unit) for unit in range(units)]
        (folder / "plan.zarr" / names[0]).parent.mkdir(parents=True)
        for name in names:
            (folder / "plan.zarr" / name).touch()
    return folder / "plan.zarr"


def measure_resume(folder: Path, patches: int, per_unit: int) -> dict[str, float]:
    """Measure opening a complete store of `patches` patches and checking each unit."""
    images = -(-patches // PATCHES)
    units = -(-images // per_unit)
    path = finished_store(folder, units, per_unit)
    dataset, model, config = blank_dataset(units * per_unit, SIZE), ConstantModel(TINY), ExtractConfig(layout="native")
    contents = replace(contents_of(dataset, model, config), images_per_unit=per_unit)
    before, start = resident_bytes(), time.perf_counter()
    writer = StoreWriter(path, contents)
    opened = time.perf_counter() - start
    if any(missing_work(writer.store, unit, config.t, TINY) for unit in range(units)):
        raise AssertionError("the store is not complete")
    total = time.perf_counter() - start
    return {
        "images_per_unit": per_unit,
        "units": units,
        "open_s": opened,
        "resume_s": total,
        "driver_bytes": max(resident_bytes() - before, 0),
    }


def measure_pipeline(folder: Path, units: int) -> dict[str, float]:
    """Measure seconds per unit of the pipeline with a model that computes nothing and tiny arrays."""
    dataset, model, config = blank_dataset(units, (256, 256)), ConstantModel(TINY), ExtractConfig(layout="native")
    extraction = open_extraction(dataset, model, folder / "overhead.zarr", config)
    start = time.perf_counter()
    run_extraction(extraction)
    return {"units": units, "seconds_a_unit": (time.perf_counter() - start) / units}


def measure_dask(units: int) -> dict[str, float] | None:
    """Measure seconds per task of futures that do nothing, WINDOW in flight; None without `distributed`."""
    try:
        from distributed import Client, LocalCluster, as_completed
    except ImportError:
        return None
    before = resident_bytes()
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        start, numbers = time.perf_counter(), iter(range(units))
        running = as_completed([client.submit(int, n, pure=False) for n in islice(numbers, WINDOW)])
        for done in running:
            done.release()
            for n in islice(numbers, 1):
                running.add(client.submit(int, n, pure=False))
        elapsed = time.perf_counter() - start
    return {"tasks": units, "seconds_a_task": elapsed / units, "driver_bytes": max(resident_bytes() - before, 0)}


def count_files(blocks: tuple[int, ...], layout: str, packing: str, patches: int, per_unit: int) -> int:
    """Count the files of a store: chunks or shards of features, scales, images and masks, and two records a unit."""
    images = -(-patches // PATCHES)
    units = -(-images // per_unit)
    shapes = [(PATCHES, *BlockShape(*FULL_SIZE[b]).stored(layout)) for b in blocks]
    arrays = [array for shape in shapes for array in PACKINGS[packing].arrays("", shape, "float16")]
    if per_unit > 1:
        return units * (len(arrays) + 4)
    return units * (sum(1 if array.image_bytes <= CHUNK_BYTES else PATCHES for array in arrays) + 4)


def compute_costs(patches: int, per_gpu: float | None, per_unit: int) -> list[dict[str, object]]:
    """Return a row per packing, set of blocks and layout. GPU hours are those of all blocks, None without per_gpu."""
    rows = []
    for packing, blocks, layout in product(STORED, BLOCK_SETS, ("native", "grid", "image")):
        shapes = {b: BlockShape(*FULL_SIZE[b]) for b in blocks}
        sizes = patch_bytes(shapes, layout=layout, dtype="float16", packing=packing, patches_per_image=PATCHES)
        size_bytes = sum(sizes.values()) * patches
        rows.append(
            {
                "patches": patches,
                "packing": packing,
                "blocks": format_blocks(blocks),
                "layout": layout,
                "bytes": size_bytes,
                "files": count_files(blocks, layout, packing, patches, 1),
                "files_in_shards": count_files(blocks, layout, packing, patches, per_unit),
                "gpu_hours": None if per_gpu is None else patches / per_gpu / 3600,
                "write_mb_s_per_gpu": None if per_gpu is None else size_bytes / patches * per_gpu / 1e6,
            }
        )
    return rows


def as_markdown(result: dict) -> str:
    """Format the result as Markdown."""
    arguments, per_gpu = result["arguments"], result["arguments"]["per_gpu"]
    lines = [
        "# Millions of patches",
        "",
        f"Float16 or int8, one timestep, images of {SIZE[1]}x{SIZE[0]} px, shards of {arguments['per_unit']} images. "
        + (f"{per_gpu:g} patches a second and GPU, as given." if per_gpu else "No GPU hours: no rate was given."),
    ]
    for patches in arguments["patches"]:
        own = [row for row in result["costs"] if row["patches"] == patches]
        lines += ["", f"## {patches:,} patches" + (f", {own[0]['gpu_hours']:,.1f} GPU hours" if per_gpu else ""), ""]
        lines += ["| packing | blocks | layout | bytes | files | files in shards |" + " MB/s a GPU |" * bool(per_gpu)]
        lines += ["|---" * (7 if per_gpu else 6) + "|"]
        lines += [
            f"| {row['packing']} | {row['blocks']} | {row['layout']} | {format_bytes(row['bytes'])} | "
            f"{row['files']:,} | {row['files_in_shards']:,} |"
            + (f" {row['write_mb_s_per_gpu']:,.0f} |" if per_gpu else "")
            for row in own
        ]
    lines += ["", f"## Driver, {arguments['patches'][0]:,} patches"]
    lines += ["", "| images a unit | units | opening | resume | driver memory |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['images_per_unit']} | {row['units']:,} | {row['open_s']:.2f} s | {row['resume_s']:.2f} s | "
        f"{format_bytes(row['driver_bytes'])} |"
        for row in result["resume"]
    ]
    pipeline, dask = result["overhead"], result["dask"]
    lines += ["", f"In one process, {pipeline['seconds_a_unit'] * 1e3:.1f} ms a unit without model and data."]
    if dask:
        lines.append(
            f"Dask: {dask['seconds_a_task'] * 1e3:.2f} ms a task over {dask['tasks']:,} tasks, {WINDOW} in flight; the "
            f"driver grew by {format_bytes(dask['driver_bytes'])}, scheduler included."
        )
    machine = result["machine"]
    lines += ["", f"Measured on {machine['cores']} cores of {machine['cpu']}, load {machine['load_at_start']}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, compute and write the JSON and Markdown files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", default="1000000,10000000,100000000", help="the driver is measured on the first")
    parser.add_argument("--per-gpu", type=float, help="patches a second and GPU, as measured; without it no GPU hours")
    parser.add_argument("--per-unit", type=int, default=8, help="images that share a shard")
    parser.add_argument("--units", type=int, default=2000, help="units, and Dask tasks, to measure on")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="needs 250,000 free inodes")
    parser.add_argument("--out", type=Path, default=RESULTS / "plan", help="without a suffix")
    arguments = parser.parse_args()
    patches = list(map(int, arguments.patches.split(",")))
    result: dict = {"arguments": {n: getattr(arguments, n) for n in ("per_gpu", "per_unit", "units")}}
    result["arguments"]["patches"] = patches
    result["machine"] = describe_machine(arguments.folder)
    result["dask"] = measure_dask(arguments.units)  # first, so that the driver's growth is due to Dask alone
    result["resume"] = []
    for per_unit in (1, arguments.per_unit):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            result["resume"].append(measure_resume(Path(folder), patches[0], per_unit))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result["overhead"] = measure_pipeline(Path(folder), arguments.units)
    result["costs"] = [
        row for number in patches for row in compute_costs(number, arguments.per_gpu, arguments.per_unit)
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    text = as_markdown(result)
    arguments.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
