"""The same features in the forms that are compared by peers.py: .pt files, a store, raw memory-mapped files."""

from __future__ import annotations

import os
import queue
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from free import FULL
from heads import GRID
from machine import seconds
from random_store import random_contents
from torch.utils.data import Dataset

from pathseg.store.writer import StoreWriter

PLACES = {"pt": "pt", "pt-workers": "pt", "store": "store.zarr/t50", "memmap": "memmap"}  # of the features
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
    """kaiko-eva's writer and data set, or None where it is not installed (`kaiko-eva[vision]`)."""
    try:
        from eva.core.callbacks.writers.embeddings.segmentation import SegmentationEmbeddingsWriter
        from eva.vision.data.datasets.segmentation.embeddings import EmbeddingsSegmentationDataset
    except ImportError as e:
        said = str(e).strip().splitlines()[-1:]
        print(f"  .pt files are written here, in kaiko-eva's format ({' '.join(said)})", file=sys.stderr)
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


def whole_mask(patches: torch.Tensor) -> torch.Tensor:
    """(P, 256, 256) -> (1, 768, 768)."""
    return GRID.stitch(patches[None, :, None].float())[:, 0].long()


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
        (folder / "warm").mkdir()
        write_by_eva(eva[0], folder / "warm", [(made[0], mask)])
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
    for way in ("pt", "store", "memmap"):
        place = PLACES[way]
        files = [p for p in (folder / place).rglob("*") if p.is_file() and "mask" not in p.name]
        rows[way]["bytes"] = sum(p.stat().st_size for p in files) / images
    return rows | {"pt-workers": rows["pt"], "online": {"bytes": 0, "write_s_per_image": 0.0}}


def append(path: Path, values: torch.Tensor) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(values.numpy())


def forget(folder: Path) -> bool:
    """Have the system drop what it caches of the files in a folder; False where that cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    os.sync()  # what is not written yet would stay
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
