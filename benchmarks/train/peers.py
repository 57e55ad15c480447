"""The same training epoch fed from different sources, at the paper's shapes: model online, .pt files, store, memmap.

    python -m benchmarks.train.peers [--images 6] [--release DIR] [--device cpu] [--out FILE]

online     The frozen model runs in every epoch, float32, on one image; its features go to the native head. With
           --release, a release folder of the paper's size (`benchmarks.extract.full_size_release` writes one with
           random weights).
pt         One .pt file for each patch, float16 at native resolution, read by a DataLoader, upsampled, stacked, plain
           head. Uses kaiko-eva's own writer and data set where `kaiko-eva[vision]` is installed, else files of the same
           format (`writer` records which).
pt-workers The same with one worker process per core, persistent over epochs.
store      This package: a Zarr store in native layout, `FeatureReader` with nothing kept in memory, native head.
memmap     The native float16 bytes as one raw memory-mapped file for each block, native head, no prefetching: the
           physical limit of reading without it.

Measured for each: bytes of features on disk; seconds to write an image's features, also as a share of the forward pass;
images a second into the head's input; seconds per image of an epoch (loading, forward, backward, Adam); peak memory of
that epoch's process above that after its imports (mapped files count, as far as the system holds them).

Each source runs in a process of its own: a whole pass and a step warm up, then whole passes are timed, the median of
three for loading, one for training. The files were just written, so they come from the page cache. `cold` is the first
loading pass of another process, after the system was asked to drop them from its cache (Linux), as when features exceed
memory; caches of the disk or of a host below this machine remain. Memory of `pt-workers` is that of the main process.
Loading of `pt` includes upsampling and stacking, which the native head does not need. On a CPU the online model runs on
two threads, as always. Writing of `pt` includes its masks (4 %). Values are random, 768 px images, FCN head, blocks 4-6
and all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.constant_model import FULL_SIZE
from benchmarks.machine import RESULTS, describe_machine, module_command, peak_bytes, save_rows, seconds
from benchmarks.train.heads import GRID, plain_head, stack
from benchmarks.train.peer_files import FOLDERS, Maps, PatchFiles, drop_page_cache, eva_classes, stitch_mask, write_all
from pathseg.extract.models.load import load_model
from pathseg.store.features import FeatureStore
from pathseg.train.config import Layer
from pathseg.train.data.reader import FeatureReader
from pathseg.train.heads.fcn import FCNHead

BLOCK_SETS = {"4-6": (4, 5, 6), "all": tuple(FULL_SIZE)}
SOURCES = ("online", "pt", "pt-workers", "store", "memmap")
TURNS = 3
Pass = Callable[[], Iterator[tuple[Any, torch.Tensor]]]  # yields the head's input and the mask of each image


def patch_pass(folder: Path, images: int, device: str, workers: int) -> Pass:
    """Load the patches of one image after another with a DataLoader, as the upsampled stack in float32."""
    if (classes := eva_classes()) is not None:
        data = classes[1](root=str(folder), manifest_file="manifest.csv", split="train")
        data.setup()
    else:
        data = PatchFiles(folder, images * GRID.patches)
    loader = DataLoader(data, batch_size=GRID.patches, num_workers=workers, persistent_workers=workers > 0)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for features, mask in loader:
            yield stack({b: f[None].to(device) for b, f in enumerate(features)}), stitch_mask(mask).to(device)

    return batches


def store_pass(folder: Path, blocks: tuple[int, ...], images: int, device: str) -> Pass:
    """Load images from the store, none kept in memory."""
    store = FeatureStore.open(folder)
    layers = [Layer(0, 50, block) for block in blocks]
    reader = FeatureReader(store, layers, device=torch.device(device), memory_bytes=0)

    def batches() -> Iterator[tuple[Maps, torch.Tensor]]:
        for batch in reader.batches(range(images), 1):
            yield {layer.block: m.float() for layer, m in batch.features.items()}, batch.masks.long()

    return batches


def memmap_pass(folder: Path, blocks: tuple[int, ...], images: int, device: str) -> Pass:
    """Load images from raw memory-mapped files."""
    shapes = {b: (images, GRID.patches, FULL_SIZE[b][0], *2 * FULL_SIZE[b][1:]) for b in blocks}
    maps = {b: np.memmap(folder / f"{b}", np.float16, "r", shape=shapes[b]) for b in blocks}
    masks = np.load(folder / "masks.npy", mmap_mode="r")

    def batches() -> Iterator[tuple[Maps, torch.Tensor]]:
        for index in range(images):
            floats = {b: torch.from_numpy(m[index : index + 1].astype(np.float32)) for b, m in maps.items()}
            mask = torch.from_numpy(masks[index : index + 1].astype(np.int64))
            yield {b: values.to(device) for b, values in floats.items()}, mask.to(device)

    return batches


def online_pass(release: Path, blocks: tuple[int, ...], device: str) -> Pass:
    """Compute the features of one image anew in every pass."""
    model = load_model(release, device=device)
    patches = np.random.default_rng(0).integers(0, 256, (GRID.patches, 256, 256, 3), np.uint8)
    mask = torch.zeros(1, 768, 768, dtype=torch.long, device=device)

    def batches() -> Iterator[tuple[Maps, torch.Tensor]]:
        yield {b: maps[None].clone() for b, maps in model.features(patches, t=50, blocks=blocks).items()}, mask

    return batches


def measure_source(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure seconds per image of loading and training from one source, and the peak memory."""
    source, folder, blocks, device = arguments.source, arguments.folder, BLOCK_SETS[arguments.blocks], arguments.device
    torch.manual_seed(0)
    head = FCNHead({b: FULL_SIZE[b][0] for b in blocks}, 2).to(device)
    plain, imported, images = plain_head(head), peak_bytes(), 1 if source == "online" else arguments.images
    passes = {
        "online": lambda: online_pass(arguments.release, blocks, device),
        "pt": lambda: patch_pass(folder / "pt", images, device, 0),
        "pt-workers": lambda: patch_pass(folder / "pt", images, device, os.cpu_count() or 1),
        "store": lambda: store_pass(folder / "store.zarr", blocks, images, device),
        "memmap": lambda: memmap_pass(folder / "memmap", blocks, images, device),
    }
    if arguments.cold and not drop_page_cache(folder / FOLDERS[source].split("/")[0]):
        return {"cold_load_s_per_image": None}
    batches = passes[source]()
    module = plain if source.startswith("pt") else head
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)

    def load() -> None:
        for features, _ in batches():
            del features

    def train(count: int = images) -> None:
        for features, mask in islice(batches(), count):
            scores = module(features) if module is plain else module(features, (3, 3))
            loss = torch.nn.functional.cross_entropy(scores, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    if arguments.cold:
        return {"cold_load_s_per_image": seconds(load) / images}
    load()
    train(1)
    loads = [seconds(load) / images for _ in range(1 if source == "online" else TURNS)]
    row = {"load_s_per_image": statistics.median(loads), "epoch_s_per_image": seconds(train) / images}
    return row | {"load_turns": loads, "peak_bytes": peak_bytes() - imported}


def compare_sources(name: str, folder: Path, arguments: argparse.Namespace) -> list[dict]:
    """Measure every source for one set of blocks, each in a process of its own."""
    written = write_all(folder, BLOCK_SETS[name], arguments.images)
    rows = []
    for source in SOURCES if arguments.release else SOURCES[1:]:
        options = ["--source", source, "--blocks", name, "--folder", folder, "--images", arguments.images]
        options += ["--device", arguments.device, *(["--release", arguments.release] if arguments.release else [])]
        row = {"blocks": name, "way": source, "images": arguments.images, **written[source]}
        for cold in ([], ["--cold"])[: 1 if source == "online" else 2]:
            command = module_command("benchmarks.train.peers", *options, *cold)
            row |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        rows.append(row)
    by_source = {row["way"]: row for row in rows}
    for row in rows:
        row["epoch_over_store"] = row["epoch_s_per_image"] / by_source["store"]["epoch_s_per_image"]
        if "online" in by_source:
            row["write_share_of_forward"] = row["write_s_per_image"] / by_source["online"]["load_s_per_image"]
        print(
            f"  blocks {name:>3} {row['way']:>10}: {row['bytes'] / 1e6:6.1f} MB an image, written in "
            f"{row['write_s_per_image']:.2f} s; {1 / row['load_s_per_image']:6.2f} images/s into the head"
            f"{f' ({1 / cold:.2f} cold)' if (cold := row.get('cold_load_s_per_image')) else ''}, an epoch "
            f"{row['epoch_s_per_image']:6.2f} s an image ({row['epoch_over_store']:.2f} times the store's), "
            f"peak {row['peak_bytes'] / 1e9:.1f} GB"
        )
    return rows


def main() -> None:
    """Compare the sources for each set of blocks, or measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6, help="of 768 px")
    parser.add_argument("--release", type=Path, help="a release folder of the paper's size, for `online`")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="with 4 GB free")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    parser.add_argument("--source", help=argparse.SUPPRESS)  # measure this one alone, in this process
    parser.add_argument("--blocks", help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if arguments.source:
        print(json.dumps(measure_source(arguments)))
        return
    for name in BLOCK_SETS:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            machine = describe_machine(Path(folder))
            save_rows(arguments.out, name, compare_sources(name, Path(folder), arguments), machine=machine)


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
