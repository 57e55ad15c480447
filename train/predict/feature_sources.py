"""Where a prediction takes the features of its windows from: a model that computes them, or the stores of its run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pathseg.store.features import FeatureStore
from pathseg.store.grid import PatchGrid, margin_px
from pathseg.store.key import StoreKey
from pathseg.store.records import PIXELS, checksum, file_states
from pathseg.store.runtime.prefetch import prefetch_map
from pathseg.store.runtime.printable import composed
from pathseg.store.sampling import InputImage, read_field
from pathseg.train.config import IMAGE, Layer
from pathseg.train.data.joined import JoinedStores
from pathseg.train.data.reader import FeatureReader
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.sliding_window import SlidingWindow, WindowAxis
from pathseg.train.predict.trained_head import TrainedHead

# patches (P, 256, 256, 3) uint8, their indices and the image id -> {block: (P, C, h, w)}
ComputeFeatures = Callable[[np.ndarray, Sequence[int], str], Mapping[int, torch.Tensor]]
WindowFeatures = dict[Layer, torch.Tensor]  # of N windows, {layer: (N, P, C, h, w)}
READ_THREADS = 3  # two batches of windows are read while one is computed
STORED_BATCH = 16  # patches of stored features that a head takes at once
MAX_NAMED = 5  # of the slides in a message


class LoadFeatures(Protocol):
    """Load the model that made a store's features and return the function that computes features of new patches."""

    def __call__(self, key: StoreKey, t: int, blocks: Sequence[int], *, batch_size: int) -> ComputeFeatures:
        """Raises ValueError when the model is not the one that made the features of the store with this key."""


class FeatureSource(Protocol):
    """The windows that a head predicts of an image, and the features of these windows."""

    @property
    def stored(self) -> bool:
        """Whether the features are read from a store."""

    @property
    def overlap(self) -> int:
        """Px that neighbouring windows share at least."""

    @property
    def batch_size(self) -> int:
        """Patches that the head takes at once."""

    def windows(self, image: InputImage, tissue: np.ndarray | None) -> SlidingWindow:
        """Lay windows over an image; of those with tissue, (h, w) bool over the whole image, or without it of all.

        Raises ValueError where a window has no features.
        """

    def features(
        self, image: InputImage, windows: SlidingWindow, batches: Sequence[range]
    ) -> Generator[WindowFeatures, None, None]:
        """Yield the features of each batch of windows, which are valid until the next batch; more are read meanwhile.

        batches: positions in `windows.selected`, of one length but the last. The caller closes the generator. Raises
        ValueError for features that are not finite.
        """


OpenFeatures = Callable[[TrainedHead, PredictConfig], FeatureSource]


def computed_features(load_features: LoadFeatures) -> OpenFeatures:
    """Return a function that opens the features which the models of a head compute.

    load_features: loads a model and returns its `online_features` (pathseg.extract.online_features); called once for
    each store that the head was trained from, with its key, timestep and blocks.
    """

    def open_features(head: TrainedHead, config: PredictConfig) -> FeatureSource:
        compute = tuple(
            load_features(source.key, t, blocks, batch_size=config.batch_size or source.key.batch_size)
            for source, (t, blocks) in zip(head.sources, head.settings.selections, strict=True)
        )
        return ModelFeatures(head, compute, config)

    return open_features


def stored_features(stores: FeatureStore | JoinedStores) -> OpenFeatures:
    """Return a function that opens the features of slides in the stores that a head was trained from.

    The function raises ValueError for a store that the head was not trained from, for one of its stores that is not
    given, and for stores without windows of slides.
    """

    def open_features(head: TrainedHead, config: PredictConfig) -> FeatureSource:
        joined = JoinedStores.of(stores)
        return StoredFeatures(head, _in_order_of_sources(head, joined), config)

    return open_features


@dataclass(frozen=True)
class ModelFeatures:
    """Features that models compute of overlapping windows; a `FeatureSource`.

    compute: one function for each store that the head was trained from. The noise of a patch depends on its index and
    on the image id, so they are part of the method: the id is the stem of the file; the index is that of the patch in
    its window, plus the window's number (row by row, windows without tissue counted) times the patches per window. An
    image of one window so gets the features of the store.

    Raises ValueError for an overlap that does not fit the head's windows.
    """

    head: TrainedHead
    compute: tuple[ComputeFeatures, ...]
    config: PredictConfig

    stored = False

    def __post_init__(self) -> None:
        for side in self.head.sampling.size:
            WindowAxis(side, side, self.overlap)

    @property
    def overlap(self) -> int:
        """Px that neighbouring windows share at least."""
        return self.config.overlap

    @property
    def batch_size(self) -> int:
        """Patches per forward pass."""
        return self.config.batch_size or min(source.key.batch_size for source in self.head.sources)

    def windows(self, image: InputImage, tissue: np.ndarray | None) -> SlidingWindow:
        """Lay windows over an image."""
        return SlidingWindow.over(image.size, window=self.head.sampling.size, overlap=self.overlap, tissue=tissue)

    def features(
        self, image: InputImage, windows: SlidingWindow, batches: Sequence[range]
    ) -> Generator[WindowFeatures, None, None]:
        """Read the windows of each batch in threads and compute their features."""
        height, width = self.head.sampling.size
        grid = PatchGrid.of(height, width)
        margin = margin_px(max(source.key.field_patches for source in self.head.sources))  # seen around a window

        def read(batch: range) -> np.ndarray:
            corners = [windows.corner(windows.selected[index]) for index in batch]
            return np.stack([read_field(image, y, x, height, width, margin=margin) for y, x in corners])

        def size_bytes(batch: range) -> int:
            return len(batch) * (height + 2 * margin) * (width + 2 * margin) * 3

        # closed at the end, so that after an error no thread reads the image while its caller closes it
        with closing(prefetch_map(read, batches, threads=READ_THREADS, size_bytes=size_bytes)) as batches_read:
            for batch, pixels in zip(batches, batches_read, strict=True):
                yield self._compute(image.id, [windows.selected[index] for index in batch], pixels, grid)

    def _compute(self, image_id: str, numbers: Sequence[int], pixels: np.ndarray, grid: PatchGrid) -> WindowFeatures:
        """Compute the features of windows (N, H + 2m, W + 2m, 3) with these numbers; m: the margin around them."""
        indices = [number * grid.patches + patch for number in numbers for patch in range(grid.patches)]
        features: WindowFeatures = {}
        if IMAGE in self.head.settings.layers:
            patches = np.stack([grid.cut(window) for window in pixels]).transpose(0, 1, 4, 2, 3)
            features[IMAGE] = torch.from_numpy(np.ascontiguousarray(patches))  # (N, P, 3, 256, 256)
        for number, (source, compute) in enumerate(zip(self.head.sources, self.compute, strict=True)):
            t = self.head.settings.selections[number].t
            patches = np.concatenate([grid.cut(window, source.key.field_patches) for window in pixels])
            for block, values in compute(patches, indices, image_id).items():
                if not bool(torch.isfinite(values).all()):
                    raise ValueError(
                        f"{image_id} has features of block {block} that {source.key.dtype} cannot hold; "
                        f"{_wider(source.key)}"
                    )
                features[Layer(number, t, block)] = values.unflatten(0, (len(numbers), grid.patches))
        return features


@dataclass(frozen=True)
class StoredFeatures:
    """Features of slides from the stores that a head was trained from, which need no model; a `FeatureSource`.

    stores: of the head's sources, in their order. The windows are those of the stores: side by side, without overlap.
    """

    head: TrainedHead
    stores: JoinedStores
    config: PredictConfig

    stored, overlap, batch_size = True, 0, STORED_BATCH

    def __post_init__(self) -> None:
        store = self.stores.images
        if any(entry.corner is not None for entry in store.contents.images):
            return
        if store.contents.key.dataset == "slides":
            raise ValueError(
                f"{store.location} does not say where its windows lie; run pathseg extract --dataset slides again, "
                "which adds that"
            )
        raise ValueError(
            f"{store.location} holds images of {store.contents.key.dataset}, no windows of slides; leave --store out"
        )

    def windows(self, image: InputImage, tissue: np.ndarray | None) -> SlidingWindow:
        """Select windows of the store. Raises ValueError for a slide of which there is none, or that has changed."""
        own, store = self._indices(image), self.stores.images
        if not own:
            slides = dict.fromkeys(entry.slide for entry in store.contents.images if entry.slide is not None)
            named = ", ".join([*list(slides)[:MAX_NAMED], *["…"] * (len(slides) > MAX_NAMED)])
            raise ValueError(
                f"{image.path}: {store.location} has no windows of a slide {image.id}, only of {named}; run pathseg "
                "extract --dataset slides --windows tissue with it in the folder, or leave --store out"
            )
        windows = SlidingWindow.over(image.size, window=self.head.sampling.size, overlap=0, tissue=tissue)
        wanted = [own.get(windows.corner(number)) for number in windows.selected]
        if missing := [index for index in wanted if index is None or not self._complete(index)]:
            kind, taken, way_out = "windows with tissue", "tissue", ""
            if tissue is None and image.slide:
                kind, taken, way_out = "windows, with and without tissue,", "all", ", or pass --tissue otsu"
                if self.config.tissue != "all":
                    way_out = ", or leave --truth out: without a background class it scores what lies beside the tissue"
            raise ValueError(
                f"{image.path}: {len(missing)} of {len(wanted)} {kind} have no features in "
                f"{' or '.join(dict.fromkeys(str(store.location) for store in self.stores.stores))}; run pathseg "
                f"extract --dataset slides --windows {taken} --store {store.location}{way_out}"
            )
        self._require_unchanged(image, windows, [index for index in wanted if index is not None])
        return windows

    def features(
        self, image: InputImage, windows: SlidingWindow, batches: Sequence[range]
    ) -> Generator[WindowFeatures, None, None]:
        """Read the features of each batch with `FeatureReader`."""
        own = self._indices(image)
        indices = [own[windows.corner(windows.selected[position])] for batch in batches for position in batch]
        reader = FeatureReader(self.stores, self.head.settings.layers, device=self.head.device, memory_bytes=0)
        for batch in reader.batches(indices, max(map(len, batches), default=1)):
            yield batch.features

    def _indices(self, image: InputImage) -> dict[tuple[int, int], int]:
        """Return the index of each window of a slide, turned and flipped views left out, by its first px (y, x).

        Without a slide of the very name, one whose name differs in the form of Unicode alone is taken. Raises
        ValueError where several do.
        """
        images, name = self.stores.images.contents.images, image.id
        names = {entry.slide for entry in images if entry.slide is not None}
        if name not in names and (alike := sorted(one for one in names if composed(one) == composed(name))):
            if len(alike) > 1:
                raise ValueError(
                    f"{image.path}: {self.stores.images.location} has windows of {len(alike)} slides whose names differ"
                    f" in the form of Unicode alone; rename the file as one of {', '.join(map(ascii, alike))}"
                )
            (name,) = alike
        return {
            entry.corner: index
            for index, entry in enumerate(images)
            if entry.slide == name and entry.corner is not None and not entry.view
        }

    def _complete(self, index: int) -> bool:
        """Whether all that the head reads of an image is stored."""
        reads = self.stores.arrays(self.head.settings.layers)
        return self.stores.images.complete(index, (), ()) and all(
            store.complete(index, (t,), blocks) for store, t, blocks in reads
        )

    def _require_unchanged(self, image: InputImage, windows: SlidingWindow, indices: Sequence[int]) -> None:
        """Raise ValueError unless windows of a slide have the pixels that the features were computed from.

        Where the file has the recorded size and times they have; else they are read and compared.
        """
        store, (height, width) = self.stores.images, self.head.sampling.size
        state = file_states([image.files])

        def unknown(index: int) -> bool:
            unit, position = divmod(index, store.contents.images_per_unit)
            recorded = store.records.read(PIXELS, unit).sources[position : position + 1]
            return not recorded or recorded[0] is None or recorded[0].split()[0] != state

        corners = [windows.corner(number) for number in windows.selected]
        to_read = [(index, corner) for index, corner in zip(indices, corners, strict=True) if unknown(index)]

        def differs(item: tuple[int, tuple[int, int]]) -> tuple[int, int] | None:
            index, (y, x) = item
            same = checksum(image.read(y, x, height, width)) == store.records.checksum_of(PIXELS, "images", index)
            return None if same else (y, x)

        with closing(
            prefetch_map(differs, to_read, threads=READ_THREADS, size_bytes=lambda item: height * width * 3)
        ) as compared:
            if corner := next((corner for corner in compared if corner is not None), None):
                raise ValueError(
                    f"{image.path}: the slide is not the one that the features in {store.location} were computed from, "
                    f"the window at x {corner[1]}, y {corner[0]} px at {image.mpp} um/px differs; bring the old file "
                    "back or leave --store out"
                )


def store_file_mpp(stores: JoinedStores) -> float | None:
    """Return the um/px that slides were taken to have in place of what they state (`extract --mpp`), None without."""
    value = stores.images.contents.key.preprocessing.settings.get("file_mpp")
    return value if isinstance(value, int | float) else None


def _in_order_of_sources(head: TrainedHead, given: JoinedStores) -> JoinedStores:
    """Return for each source of a head the given store with its features.

    Raises ValueError, naming what differs, for a store of other features and for a source without a store.
    """
    keys = [source.key.of_features for source in head.sources]
    for store in given.stores:
        if (key := store.contents.key).of_features not in keys:
            closest = min(keys, key=lambda wanted: len(key.differences(wanted)))
            differing = "; ".join(key.differences(closest))
            raise ValueError(
                f"run {head.name} was not trained from {store.location}: {differing}; pass the store of its training, "
                f"{' and '.join(dict.fromkeys(source.store for source in head.sources))}"
            )
    found = []
    for source, key in zip(head.sources, keys, strict=True):
        matching = [store for store in given.stores if store.contents.key.of_features == key]
        if not matching:
            count = len({one.store for one in head.sources})
            raise ValueError(
                f"run {head.name} was trained from {count} stores, but none of those given has the features of "
                f"{source.store} (model {key.model}); add --store NAME={source.store}"
            )
        found.append(next((store for store in matching if str(store.location) == source.store), matching[0]))
    names = {str(store.location): name for store, name in zip(given.stores, given.names, strict=True)}
    return JoinedStores(tuple(found), tuple(names[str(store.location)] for store in found))


def _wider(key: StoreKey) -> str:
    """The way out where features overflow a store's type."""
    if key.dtype == "float16":
        return "extract with --dtype float32 and train the head from that store"
    return f"the model computed them in {key.precision}; extract with another --precision or --t"
