"""The same training epoch fed in four ways, at the paper's shapes: the model online, .pt files, this store, raw memory.

    python benchmarks/peers.py [--images 4] [--release DIR] [--out benchmarks/results/peers.json]

online   The frozen model runs in every epoch, float32; measured on a few patches and scaled to the images. Its
         features go to the same native head as the store's.
pt       One .pt file for each patch, float16 at native resolution, read by a DataLoader without worker processes (so
         not ahead, as the store's are), upsampled, stacked, plain head. By kaiko-eva's own writer and data set where
         that package is installed (`writer` says which), else in the same format, written here.
store    This package: a Zarr store in native layout, `FeatureReader` with nothing kept in memory, native head.
memmap   The native float16 bytes as one raw memory-mapped file for each block, native head: the physical limit.

For each: bytes on disk; seconds to write an image's features, as a share of the forward passes that made them; images
a second into the head's input; seconds of an epoch (loading, forward, backward, Adam); peak memory of that epoch's
process. Values are random, 768 px images, FCN head, blocks 4-6 and all. --release: a release folder of the paper's size
(benchmarks/full_size_release.py makes one with random weights); without it `online` is left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from free import FULL
from heads import GRID, model_seconds, plain_head, stack, training_step
from machine import keep, machine, seconds
from random_store import random_contents
from torch.utils.data import DataLoader, Dataset

from pathseg.store.features import FeatureStore
from pathseg.store.writer import StoreWriter
from pathseg.train.batches import FeatureReader
from pathseg.train.heads import FCNHead

SETS = {"4-6": (4, 5, 6), "all": tuple(FULL)}
Maps = dict[int, torch.Tensor]  # block -> (1, P, C, h, w)


class PatchFiles(Dataset):
    """Patches as .pt files: a list of maps (C, h, w), one a block, beside a mask; what kaiko-eva writes and reads."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        return torch.load(self.folder / f"{index}-0.pt"), torch.load(self.folder / f"{index}-0-mask.pt").long()


def eva_classes() -> tuple[type, type] | None:
    """kaiko-eva's writer and data set, or None where it is not installed."""
    try:
        from eva.core.callbacks.writers.embeddings.segmentation import SegmentationEmbeddingsWriter
        from eva.vision.data.datasets.segmentation.embeddings import EmbeddingsSegmentationDataset
    except ImportError:
        return None
    return SegmentationEmbeddingsWriter, EmbeddingsSegmentationDataset


def write_patches(folder: Path, first: int, maps: Maps, mask: torch.Tensor) -> None:
    """The patches of one image as .pt files."""
    for patch in range(GRID.patches):
        features = [values[0, patch].clone() for values in maps.values()]
        torch.save(features, folder / f"{first + patch}-0.pt")
        torch.save(mask[patch].clone(), folder / f"{first + patch}-0-mask.pt")


def write_by_eva(writer: type, folder: Path, images: list[tuple[Maps, torch.Tensor]]) -> float:
    """All patches through kaiko-eva's writer; its process's work is done in this one. Gives seconds an image."""
    from eva.core.callbacks.writers.embeddings.base import _as_io_buffers
    from eva.core.callbacks.writers.embeddings.typings import QUEUE_ITEM

    def work() -> None:
        items: queue.Queue = queue.Queue()
        for number, (maps, mask) in enumerate(images):
            for patch in range(GRID.patches):
                name = f"{number * GRID.patches + patch}"
                buffers = _as_io_buffers([values[0, patch] for values in maps.values()], mask[patch])
                items.put(QUEUE_ITEM(*buffers, name + ".png", name + ".pt", "train", None))
        items.put(None)
        writer._process_write_queue(items, str(folder), [], 1)

    return seconds(work) / len(images)


def patch_batches(folder: Path, images: int, workers: int) -> Iterator[tuple[Maps, torch.Tensor]]:
    """The patches of one image after another, through a DataLoader."""
    if (classes := eva_classes()) is not None:
        data = classes[1](root=str(folder), manifest_file="manifest.csv", split="train")
        data.setup()
    else:
        data = PatchFiles(folder, images * GRID.patches)
    for features, mask in DataLoader(data, batch_size=GRID.patches, num_workers=workers):
        yield {b: f[None] for b, f in enumerate(features)}, mask


def whole_mask(patches: torch.Tensor) -> torch.Tensor:
    """(P, 256, 256) -> (1, 768, 768)."""
    return GRID.stitch(patches[None, :, None].float())[:, 0].long()


def inputs(way: str, folder: Path, blocks: tuple[int, ...], images: int) -> Iterator[tuple[object, torch.Tensor]]:
    """What the head takes, and the mask, image after image."""
    if way == "pt":
        for maps, mask in patch_batches(folder / "pt", images, workers=0):
            yield stack(maps), whole_mask(mask)
    elif way == "store":
        reader = FeatureReader(
            FeatureStore.open(folder / "store.zarr"), {50: blocks}, device=torch.device("cpu"), memory_bytes=0
        )
        for batch in reader.batches(range(images), 1):
            yield {b: m.float() for b, m in batch.features[50].items()}, batch.masks.long()
    else:
        shapes = {b: (images, GRID.patches, FULL[b][0], *2 * FULL[b][1:]) for b in blocks}
        maps = {b: np.memmap(folder / f"memmap/{b}", np.float16, "r", shape=shapes[b]) for b in blocks}
        masks = np.load(folder / "memmap/masks.npy", mmap_mode="r")
        for index in range(images):
            floats = {b: torch.from_numpy(m[index : index + 1].astype(np.float32)) for b, m in maps.items()}
            yield floats, torch.from_numpy(masks[index : index + 1].astype(np.int64))


def epoch(way: str, folder: Path, blocks: tuple[int, ...], images: int) -> dict[str, float]:
    """One pass that only loads, one that trains; both after a first image that warms up."""
    torch.manual_seed(0)
    head = FCNHead({b: FULL[b][0] for b in blocks}, 2)
    if way == "pt":
        head = plain_head(head)
    taken = {}
    for task in ("load", "train"):
        start = None
        for number, (given, mask) in enumerate(inputs(way, folder, blocks, images)):
            if task == "train":
                scores = (lambda g=given: head(g)) if way == "pt" else (lambda g=given: head(g, (3, 3)))
                training_step(head, scores, mask)()
            if number == 0:
                start = time.perf_counter()
        taken[task] = (time.perf_counter() - start) / (images - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"load_s_per_image": taken["load"], "epoch_s_per_image": taken["train"], "peak_bytes": peak}


def write_all(folder: Path, blocks: tuple[int, ...], images: int) -> dict[str, dict[str, object]]:
    """The same images in each form: seconds an image and bytes on disk."""
    rng = np.random.default_rng(0)
    mask = torch.zeros(GRID.patches, 256, 256, dtype=torch.uint8)
    mask[:, :, 100:] = 1
    random = [
        {b: torch.from_numpy(rng.standard_normal((1, 9, c, s, s), np.float32)).half() for b, (c, s) in FULL.items()}
        for _ in range(images)
    ]
    made = [{b: maps[b] for b in blocks} for maps in random]
    for way in ("pt", "memmap"):
        (folder / way).mkdir()
    eva = eva_classes()
    rows: dict[str, dict[str, object]] = {"pt": {"writer": "kaiko-eva" if eva else "written here"}}
    if eva:
        rows["pt"]["write_s_per_image"] = write_by_eva(eva[0], folder / "pt", [(maps, mask) for maps in made])
    else:
        taken = [seconds(lambda i=i, m=m: write_patches(folder / "pt", i * 9, m, mask)) for i, m in enumerate(made)]
        rows["pt"]["write_s_per_image"] = statistics.median(taken)
    contents = random_contents(["train"] * images, blocks={b: FULL[b] for b in blocks})
    writer = StoreWriter(folder / "store.zarr", contents)
    writer.add_arrays([50], blocks)
    flat = whole_mask(mask)[0].numpy().astype(np.uint8)
    taken = []
    for unit, maps in enumerate(made):
        writer.write_pixels(unit, [(np.zeros((768, 768, 3), np.uint8), flat, None)])
        pairs = [(b, [m[0].numpy()]) for b, m in maps.items()]
        taken.append(seconds(lambda u=unit, p=pairs: writer.write_features(u, t=50, features=p)))
    rows["store"] = {"write_s_per_image": statistics.median(taken)}
    taken = [seconds(lambda m=maps: [append(folder / f"memmap/{b}", v) for b, v in m.items()]) for maps in made]
    rows["memmap"] = {"write_s_per_image": statistics.median(taken)}
    np.save(folder / "memmap/masks.npy", np.stack([flat] * images))
    for way, place in (("pt", "pt"), ("store", "store.zarr/t50"), ("memmap", "memmap")):
        rows[way]["bytes"] = sum(p.stat().st_size for p in (folder / place).rglob("*") if p.is_file())
    return rows


def append(path: Path, values: torch.Tensor) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(values.numpy())


def compare(name: str, blocks: tuple[int, ...], folder: Path, images: int, release: Path | None) -> list[dict]:
    written = write_all(folder, blocks, images)
    forward = model_seconds(release, blocks, "cpu") if release else None
    rows = []
    for way in ("pt", "store", "memmap"):
        command = [sys.executable, __file__, "--epoch", way, "--set", name, "--folder", folder, "--images", images]
        said = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
        row = {"blocks": name, "way": way, "images": images, **written[way], **json.loads(said)}
        row["write_share_of_forward"] = forward and row["write_s_per_image"] / forward
        rows.append(row)
    if forward:
        step = rows[1]["epoch_s_per_image"] - rows[1]["load_s_per_image"]
        rows.insert(0, {"blocks": name, "way": "online", "load_s_per_image": forward, "bytes": 0})
        rows[0]["epoch_s_per_image"] = forward + step
    ours = next(row for row in rows if row["way"] == "store")
    for row in rows:
        row["epoch_over_store"] = row["epoch_s_per_image"] / ours["epoch_s_per_image"]
        peak = f", peak {row['peak_bytes'] / 1e9:.1f} GB" if "peak_bytes" in row else ""
        print(
            f"  blocks {name:>3} {row['way']:>6}: {row['bytes'] / 1e6 / images:7.1f} MB an image, "
            f"{1 / row['load_s_per_image']:8.2f} images/s into the head, an epoch {row['epoch_s_per_image']:6.2f} s "
            f"an image, {row['epoch_over_store']:.2f} times the store's{peak}"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="of 768 px")
    parser.add_argument("--release", type=Path, help="a release folder of the paper's size, for `online`")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="with 2 GB free")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/peers.json")
    parser.add_argument("--epoch", help=argparse.SUPPRESS)  # one way's epoch, in its own process
    parser.add_argument("--set", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.epoch:
        print(json.dumps(epoch(arguments.epoch, arguments.folder, SETS[arguments.set], arguments.images)))
        return
    for name, blocks in SETS.items():
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            about = machine(Path(folder))
            rows = compare(name, blocks, Path(folder), arguments.images, arguments.release)
            keep(arguments.out, name, rows, about=about)


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
