"""Images of a store, one after another, as tensors: read ahead, kept in memory where they fit."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch

from pathseg.store.features import FeatureStore
from pathseg.store.runtime.prefetch import PREFETCH_BYTES
from pathseg.train.config import Config
from pathseg.train.data.buffers import Buffer, Values, copy_image, image_bytes, own_copy, read_image, stacked
from pathseg.train.data.memory import rooms

Group = tuple[int, ...]  # the images of a batch


@dataclass(frozen=True)
class Batch(Values):
    """Features {t: {block: (N, P, C, h, w)}} as stored, class codes (N, H, W) uint8, and the images' indices.

    At t None the only block is IMAGE: the image itself, RGB uint8 (N, P, 3, 256, 256). The tensors are to be read only,
    and hold these images until the batch after the next is asked for: then their memory is filled again.
    """

    indices: Group


@dataclass(frozen=True)
class _Begun:
    """A batch that is being read; its futures give each image on the device, and what is to be kept of it."""

    group: Group
    buffer: Buffer | None
    images: list[Future[tuple[Values, Values | None]]]
    size_bytes: int


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
        self._image_bytes = image_bytes(store, self.wanted)
        self._places = places(store, self.wanted, device=device, memory_bytes=memory_bytes)  # what is left of them
        self._kept: dict[int, Values] = {}
        self._keeping: set[int] = set()  # those that are kept or on their way there
        self._threads = ThreadPoolExecutor(store.location.concurrency)
        self._expected: list[Group] = []
        self._begun: deque[_Begun] = deque()
        self._handed: deque[Buffer | None] = deque()  # of the batches last given away
        self._free: list[Buffer] = []

    @property
    def kept(self) -> int:
        """Number of images whose features are in memory."""
        return len(self._kept)

    def expect(self, indices: Sequence[int], batch_size: int) -> None:
        """Say what the call of `batches` after the next will ask for: it is begun while the next comes to its end.

        When something else is asked for after all, what was begun is in vain.
        """
        self._expected = _groups(indices, batch_size)

    def batches(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """The images in the order given, on the device; while one batch is used the next ones are being read."""
        groups = _groups(indices, batch_size)
        if [begun.group for begun in self._begun] != groups[: len(self._begun)]:
            self._drop()
        waiting = deque(groups[len(self._begun) :])
        for _ in groups:
            self._release()
            if not self._begun:
                self._begin(waiting.popleft())
            current = self._begun.popleft()
            self._begin_more(waiting)
            yield self._end(current)

    def _begin_more(self, waiting: deque[Group]) -> None:
        """Begin what comes next, and after it what is expected: one batch, more while they are small."""
        while True:
            if not waiting:
                waiting.extend(self._expected)
                self._expected = []
            under_way = sum(len(begun.group) for begun in self._begun)
            if not waiting or len(self._begun) >= self.store.location.concurrency:
                return
            if self._begun and (under_way + len(waiting[0])) * self._image_bytes > PREFETCH_BYTES:
                return
            self._begin(waiting.popleft())

    @torch.inference_mode(False)  # whoever asks may not learn from what he gets, but the next one may
    def _begin(self, group: Group) -> None:
        straight = len(group) == 1 or self.device.type != "cpu"  # what is kept on the device is not copied first
        kept = [self._kept.get(index) for index in group]
        ready = [straight and k is not None and k.masks.device.type == self.device.type for k in kept]
        buffer = None if all(ready) else self._buffer(len(group))
        images = []
        for n, (index, own) in enumerate(zip(group, kept, strict=True)):
            if ready[n]:
                images.append(Future())
                images[n].set_result((own, None))
            else:
                slot = buffer.values.each(lambda values, n=n: values[n])
                place = self._place(index) if own is None else None
                images.append(self._threads.submit(self._image, index, slot, own, place))
        self._begun.append(_Begun(group, buffer, images, kept.count(None) * self._image_bytes))

    def _end(self, begun: _Begun) -> Batch:
        """Wait for a batch and give it away."""
        images = self._wait(begun)
        self._handed.append(begun.buffer)
        if begun.buffer is not None and self.device.type == "cpu":
            found = begun.buffer.values.each(lambda values: values[: len(images)])
        else:
            found = stacked(images)
        return Batch(found.features, found.masks, begun.group)

    def _wait(self, begun: _Begun) -> list[Values]:
        images = [image.result() for image in begun.images]
        self.bytes_read += begun.size_bytes
        self._kept |= {i: keep for i, (_, keep) in zip(begun.group, images, strict=True) if keep is not None}
        if begun.buffer is not None:
            begun.buffer.all_asked_for()
        return [here for here, _ in images]

    def _drop(self) -> None:
        """Let go what nobody asks for, errors in it too."""
        while self._begun:
            begun = self._begun.popleft()
            wait(begun.images)
            if not any(image.exception() for image in begun.images):
                self._wait(begun)
                self._free += [begun.buffer] if begun.buffer is not None else []

    def _image(
        self, index: int, slot: Values, kept: Values | None, place: torch.device | None
    ) -> tuple[Values, Values | None]:
        """Fill a slot from what is kept or from the store; the image on the device, and a copy to keep at a place."""
        if kept is None:
            read_image(self.store, index, slot)
        else:
            copy_image(kept, slot)
        on_gpu, here = self.device.type == "cuda", slot
        if self.device.type != "cpu":
            here = slot.each(lambda values: values.to(self.device, non_blocking=on_gpu))
        if place is None:
            return here, None
        return here, slot.each(own_copy) if place.type == "cpu" else here

    def _place(self, index: int) -> torch.device | None:
        """Where an image is to be kept, if it has not got a place yet and there is one."""
        place = next((place for place, left in self._places.items() if left), None)
        if place is None or index in self._keeping:
            return None
        self._places[place] -= 1
        self._keeping.add(index)
        return place

    def _buffer(self, images: int) -> Buffer:
        buffer = next((free for free in self._free if free.images >= images), None)
        if buffer is None:
            return Buffer(self.store, self.wanted, images, device=self.device)
        self._free.remove(buffer)
        buffer.wait()
        return buffer

    def _release(self) -> None:
        """Let the memory of the batches given away be filled again, but for the last one's."""
        while len(self._handed) > 1:
            if (buffer := self._handed.popleft()) is not None:
                self._free.append(buffer)


def wanted_by(configs: Iterable[Config]) -> dict[int | None, tuple[int, ...]]:
    """What heads that are trained together read: timestep (None: the image) -> blocks."""
    blocks: dict[int | None, set[int]] = {}
    for config in configs:
        blocks.setdefault(config.t, set()).update(config.blocks)
    return {t: tuple(sorted(blocks[t])) for t in sorted(blocks)}


def places(
    store: FeatureStore,
    wanted: Mapping[int | None, Sequence[int]],
    *,
    device: torch.device,
    memory_bytes: int | None = None,
) -> dict[torch.device, int]:
    """How many images' features a FeatureReader may keep in each place, the first to fill first."""
    one = image_bytes(store, wanted)
    return {place: room // one for place, room in rooms(device, memory_bytes).items()}


def _groups(indices: Sequence[int], batch_size: int) -> list[Group]:
    return [tuple(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]


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
