"""Memory for batches, filled again and again: fresh memory for each costs a CPU as much as reading it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pathseg.store.features import FeatureStore
from pathseg.store.grid import PATCH_PX
from pathseg.train.config import IMAGE


@dataclass(frozen=True)
class Values:
    """Features {t: {block: (P, C, h, w)}} as stored and class codes (H, W) uint8 of an image, or (N, ...) of a batch.

    At t None the only block is IMAGE: the image itself, RGB uint8 (P, 3, 256, 256).
    """

    features: dict[int | None, dict[int, torch.Tensor]]
    masks: torch.Tensor

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Values:
        """With every tensor changed."""
        features = {t: {b: change(maps) for b, maps in blocks.items()} for t, blocks in self.features.items()}
        return Values(features, change(self.masks))

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of them, always in the same order."""
        for blocks in self.features.values():
            yield from blocks.values()
        yield self.masks


def stacked(images: Sequence[Values]) -> Values:
    """Images -> a batch. That of a single image is a view of it."""
    if len(images) == 1:
        return images[0].each(lambda values: values[None])
    features = {
        t: {block: torch.stack([image.features[t][block] for image in images]) for block in blocks}
        for t, blocks in images[0].features.items()
    }
    return Values(features, torch.stack([image.masks for image in images]))


class Buffer:
    """Room for a number of images; for a GPU in pinned memory, from which it fetches them while it works."""

    def __init__(
        self, store: FeatureStore, wanted: Mapping[int | None, Sequence[int]], images: int, *, device: torch.device
    ) -> None:
        self.images = images
        self._device = device
        self._fetched: torch.cuda.Event | None = None

        def room(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            return torch.empty((images, *shape), dtype=dtype, pin_memory=device.type == "cuda")

        key, patches = store.contents.key, store.contents.grid.patches
        dtype = torch.from_numpy(np.empty(0, key.dtype)).dtype
        shapes = {b: (patches, *shape.stored(key.layout)) for b, shape in store.contents.blocks.items()}
        features = {t: {b: room(shapes[b], dtype) for b in blocks} for t, blocks in wanted.items() if t is not None}
        if None in wanted:
            features[None] = {IMAGE: room((patches, 3, PATCH_PX, PATCH_PX), torch.uint8)}
        self.values = Values({t: features[t] for t in wanted}, room(key.size, torch.uint8))

    def all_asked_for(self) -> None:
        """Say that nothing else will be copied from it to the GPU before it is filled again."""
        if self._device.type == "cuda":
            self._fetched = torch.cuda.current_stream(self._device).record_event()

    def wait(self) -> None:
        """Until the GPU has fetched what was in it."""
        if self._fetched is not None:
            self._fetched.synchronize()


def read_image(store: FeatureStore, index: int, into: Values) -> None:
    """Fill the tensors of one image, which lie in the machine's memory. Raises what reading the store raises."""
    for t, blocks in into.features.items():
        if t is None:
            patches = store.contents.grid.cut(store.image(index))  # (P, 256, 256, 3)
            np.copyto(blocks[IMAGE].numpy(), patches.transpose(0, 3, 1, 2))
        else:
            store.read(index, t=t, blocks=tuple(blocks), out={b: maps.numpy() for b, maps in blocks.items()})
    np.copyto(into.masks.numpy(), store.mask(index))


def copy_image(image: Values, into: Values) -> None:
    """Copy the tensors of one image to others; both in the machine's memory."""
    for values, own in zip(image.tensors(), into.tensors(), strict=True):
        np.copyto(own.numpy(), values.numpy())  # torch would start as many threads for it as it computes with


def own_copy(values: torch.Tensor) -> torch.Tensor:
    """A copy in memory of its own, the machine's."""
    return torch.from_numpy(values.numpy().copy())


def image_bytes(store: FeatureStore, wanted: Mapping[int | None, Sequence[int]]) -> int:
    """What these blocks at these timesteps (None: the image itself) and the mask of one image take."""
    features = sum(store.image_bytes(blocks) for t, blocks in wanted.items() if t is not None)
    height, width = store.contents.key.size
    return features + height * width * (4 if None in wanted else 1)
