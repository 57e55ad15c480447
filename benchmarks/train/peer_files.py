"""The same features as .pt files, a store and raw memory-mapped files, for `benchmarks.train.peers`."""

from __future__ import annotations

import os
import queue
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.constant_model import FULL_SIZE
from benchmarks.machine import seconds
from benchmarks.store.random_store import random_contents
from benchmarks.train.heads import GRID
from pathseg.store.writer import StoreWriter

FOLDERS = {"pt": "pt", "pt-workers": "pt", "store": "store.zarr/t50", "memmap": "memmap"}  # of the features
Maps = dict[int, torch.Tensor]  # block -> (1, P, C, h, w)


class PatchFiles(Dataset):
    """Patches as .pt files in kaiko-eva's format: a list of maps (C, h, w), one per block, and the mask beside it."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        return torch.load(self.folder / f"{index}-0.pt"), torch.load(self.folder / f"{index}-0-mask.pt").long()


def eva_classes() -> tuple[type, type] | None:
    """Return kaiko-eva's writer and data set classes, None where it is not installed (`kaiko-eva[vision]`)."""
    try:
        from eva.core.callbacks.writers.embeddings.segmentation import SegmentationEmbeddingsWriter
        from eva.vision.data.datasets.segmentation.embeddings import EmbeddingsSegmentationDataset
    except ImportError as e:
        reason = " ".join(str(e).strip().splitlines()[-1:])
        print(f"  .pt files are written by this script, in kaiko-eva's format ({reason})", file=sys.stderr)
        return None
    return SegmentationEmbeddingsWriter, EmbeddingsSegmentationDataset


def write_patches(folder: Path, first: int, maps: Maps, mask: torch.Tensor) -> None:
    """Write the patches of one image as .pt files, numbered from `first`."""
    for patch in range(GRID.patches):
        features = [values[0, patch].clone() for values in maps.values()]
        torch.save(features, folder / f"{first + patch}-0.pt")
        torch.save(mask[patch].clone(), folder / f"{first + patch}-0-mask.pt")


def write_with_eva(writer: type, folder: Path, images: list[tuple[Maps, torch.Tensor]]) -> float:
    """Write all patches with kaiko-eva's writer, in this process in place of its own; return seconds per image."""
    from eva.core.callbacks.writers.embeddings.base import _as_io_buffers
    from eva.core.callbacks.writers.embeddings.typings import QUEUE_ITEM

    def write() -> None:
        items: queue.Queue = queue.Queue()
        for number, (maps, mask) in enumerate(images):
            for patch in range(GRID.patches):
                name = f"{number * GRID.patches + patch}"
                buffers = _as_io_buffers([values[0, patch] for values in maps.values()], mask[patch])
                items.put(QUEUE_ITEM(*buffers, name + ".png", name + ".pt", "train", None))
        items.put(None)
        writer._process_write_queue(items, str(folder), [], 1)

    return seconds(write) / len(images)


def stitch_mask(patches: torch.Tensor) -> torch.Tensor:
    """Stitch mask patches (P, 256, 256) into one mask (1, 768, 768) int64."""
    return GRID.stitch(patches[None, :, None].float())[:, 0].long()


def write_all(folder: Path, blocks: tuple[int, ...], images: int) -> dict[str, dict[str, object]]:
    """Write the same images in every format; return seconds and bytes per image of each."""
    rng = np.random.default_rng(0)
    mask = torch.zeros(GRID.patches, 256, 256, dtype=torch.uint8)
    mask[:, :, 100:] = 1
    shapes = {b: (1, GRID.patches, FULL_SIZE[b][0], *2 * FULL_SIZE[b][1:]) for b in blocks}
    features = [
        {b: torch.from_numpy(rng.standard_normal(shape, np.float32)).half() for b, shape in shapes.items()}
        for _ in range(images)
    ]
    for name in ("pt", "memmap"):
        (folder / name).mkdir()
    eva = eva_classes()
    rows: dict[str, dict[str, object]] = {"pt": {"writer": "kaiko-eva" if eva else "this script"}}
    if eva:
        (folder / "warm").mkdir()
        write_with_eva(eva[0], folder / "warm", [(features[0], mask)])
        rows["pt"]["write_s_per_image"] = write_with_eva(eva[0], folder / "pt", [(maps, mask) for maps in features])
    else:
        times = [seconds(lambda i=i, m=m: write_patches(folder / "pt", i * 9, m, mask)) for i, m in enumerate(features)]
        rows["pt"]["write_s_per_image"] = statistics.median(times)
    contents = random_contents(["train"] * images, blocks={b: FULL_SIZE[b] for b in blocks})
    writer = StoreWriter(folder / "store.zarr", contents)
    writer.add_arrays([50], blocks)
    image_mask = stitch_mask(mask)[0].numpy().astype(np.uint8)
    times = []
    for unit, maps in enumerate(features):
        writer.write_pixels(unit, [(np.zeros((768, 768, 3), np.uint8), image_mask, None)])
        pairs = [(b, [m[0].numpy()]) for b, m in maps.items()]
        times.append(seconds(lambda u=unit, p=pairs: writer.write_features(u, t=50, features=p)))
    rows["store"] = {"write_s_per_image": statistics.median(times)}
    times = [seconds(lambda m=maps: [append(folder / f"memmap/{b}", v) for b, v in m.items()]) for maps in features]
    rows["memmap"] = {"write_s_per_image": statistics.median(times)}
    np.save(folder / "memmap/masks.npy", np.stack([image_mask] * images))
    for name in ("pt", "store", "memmap"):
        files = [p for p in (folder / FOLDERS[name]).rglob("*") if p.is_file() and "mask" not in p.name]
        rows[name]["bytes"] = sum(p.stat().st_size for p in files) / images
    return rows | {"pt-workers": rows["pt"], "online": {"bytes": 0, "write_s_per_image": 0.0}}


def append(path: Path, values: torch.Tensor) -> None:
    """Append the raw bytes of a tensor to a file."""
    with path.open("ab", buffering=0) as file:
        file.write(values.numpy())


def drop_page_cache(folder: Path) -> bool:
    """Ask the system to drop its page cache of the files in a folder; return False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    os.sync()  # dirty pages would stay
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
