"""How fast the feature store is, against raw file I/O of the same bytes and against the forward passes alone.

    python benchmarks/store.py [--only io,extract,memory,resume] [--folder DIR] [--out benchmarks/results/store.json]

io       Write and read all 13 blocks of an image through StoreWriter and FeatureStore, and as plain files with the same
         bytes. They take turns; the median of the ratios counts, `best` sets the fastest turns against each other. The
         operating system's cache is warm, nothing but the store's completion record is flushed. Values are normal,
         float16, native layout.
extract  Stage one of the bundled model on 512 px PNG files, against its forward passes on images in memory.
memory   Peak memory of stage one for 10 and for 1,000 images (a model that costs nothing, the blocks of `mini`).
resume   Finding that nothing is left to do in a store of 10,000 units (tiny arrays, libraries already imported).

Aims: reading at 80 % of raw, writing at 70 %; 1.05 times the forward passes; the same memory; under 2 s.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from free import FULL, TINY, FreeModel, blank_dataset
from machine import machine, peak_bytes, seconds
from PIL import Image
from random_store import random_contents

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset, DatasetOptions, open_dataset
from pathseg.extract.models.load import load_model
from pathseg.extract.pipeline import contents_of, extract, prepare_store, unfinished_images, wanted_blocks
from pathseg.extract.unit import compute_unit, load_unit
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import format_bytes
from pathseg.store.writer import StoreWriter

TURNS = 6  # store and raw, one after the other
IO_IMAGES = 4  # images of a store that io reads and writes


def raw_write(folder: Path, maps: dict[int, np.ndarray], images: int) -> None:
    """The blocks of a unit as plain files."""
    for block, values in maps.items():
        with (folder / f"{block}.raw").open("wb", buffering=0) as file:
            for _ in range(images):
                file.write(values)


def raw_read(folder: Path, maps: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The first image of each file, all of them in memory at the end."""
    return {b: np.fromfile(folder / f"{b}.raw", values.dtype, values.size) for b, values in maps.items()}


def io_case(folder: Path, blocks: dict[int, tuple[int, int]], packing: str, per_unit: int) -> dict[str, object]:
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
        for b in blocks:  # a fresh place each time, for both
            shutil.rmtree(folder / f"io.zarr/t50/block{b:02d}/c", ignore_errors=True)
            (raw / f"{b}.raw").unlink(missing_ok=True)
        times["write"].append(seconds(lambda unit=unit: writer.write_features(unit, t=50, features=unit_maps)))
        times["raw_write"].append(seconds(lambda: raw_write(raw, maps, per_unit)))
        store = FeatureStore.open(folder / "io.zarr")
        index = unit * per_unit
        store.read(index, t=50)  # opens the arrays, as the first read of a training run does
        times["read"].append(seconds(lambda store=store, index=index: store.read(index, t=50)))
        times["raw_read"].append(seconds(lambda: raw_read(raw, maps)))
    size_bytes = sum(values.nbytes for values in maps.values())
    on_disk = sum(path.stat().st_size for path in (folder / "io.zarr/t50").rglob("c/*/*/*/*/*"))
    shutil.rmtree(folder / "io.zarr")
    shutil.rmtree(raw)
    median = {name: statistics.median(values) for name, values in times.items()}
    rates = {}
    for way, count in (("read", 1), ("write", per_unit)):
        store, plain = times[way], times[f"raw_{way}"]
        rates |= {
            f"{way}_mb_s": size_bytes * count / median[way] / 1e6,
            f"raw_{way}_mb_s": size_bytes * count / median[f"raw_{way}"] / 1e6,
            f"{way}_ratio": statistics.median(r / s for s, r in zip(store, plain, strict=True)),
            f"{way}_ratio_of_best": min(plain) / min(store),  # what another user of the machine disturbs least
        }
    kept = on_disk / (size_bytes * per_unit)
    return {"image_bytes": size_bytes, "packing": packing, "images_per_unit": per_unit, "kept": kept, **rates}


def text(row: dict[str, float]) -> str:
    ways = (
        f"{way} {row[f'{way}_mb_s']:5.0f} MB/s = {row[f'{way}_ratio']:.2f} of raw "
        f"(best {row[f'{way}_ratio_of_best']:.2f})"
        for way in ("read", "write")
    )
    return f"kept {row['kept']:.2f}  " + "  ".join(ways)


def measure_io(folder: Path) -> list[dict[str, object]]:
    mini = load_model("mini", condition="none").blocks
    rows = []
    for name, blocks in (("full", FULL), ("mini", mini)):
        for packing, per_unit in (("none", 1), ("none", IO_IMAGES), ("lossless", 1), ("rounded", 1)):
            row = {"blocks": name, **io_case(folder, blocks, packing, per_unit)}
            rows.append(row)
            print(
                f"  {name} {format_bytes(row['image_bytes']):>8} an image, {packing:>8}, {per_unit} a unit: {text(row)}"
            )
    return rows


def picture_folder(folder: Path, images: int) -> Dataset:
    """Generated tissue as PNG files, to be decoded as one's own images are; drawing it takes longer than the model."""
    drawn = open_dataset("synthetic", DatasetOptions(limit=images))
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for sample in drawn.samples:
        pixels = drawn.load(sample)
        Image.fromarray(pixels.image).save(folder / "images" / f"{sample.id}.png")
        Image.fromarray(pixels.mask).save(folder / "masks" / f"{sample.id}.png")
    return open_dataset("folder", DatasetOptions(root=folder))


def measure_extract(folder: Path, images: int = 8, turns: int = 2) -> list[dict[str, object]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dataset, model = picture_folder(folder / "tissue", images), load_model("mini", device=device)
    rows = []
    for layout in ("native", "grid"):
        config, whole, forward = ExtractConfig(layout=layout), [], []
        for turn in range(turns + 1):  # the first warms up
            writer = prepare_store(folder / f"{layout}{turn}.zarr", dataset, model, config)
            lacking = {50: wanted_blocks(model, config)}
            loaded = [load_unit(writer, dataset, unit, lacking) for unit in range(images)]
            grid, ids = writer.store.contents.grid, writer.store.ids

            def passes(loaded=loaded, grid=grid, ids=ids, config=config):
                for unit in loaded:
                    compute_unit(model, unit, [ids[unit.unit]], grid, config)

            forward.append(seconds(passes))
            whole.append(seconds(lambda writer=writer, config=config: extract(writer, dataset, model, config)))
            shutil.rmtree(folder / f"{layout}{turn}.zarr")
        ratio = statistics.median(w / f for w, f in zip(whole[1:], forward[1:], strict=True))
        row = {"layout": layout, "images": images, "threads": torch.get_num_threads()}
        row |= {"seconds": statistics.median(whole[1:]), "forward_s": statistics.median(forward[1:]), "ratio": ratio}
        rows.append(row)
        print(
            f"  {layout}: {row['seconds']:.2f} s for {images} images, forward passes alone {row['forward_s']:.2f} s, "
            f"ratio {ratio:.3f}"
        )
    return rows


def run_free(folder: Path, images: int) -> None:
    """Stage one of a model that costs nothing, in this process."""
    dataset, config = blank_dataset(images, (256, 256)), ExtractConfig(layout="native")
    model = FreeModel(load_model("mini", condition="none").blocks)
    extract(prepare_store(folder / "free.zarr", dataset, model, config), dataset, model, config)


def measure_memory(folder: Path) -> list[dict[str, object]]:
    rows = []
    for images in (10, 1000):
        place = folder / str(images)
        place.mkdir()
        command = [sys.executable, __file__, "--free", str(images), "--folder", str(place)]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        written = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        rows.append({"images": images, "peak_bytes": peak, "written_bytes": written})
        print(f"  {images:>5} images, {format_bytes(written)} written: peak memory {format_bytes(peak)}")
        shutil.rmtree(place)
    return rows


def measure_resume(folder: Path, units: int = 10_000) -> list[dict[str, object]]:
    dataset, model, config = blank_dataset(units, (256, 256)), FreeModel(TINY), ExtractConfig(layout="native")
    path = folder / "many.zarr"
    fill = seconds(lambda: extract(prepare_store(path, dataset, model, config), dataset, model, config))

    def resume() -> None:
        writer = prepare_store(path, dataset, model, config)
        if unfinished_images(writer, wanted_blocks(model, config), config):
            raise AssertionError("the store is not finished")
        extract(writer, dataset, model, config)

    again = [seconds(resume) for _ in range(3)]
    opening = seconds(lambda: StoreWriter(path, contents_of(dataset, model, config)))
    row = {
        "units": units,
        "resume_s": statistics.median(again),
        "open_s": opening,
        "fill_ms_per_unit": fill / units * 1e3,
    }
    print(
        f"  {units} units: nothing left to do after {row['resume_s']:.2f} s (opening {opening:.2f} s); "
        f"filling took {row['fill_ms_per_unit']:.1f} ms a unit"
    )
    shutil.rmtree(path)
    return [row]


PARTS = {"io": measure_io, "extract": measure_extract, "memory": measure_memory, "resume": measure_resume}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="comma list of what to measure")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure, with 2 GB free"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/store.json")
    parser.add_argument("--free", type=int, help=argparse.SUPPRESS)  # one run of `memory`, in its own process
    arguments = parser.parse_args()
    if arguments.free:
        run_free(arguments.folder, arguments.free)
        print(peak_bytes())
        return
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.only.split(","):
            print(name)
            about = machine(Path(folder))
            result[name] = {"machine": about, "rows": PARTS[name](Path(folder))}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
