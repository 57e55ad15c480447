"""Batches of cached features: prefetched in threads, and read only once where they fit into memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch

from pathseg.store.features import FeatureStore
from pathseg.store.format.packing import CACHED_VALUES, for_cells
from pathseg.store.grid import PATCH_PX
from pathseg.store.runtime.prefetch import PREFETCH_BYTES
from pathseg.train.config import IMAGE, Config, Layer
from pathseg.train.data.joined import JoinedStores
from pathseg.train.data.memory import keep_limits

NUMPY_BUFFER = 1024  # values; into its buffer NumPy copies the scale for each cell of a channel with fewer cells


@dataclass(frozen=True)
class Sample:
    """What is stored of one image: features {layer: (P, C, h, w)} and class codes (H, W) uint8.

    scales: (C,) float32 of each layer whose features are scaled (`format.packing`), so whole numbers int8; the others
    are in the store's dtype. Several images together have a leading dimension N. The layer IMAGE is the image itself,
    RGB uint8 (P, 3, 256, 256).
    """

    features: dict[Layer, torch.Tensor]
    scales: dict[Layer, torch.Tensor]
    masks: torch.Tensor

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
        """Return a sample of the changed tensors."""
        features, scales = (
            {layer: change(values) for layer, values in of_layers.items()} for of_layers in (self.features, self.scales)
        )
        return Sample(features, scales, change(self.masks))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield all tensors, always in the same order."""
        yield from self.features.values()
        yield from self.scales.values()
        yield self.masks


@dataclass(frozen=True)
class Batch:
    """Features {layer: (N, P, C, h, w)}, class codes (N, H, W) uint8 and the indices of the images.

    Features are in the store's dtype, or float32 where they are stored scaled. The tensors are read-only, and valid
    until the next batch is requested: then their memory is filled again.
    """

    features: dict[Layer, torch.Tensor]
    masks: torch.Tensor
    indices: tuple[int, ...]


class FeatureReader:
    """Read chosen layers of one store or of several joined ones, image by image, into batches on a device.

    A bounded queue of batches is read ahead by threads, into buffers that are used again and again: on a CPU, fresh
    memory for each batch costs as much as reading it. What fits into memory stays there as it is stored and is not
    read again: on a GPU in the GPU's memory, then in the machine's. Values that are stored scaled are multiplied on the
    device, when their batch is due. `bytes_read` counts bytes read from the store.
    """

    def __init__(
        self,
        stores: FeatureStore | JoinedStores,
        required: Collection[Layer],
        *,
        device: torch.device,
        memory_bytes: int | None = None,
    ) -> None:
        """memory_bytes: see `memory.keep_limits`."""
        self.stores, self.device = JoinedStores.of(stores), device
        self.store = self.stores.images
        self.required = tuple(required)
        self.bytes_read = 0
        self._image_bytes = image_bytes(self.stores, self.required)
        self._capacity = keep_capacity(
            self.stores, self.required, device=device, memory_bytes=memory_bytes
        )  # images left
        self._kept: dict[int, Sample] = {}
        self._reserved: set[int] = set()  # images that are kept, or being read to be kept
        self._concurrency = max(store.location.concurrency for store in self.stores.stores)
        self._threads = ThreadPoolExecutor(self._concurrency)
        self._cores = torch.get_num_threads()
        self._arithmetic = ThreadPoolExecutor(self._cores, initializer=np.setbufsize, initargs=(NUMPY_BUFFER,))
        self._buffers: dict[int, list[Sample]] = {}  # batch size -> the buffers of its queue
        self._values: dict[Layer, torch.Tensor] = {}  # of the batch in use, where values are stored scaled
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def kept(self) -> int:
        """Number of images whose features are in memory."""
        return len(self._kept)

    def batches(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Yield the images in the order given, on the device; the next batches are read while one is in use.

        Raises what reading the store raises, when the batch is due.
        """
        groups = [tuple(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
        depth = max(1, min(self._concurrency, PREFETCH_BYTES // (batch_size * self._image_bytes)))
        buffers = self._buffers.setdefault(batch_size, [])
        while len(buffers) < min(depth + 1, len(groups)):  # those being read and the one in use
            buffers.append(self._new_buffer(batch_size))
        pending: deque[list[Future[Sample]]] = deque()

        def start(number: int) -> None:
            if number < len(groups):
                pending.append(self._start(groups[number], buffers[number % len(buffers)]))

        try:
            for number in range(depth):
                start(number)
            for number, group in enumerate(groups):
                samples = [future.result() for future in pending[0]]
                pending.popleft()
                start(number + depth)  # into the buffer of the last batch, which the caller no longer uses
                yield self._batch(group, samples, buffers[number % len(buffers)])
        finally:
            wait([future for futures in pending for future in futures])  # they write into the buffers

    def _start(self, group: tuple[int, ...], buffer: Sample) -> list[Future[Sample]]:
        """Start to read the images of a batch, each into its slot of the buffer."""
        futures = []
        for n, index in enumerate(group):
            if index not in self._kept:
                self.bytes_read += self._image_bytes
            slot = buffer.map(itemgetter(n))
            direct = len(group) == 1 or self.device.type != "cpu"
            futures.append(self._threads.submit(self._load, index, slot, self._reserve(index), direct))
        return futures

    def _reserve(self, index: int) -> torch.device | None:
        """Return the device in whose memory an image is to be kept; None if there is none, or it is kept already."""
        device = next((device for device, images in self._capacity.items() if images), None)
        if device is None or index in self._reserved:
            return None
        self._capacity[device] -= 1
        self._reserved.add(index)
        return device

    def _load(self, index: int, slot: Sample, keep: torch.device | None, direct: bool) -> Sample:
        """Return the sample of an image on the device, from memory or from the store; runs in a thread.

        slot: machine memory that may be filled, of a GPU pinned. direct: the sample may also lie elsewhere.
        """
        sample = self._kept.get(index)
        if sample is None:
            sample = slot.map(torch.empty_like) if keep is not None and keep.type == "cpu" else slot
            read_image(self.stores, index, sample)
            if sample is not slot:
                self._kept[index] = sample
        if sample.masks.device.type != "cpu" or (direct and self.device.type == "cpu"):
            return sample
        if sample is not slot:
            copy_sample(sample, slot)
        if self.device.type == "cpu":
            return slot
        sample = self._to_device(slot)
        if keep == self.device:
            self._kept[index] = sample
        return sample

    def _to_device(self, slot: Sample) -> Sample:
        """Copy a sample to the device; it is there, and its slot free, when this returns.

        On a GPU the copy runs on a stream of its own: on the default stream it would wait for the kernels of the heads.
        """
        if self._copies is None:
            return slot.map(lambda values: values.to(self.device))
        copied = torch.cuda.Event(blocking=True)
        with torch.cuda.stream(self._copies):
            sample = slot.map(lambda values: values.to(self.device, non_blocking=True))
            copied.record(self._copies)
        copied.synchronize()
        return sample

    def _batch(self, group: tuple[int, ...], samples: list[Sample], buffer: Sample) -> Batch:
        """Assemble the samples of a batch."""
        if len(samples) == 1:
            found = samples[0].map(lambda values: values[None])
        elif self.device.type == "cpu":
            found = buffer.map(lambda values: values[: len(samples)])
        else:
            found = _stack(samples)
        if self._copies is not None:
            for sample in samples:
                for values in sample.tensors():  # allocated on the copy stream, used on this one
                    values.record_stream(torch.cuda.current_stream(self.device))
        return Batch(found.features | self._unscaled(found), found.masks, group)

    @torch.inference_mode(False)  # as for `_new_buffer`
    @torch.no_grad()
    def _unscaled(self, stored: Sample) -> dict[Layer, torch.Tensor]:
        """Multiply the whole numbers of a batch by their scales, in the memory that the last batch had.

        On a CPU the patches are shared out among threads of NumPy, which multiply what they have converted while it is
        in the cache; torch converts all values first, and its threads wait for each other. On a GPU it is one kernel.
        """
        found: dict[Layer, torch.Tensor] = {}
        patches: list[tuple[np.ndarray, ...]] = []
        for layer, scales in stored.scales.items():
            integers = stored.features[layer]
            values = self._values.get(layer)
            if values is None or len(values) < len(integers):
                values = self._values[layer] = torch.empty(integers.shape, device=integers.device)
            found[layer] = values = values[: len(integers)]
            if integers.device.type != "cpu":
                torch.mul(integers, for_cells(scales), out=values)
                continue
            for arrays in zip(integers.numpy(), scales.numpy(), values.numpy(), strict=True):
                whole, of_image, out = arrays
                patches += [(one, of_image, own) for one, own in zip(whole, out, strict=True)]
        shares = [patches[first :: self._cores] for first in range(min(self._cores, len(patches)))]
        for _ in self._arithmetic.map(_multiply, shares):
            pass
        return found

    @torch.inference_mode(False)  # tensors allocated in inference mode could not be trained on in a later epoch
    def _new_buffer(self, images: int) -> Sample:
        """Allocate machine memory for so many images, pinned for a GPU."""

        def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            return torch.empty((images, *shape), dtype=dtype, pin_memory=self.device.type == "cuda")

        features: dict[Layer, torch.Tensor] = {}
        scales: dict[Layer, torch.Tensor] = {}
        for layer in self.required:
            if layer == IMAGE:
                features[layer] = empty((self.store.contents.grid.patches, 3, PATCH_PX, PATCH_PX), torch.uint8)
                continue
            values, *of_scales = self.stores.stored_arrays(layer)
            features[layer] = empty(values.shape, _torch_dtype(values.dtype))
            if of_scales:
                scales[layer] = empty(of_scales[0].shape, _torch_dtype(of_scales[0].dtype))
        return Sample(features, scales, empty(self.store.contents.key.size, torch.uint8))


def _multiply(patches: Iterable[tuple[np.ndarray, ...]]) -> None:
    """Fill patches (C, h, w) float32 with whole numbers (C, h, w) int8 times scales (C,): (numbers, scales, patch)."""
    for integers, scales, out in patches:
        step = max(1, CACHED_VALUES // out[0].size)  # channels
        for first in range(0, len(out), step):
            channels = slice(first, first + step)
            np.copyto(out[channels], integers[channels])
            out[channels] *= scales[channels, None, None]


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _stack(samples: Sequence[Sample]) -> Sample:
    """Stack the samples of several images along a new first dimension."""
    stacked = map(torch.stack, zip(*(sample.tensors() for sample in samples), strict=True))
    return samples[0].map(lambda values: next(stacked))


def read_image(stores: JoinedStores, index: int, into: Sample) -> None:
    """Read an image into tensors in the machine's memory. Raises what reading the stores raises."""
    arrays = {
        layer: [of_layer[layer].numpy() for of_layer in (into.features, into.scales) if layer in of_layer]
        for layer in into.features
    }
    for image in arrays.pop(IMAGE, ()):
        patches = stores.images.contents.grid.cut(stores.images.image(index))  # (P, 256, 256, 3)
        np.copyto(image, patches.transpose(0, 3, 1, 2))
    stores.read(index, arrays)
    np.copyto(into.masks.numpy(), stores.images.mask(index))


def copy_sample(sample: Sample, into: Sample) -> None:
    """Copy tensors to others, both in the machine's memory."""
    for values, own in zip(sample.tensors(), into.tensors(), strict=True):
        np.copyto(own.numpy(), values.numpy())  # torch would start as many threads for it as it computes with


def image_bytes(stores: JoinedStores, required: Collection[Layer]) -> int:
    """Return the bytes that a sample takes: these layers and the mask."""
    height, width = stores.images.contents.key.size
    return stores.image_bytes(required) + height * width * (4 if IMAGE in required else 1)


def keep_capacity(
    stores: JoinedStores, required: Collection[Layer], *, device: torch.device, memory_bytes: int | None = None
) -> dict[torch.device, int]:
    """Return how many images' features may be kept in the memory of each device, the first to be filled first."""
    one = image_bytes(stores, required)
    return {keep: limit // one for keep, limit in keep_limits(device, memory_bytes).items()}


def required_layers(configs: Iterable[Config]) -> tuple[Layer, ...]:
    """Return the layers that heads which are trained together read, ascending, each once."""
    return tuple(sorted({layer for config in configs for layer in config.layers}))


def class_pixels(store: FeatureStore, indices: Sequence[int]) -> np.ndarray:
    """Count the pixels of each class in the masks of these images, (K,) int64; ignored ones count for none.

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
