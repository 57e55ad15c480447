"""The same training epoch fed in several ways, at the paper's shapes: model online, .pt files, this store, raw memory.

    python benchmarks/peers.py [--images 6] [--release DIR] [--device cpu] [--out benchmarks/results/peers.json]

online     The frozen model runs in every epoch, float32, on one image; its features go to the native head. With
           --release, a release folder of the paper's size (benchmarks/full_size_release.py makes one with random
           weights).
pt         One .pt file for each patch, float16 at native resolution, read by a DataLoader, upsampled, stacked, plain
           head. By kaiko-eva's own writer and data set where `kaiko-eva[vision]` is installed (`writer` says), else in
           the same format, written here.
pt-workers The same with a worker process a core, kept from epoch to epoch.
store      This package: a Zarr store in native layout, `FeatureReader` with nothing kept in memory, native head.
memmap     The native float16 bytes as one raw memory-mapped file for each block, native head, nothing read ahead: the
           physical limit of reading without it.

For each: bytes of features on disk; seconds to write an image's features, and as a share of the forward pass that made
them; images a second into the head's input; seconds of an epoch (loading, forward, backward, Adam) an image; peak
memory of that epoch's process above what it has after its imports (mapped files count, as far as the system holds
them). Each way runs in a process of its own: a whole pass and a step warm up, then whole passes are timed, median of
three for loading, one for training. All was written just before, so files come from the system's cache; `cold` is the
first loading pass of another process, before which the system was told to drop them (Linux), as when features exceed
memory; what a disk or a host below this machine caches stays there. `pt-workers` gives the main process's memory alone.
Loading of `pt` includes upsampling and stacking, that of the others nothing: the native head needs none. On a CPU the
online model runs on two threads, as always. Writing of `pt` includes its masks (4 %). Values are random, 768 px images,
FCN head, blocks 4-6 and all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from free import FULL
from heads import GRID, plain_head, stack
from machine import keep, machine, peak_bytes, seconds
from peer_files import PLACES, Maps, PatchFiles, eva_classes, forget, whole_mask, write_all
from torch.utils.data import DataLoader

from pathseg.extract.models.load import load_model
from pathseg.store.features import FeatureStore
from pathseg.train.data.reader import FeatureReader
from pathseg.train.heads.fcn import FCNHead

SETS = {"4-6": (4, 5, 6), "all": tuple(FULL)}
WAYS = ("online", "pt", "pt-workers", "store", "memmap")
TURNS = 3
Pass = Callable[[], Iterator[tuple[Any, torch.Tensor]]]  # gives what the head takes, and the mask, image after image


def patch_pass(folder: Path, images: int, device: str, workers: int) -> Pass:
    """The patches of one image after another, through a DataLoader, as the stack in float32."""
    if (classes := eva_classes()) is not None:
        data = classes[1](root=str(folder), manifest_file="manifest.csv", split="train")
        data.setup()
    else:
        data = PatchFiles(folder, images * GRID.patches)
    loader = DataLoader(data, batch_size=GRID.patches, num_workers=workers, persistent_workers=workers > 0)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for features, mask in loader:
            yield stack({b: f[None].to(device) for b, f in enumerate(features)}), whole_mask(mask).to(device)

    return batches


def store_pass(folder: Path, blocks: tuple[int, ...], images: int, device: str) -> Pass:
    store = FeatureStore.open(folder)
    reader = FeatureReader(store, {50: blocks}, device=torch.device(device), memory_bytes=0)

    def batches() -> Iterator[tuple[Maps, torch.Tensor]]:
        for batch in reader.batches(range(images), 1):
            yield {b: m.float() for b, m in batch.features[50].items()}, batch.masks.long()

    return batches


def memmap_pass(folder: Path, blocks: tuple[int, ...], images: int, device: str) -> Pass:
    shapes = {b: (images, GRID.patches, FULL[b][0], *2 * FULL[b][1:]) for b in blocks}
    maps = {b: np.memmap(folder / f"{b}", np.float16, "r", shape=shapes[b]) for b in blocks}
    masks = np.load(folder / "masks.npy", mmap_mode="r")

    def batches() -> Iterator[tuple[Maps, torch.Tensor]]:
        for index in range(images):
            floats = {b: torch.from_numpy(m[index : index + 1].astype(np.float32)) for b, m in maps.items()}
            mask = torch.from_numpy(masks[index : index + 1].astype(np.int64))
            yield {b: values.to(device) for b, values in floats.items()}, mask.to(device)

    return batches


def online_pass(release: Path, blocks: tuple[int, ...], device: str) -> Pass:
    """One image, anew in every pass."""
    model = load_model(release, device=device)
    patches = np.random.default_rng(0).integers(0, 256, (GRID.patches, 256, 256, 3), np.uint8)
    mask = torch.zeros(1, 768, 768, dtype=torch.long, device=device)

    def batches() -> Iterator[tuple[Maps, torch.Tensor]]:
        yield {b: maps[None].clone() for b, maps in model.features(patches, t=50, blocks=blocks).items()}, mask

    return batches


def epoch(arguments: argparse.Namespace) -> dict[str, float]:
    """What a way takes to load and to train, an image, and the memory of it."""
    way, folder, blocks, device = arguments.epoch, arguments.folder, SETS[arguments.set], arguments.device
    torch.manual_seed(0)
    head = FCNHead({b: FULL[b][0] for b in blocks}, 2).to(device)
    plain, imported, images = plain_head(head), peak_bytes(), 1 if way == "online" else arguments.images
    passes = {
        "online": lambda: online_pass(arguments.release, blocks, device),
        "pt": lambda: patch_pass(folder / "pt", images, device, 0),
        "pt-workers": lambda: patch_pass(folder / "pt", images, device, os.cpu_count() or 1),
        "store": lambda: store_pass(folder / "store.zarr", blocks, images, device),
        "memmap": lambda: memmap_pass(folder / "memmap", blocks, images, device),
    }
    if arguments.cold and not forget(folder / PLACES[way].split("/")[0]):
        return {"cold_load_s_per_image": None}
    batches = passes[way]()
    module = plain if way.startswith("pt") else head
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)

    def load() -> None:
        for given, _ in batches():
            del given

    def train(most: int = images) -> None:
        for given, mask in islice(batches(), most):
            scores = module(given) if module is plain else module(given, (3, 3))
            loss = torch.nn.functional.cross_entropy(scores, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    if arguments.cold:
        return {"cold_load_s_per_image": seconds(load) / images}
    load()
    train(1)
    loads = [seconds(load) / images for _ in range(1 if way == "online" else TURNS)]
    row = {"load_s_per_image": statistics.median(loads), "epoch_s_per_image": seconds(train) / images}
    return row | {"load_turns": loads, "peak_bytes": peak_bytes() - imported}


def compare(name: str, folder: Path, arguments: argparse.Namespace) -> list[dict]:
    written = write_all(folder, SETS[name], arguments.images)
    rows = []
    for way in WAYS if arguments.release else WAYS[1:]:
        command = [sys.executable, __file__, "--epoch", way, "--set", name, "--folder", folder]
        command += ["--images", arguments.images, "--device", arguments.device]
        command += ["--release", arguments.release] if arguments.release else []
        row = {"blocks": name, "way": way, "images": arguments.images, **written[way]}
        for more in ([], ["--cold"] if way != "online" else None):
            if more is not None:
                words = [str(word) for word in command + more]
                row |= json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
        rows.append(row)
    by_way = {row["way"]: row for row in rows}
    for row in rows:
        row["epoch_over_store"] = row["epoch_s_per_image"] / by_way["store"]["epoch_s_per_image"]
        if "online" in by_way:
            row["write_share_of_forward"] = row["write_s_per_image"] / by_way["online"]["load_s_per_image"]
        print(
            f"  blocks {name:>3} {row['way']:>10}: {row['bytes'] / 1e6:6.1f} MB an image, written in "
            f"{row['write_s_per_image']:.2f} s; {1 / row['load_s_per_image']:6.2f} images/s into the head"
            f"{f' ({1 / cold:.2f} cold)' if (cold := row.get('cold_load_s_per_image')) else ''}, an epoch "
            f"{row['epoch_s_per_image']:6.2f} s an image ({row['epoch_over_store']:.2f} times the store's), "
            f"peak {row['peak_bytes'] / 1e9:.1f} GB"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6, help="of 768 px")
    parser.add_argument("--release", type=Path, help="a release folder of the paper's size, for `online`")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="with 4 GB free")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/peers.json")
    parser.add_argument("--epoch", help=argparse.SUPPRESS)  # one way's epoch, in its own process
    parser.add_argument("--set", help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if arguments.epoch:
        print(json.dumps(epoch(arguments)))
        return
    for name in SETS:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            about = machine(Path(folder))
            keep(arguments.out, name, compare(name, Path(folder), arguments), about=about)


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
