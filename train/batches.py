"""Images of a store, one after another, as tensors: read ahead, kept in memory where they fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from pathseg.store.features import FeatureStore

KEEP_SHARE = 0.5  # of the memory that is free at the start


@dataclass(frozen=True)
class Batch:
    """Features {block: (N, P, C, h, w)} as stored, class codes (N, H, W) int64, and the images' indices."""

    features: dict[int, torch.Tensor]
    masks: torch.Tensor
    indices: tuple[int, ...]


class FeatureReader:
    """Reads chosen blocks of images. What fits into half of the free memory is read from the store only once."""

    def __init__(self, store: FeatureStore, *, t: int, blocks: Sequence[int]) -> None:
        self.store = store
        self.t, self.blocks = t, tuple(blocks)
        self._kept: dict[int, tuple[dict[int, torch.Tensor], torch.Tensor]] = {}
        self._room = int(free_memory() * KEEP_SHARE)

    def batches(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """The images in the order given; while one batch is used the next is being read."""
        groups = [tuple(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
        with ThreadPoolExecutor(max_workers=1) as pool:
            ahead = None
            for group in groups:
                current, ahead = ahead, pool.submit(self._batch, group)
                if current is not None:
                    yield current.result()
            if ahead is not None:
                yield ahead.result()

    def _batch(self, group: tuple[int, ...]) -> Batch:
        images = [self._image(index) for index in group]
        features = {b: torch.stack([maps[b] for maps, _ in images]) for b in self.blocks}
        return Batch(features, torch.stack([mask for _, mask in images]).long(), group)

    def _image(self, index: int) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        if index in self._kept:
            return self._kept[index]
        maps = self.store.read(index, t=self.t, blocks=self.blocks)
        image = {b: torch.from_numpy(m) for b, m in maps.items()}, torch.from_numpy(self.store.mask(index))
        size_bytes = sum(m.nbytes for m in maps.values()) + image[1].nbytes
        if size_bytes <= self._room:
            self._room -= size_bytes
            self._kept[index] = image
        return image


def free_memory() -> int:
    """Bytes of memory that can be had without swapping, as far as the system says."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30  # a system that does not say: assume a small one


def class_pixels(store: FeatureStore, indices: Sequence[int]) -> np.ndarray:
    """(K,) pixels of each class in the masks of these images; ignored ones count for none.

    Raises ValueError naming the image when a mask has a code outside the classes.
    """
    counts = np.zeros(len(store.classes), np.int64)
    for index in indices:
        codes = np.bincount(store.mask(index).ravel(), minlength=256)
        if store.ignore is not None:
            codes[store.ignore] = 0
        if codes[len(counts) :].any():
            code = len(counts) + int(codes[len(counts) :].argmax())
            raise ValueError(f"mask of {store.ids[index]} has code {code}, but the store has {len(counts)} classes")
        counts += codes[: len(counts)]
    return counts
