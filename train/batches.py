"""Images of a store, one after another, as tensors: read ahead, kept in memory where they fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from pathseg.store.features import FeatureStore
from pathseg.train.config import IMAGE
from pathseg.train.memory import CPU, rooms


@dataclass(frozen=True)
class Batch:
    """Features {t: {block: (N, P, C, h, w)}} as stored, class codes (N, H, W) uint8, and the images' indices.

    At t None the only block is IMAGE: the image itself, RGB uint8 (N, P, 3, 256, 256).
    """

    features: dict[int | None, dict[int, torch.Tensor]]
    masks: torch.Tensor
    indices: tuple[int, ...]


class FeatureReader:
    """Reads chosen blocks at chosen timesteps. What fits into memory is read from the store only once.

    On a GPU it is kept in the GPU's memory, and what that has no room for in the machine's. `kept` counts the images
    that are kept, `bytes_read` what came from the store.
    """

    def __init__(
        self,
        store: FeatureStore,
        wanted: Mapping[int | None, Sequence[int]],
        *,
        device: torch.device,
        memory_bytes: int | None = None,
    ) -> None:
        """wanted: timestep -> blocks, None -> the image. memory_bytes: room in all, half of what is free if None."""
        self.store, self.device = store, device
        self.wanted = {t: tuple(blocks) for t, blocks in wanted.items()}
        self.bytes_read = 0
        self._kept: dict[int, tuple[dict[int | None, dict[int, torch.Tensor]], torch.Tensor]] = {}
        self._rooms = rooms(device, memory_bytes)

    @property
    def kept(self) -> int:
        """Number of images whose features are in memory."""
        return len(self._kept)

    def batches(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """The images in the order given, on the device; while one batch is used the next is being read."""
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
        features = {
            t: {b: torch.stack([self._here(maps[t][b]) for maps, _ in images]) for b in blocks}
            for t, blocks in self.wanted.items()
        }
        return Batch(features, torch.stack([self._here(mask) for _, mask in images]), group)

    def _here(self, values: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and values.device == CPU:  # from pinned memory the GPU fetches it while it works
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)

    def _image(self, index: int) -> tuple[dict[int | None, dict[int, torch.Tensor]], torch.Tensor]:
        if index in self._kept:
            return self._kept[index]
        maps = {t: self._maps(index, t, blocks) for t, blocks in self.wanted.items()}
        mask = torch.from_numpy(self.store.mask(index))
        size_bytes = sum(m.nbytes for blocks in maps.values() for m in blocks.values()) + mask.nbytes
        self.bytes_read += size_bytes
        place = next((place for place, room in self._rooms.items() if size_bytes <= room), None)
        if place is not None:
            self._rooms[place] -= size_bytes
            on_place = {t: {b: m.to(place) for b, m in blocks.items()} for t, blocks in maps.items()}
            self._kept[index] = on_place, mask.to(place)
            return self._kept[index]
        return maps, mask

    def _maps(self, index: int, t: int | None, blocks: Sequence[int]) -> dict[int, torch.Tensor]:
        if t is None:
            patches = self.store.contents.grid.cut(self.store.image(index))  # (P, 256, 256, 3)
            return {IMAGE: torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous()}
        return {b: torch.from_numpy(m) for b, m in self.store.read(index, t=t, blocks=blocks).items()}


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
