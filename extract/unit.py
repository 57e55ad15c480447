"""One unit of work of stage one: find what the store lacks, decode images, compute features, write and record them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset, Pixels, Sample
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.models.noise import patch_noise
from pathseg.extract.surroundings import centre, load_field
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.layout import to_layout
from pathseg.store.records import PIXELS, ArraySet, checksum
from pathseg.store.writer import StoreWriter

TimestepBlocks = dict[int, tuple[int, ...]]  # timestep -> blocks
BlockMaps = dict[int, list[torch.Tensor | None]]  # block -> (P, C, h, w) of each image, None = set aside


@dataclass(frozen=True)
class Failure:
    """An image that was set aside, and the reason."""

    id: str
    reason: str


@dataclass(frozen=True)
class MissingWork:
    """What the store lacks of a unit: the pixels, and blocks at timesteps. False when the unit is complete."""

    pixels: bool
    blocks: TimestepBlocks

    def __bool__(self) -> bool:
        return self.pixels or bool(self.blocks)


@dataclass(frozen=True)
class LoadedUnit:
    """The decoded images of a unit, None where one was set aside; no images when nothing is missing.

    patches: of each image what the model sees of them, (P, 256, 256, 3) uint8, where features are missing. sources: of
    each image `source_state` before it was read.
    """

    unit: int
    missing: MissingWork
    images: tuple[Pixels | None, ...] = ()
    patches: tuple[np.ndarray | None, ...] = ()
    failures: tuple[Failure, ...] = ()
    sources: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class ComputedUnit:
    """The missing features of a unit.

    maps: by timestep, native and float32 on the model's device. computed: on a GPU the event after the kernels that
    compute them, None on other devices.
    """

    loaded: LoadedUnit
    maps: dict[int, BlockMaps]
    computed: torch.cuda.Event | None


@dataclass(frozen=True)
class Extraction:
    """The steps of each unit of work in one process, and the objects that they share: load, compute, write.

    Each step may run in its own thread. blocks: those of the model that are stored.
    """

    dataset: Dataset
    model: FeatureModel
    writer: StoreWriter
    config: ExtractConfig
    blocks: tuple[int, ...]

    def ids(self, unit: int) -> list[str]:
        """Return the ids of a unit's images."""
        return [self.dataset.samples[index].id for index in self.writer.images(unit)]

    def patches(self, unit: int) -> int:
        """Return the number of patches of a unit."""
        return len(self.writer.images(unit)) * self.writer.store.contents.grid.patches

    def missing(self, unit: int) -> MissingWork:
        """Return what the store lacks of a unit, as far as its records were read."""
        return missing_work(self.writer.store, unit, self.config.t, self.blocks)

    def unfinished_units(self) -> list[int]:
        """Return the units of which something is missing, as far as the records were read."""
        return [unit for unit in range(self.writer.store.contents.units) if self.missing(unit)]

    def load(self, unit: int) -> LoadedUnit:
        """Decode the images of a unit, unless another run has completed it meanwhile; unreadable ones are set aside.

        Raises StoreError when an image differs from the one that the store has under its id.
        """
        missing = self._missing_now(unit)
        images: list[Pixels | None] = []
        patches: list[np.ndarray | None] = []
        failures, sources = [], []
        for index in self.writer.images(unit) if missing else ():
            sample = self.dataset.samples[index]
            sources.append(source_state(self.dataset, sample))
            try:
                pixels = self.dataset.load(sample)
                cut = self._patches_of(sample, pixels.image) if missing.blocks else None
            except (ValueError, OSError) as e:
                failures.append(Failure(sample.id, str(e)))
                images.append(None)
                patches.append(None)
            else:
                if self.writer.store.records.done(PIXELS, index) and (arrays := _changed(self.writer, index, pixels)):
                    raise StoreError(_changed_message(self.writer.store, {sample.id: arrays}))
                images.append(pixels)
                patches.append(cut)
        return LoadedUnit(unit, missing, tuple(images), tuple(patches), tuple(failures), tuple(sources))

    def compute(self, loaded: LoadedUnit) -> ComputedUnit:
        """Compute the missing features of a unit.

        A batch holds patches of one image only, from its first patch on, so that the numbers do not depend on where a
        run was interrupted.
        """
        wanted = loaded.missing.blocks
        maps: dict[int, BlockMaps] = {t: {block: [] for block in blocks} for t, blocks in wanted.items()}
        for image_id, patches in zip(self.ids(loaded.unit), loaded.patches, strict=True):
            batches = {}
            if patches is not None:
                batches = compute_patches(self.model, patches, range(len(patches)), image_id, wanted, self.config)
            for t, blocks in maps.items():
                for block, images in blocks.items():
                    images.append(torch.cat(batches[t][block]) if batches else None)
        computed = None
        if self.model.device.type == "cuda":
            computed = torch.cuda.Event()
            computed.record(torch.cuda.current_stream(self.model.device))
        return ComputedUnit(loaded, maps, computed)

    def write(self, unit: ComputedUnit) -> None:
        """Write and record a unit: its pixels if they are missing, then its features, timestep by timestep.

        On a GPU, upsampling and copies run on a stream of their own: on the default stream they would wait for the
        forward pass of the next unit, whose kernels are queued there already.
        """
        loaded = unit.loaded
        if not any(loaded.images):
            return
        if loaded.missing.pixels:
            pixels = [None if image is None else (image.image, image.mask, image.instances) for image in loaded.images]
            self.writer.write_pixels(loaded.unit, pixels, sources=loaded.sources)
        with torch.cuda.stream(self._copy_stream):  # None: no effect
            if self._copy_stream is not None and unit.computed is not None:
                self._copy_stream.wait_event(unit.computed)
            for t, blocks in unit.maps.items():
                self.writer.write_features(loaded.unit, t=t, features=_stored_maps(blocks, self.config))

    def _patches_of(self, sample: Sample, image: np.ndarray) -> np.ndarray:
        """Return what the model sees of an image's patches, (P, 256, 256, 3) uint8."""
        times = self.config.surroundings
        seen = image if times == 1 else load_field(self.dataset, sample, image, times)
        return self.writer.store.contents.grid.cut(seen, times)

    @cached_property
    def _copy_stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.Stream(self.model.device) if self.model.device.type == "cuda" else None

    def _missing_now(self, unit: int) -> MissingWork:
        """Return what is missing after looking for records that other runs have written since the store was opened."""
        missing, records = self.missing(unit), self.writer.store.records
        for arrays in (PIXELS, *(ArraySet(t, blocks) for t, blocks in missing.blocks.items())):
            records.refresh(arrays, unit)
        return self.missing(unit) if missing else missing


def missing_work(store: FeatureStore, unit: int, timesteps: Iterable[int], blocks: Iterable[int]) -> MissingWork:
    """Return what the store lacks of a unit: pixels and blocks that at least one of its images lacks."""
    records, images, blocks = store.records, store.contents.unit_images(unit), tuple(blocks)
    by_timestep = {t: {block for index in images for block in records.missing(t, blocks, index)} for t in timesteps}
    return MissingWork(
        pixels=not all(records.done(PIXELS, index) for index in images),
        blocks={t: tuple(sorted(missing)) for t, missing in by_timestep.items() if missing},
    )


def compute_patches(
    model: FeatureModel,
    patches: np.ndarray,
    indices: Sequence[int],
    image_id: str,
    wanted: TimestepBlocks,
    config: ExtractConfig,
) -> dict[int, dict[int, list[torch.Tensor]]]:
    """Compute features of an image's patches: timestep -> block -> one float32 tensor (n, C, h, w) per batch.

    patches: (P, 256, 256, 3) uint8, as `PatchGrid.cut` gives them. indices: of the patches in their image; the noise
    depends on them. Of fields wider than a patch the cells on the patch are returned.
    """
    maps: dict[int, dict[int, list[torch.Tensor]]] = {t: {block: [] for block in wanted[t]} for t in wanted}
    for start in range(0, len(patches), config.batch_size):
        batch = slice(start, start + config.batch_size)
        with _autocast(model, config):
            z0, context = model.prepare(patches[batch])
            for t, blocks in wanted.items():
                noise = _noise(model, image_id, indices[batch], t, config.seed)
                for block, values in model.denoise(z0, context, t, blocks, noise).items():
                    maps[t][block].append(centre(values, config.surroundings).float())
    return maps


def _autocast(model: FeatureModel, config: ExtractConfig) -> AbstractContextManager[object]:
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(model.device.type, dtype=getattr(torch, config.precision))


def _noise(model: FeatureModel, image_id: str, patches: Sequence[int], t: int, seed: int) -> torch.Tensor | None:
    """Return the noise of a batch of patches, (N, z, h, w); None for a model without latents."""
    shape = model.latent_shape
    if shape is None:
        return None
    return torch.stack([patch_noise(shape, seed=seed, image_id=image_id, patch=patch, t=t) for patch in patches])


def _stored_maps(maps: BlockMaps, config: ExtractConfig) -> Iterator[tuple[int, list[np.ndarray | None]]]:
    """Yield block by block the maps as they are stored, so that only one block is upsampled at a time."""
    for block, images in maps.items():
        yield block, [None if image is None else _stored_map(image, config) for image in images]


@torch.inference_mode()
def _stored_map(maps: torch.Tensor, config: ExtractConfig) -> np.ndarray:
    """Bring maps (P, C, h, w) of one image to layout and dtype of the store and copy them to the host."""
    stored = to_layout(maps, config.layout).to(getattr(torch, config.dtype))
    if not stored.is_cuda:
        return stored.cpu().numpy()
    stream = torch.cuda.current_stream(stored.device)
    maps.record_stream(stream)  # allocated on another stream, whose allocator must not reuse the memory before this one
    host = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True)  # copies to pageable memory block the GPU
    host.copy_(stored, non_blocking=True)
    stream.synchronize()
    return host.numpy()


def source_state(dataset: Dataset, sample: Sample) -> str | None:
    """Return size and times of a sample's files: equal ones have not changed. None for a sample without files.

    Times of change (ctime) are in it, because a copy can keep the time of modification.
    """
    try:
        states = [path.stat() for path in dataset.files(sample)]
    except OSError as e:
        return f"unreadable: {e.strerror}"
    return " ".join(f"{file.st_size}:{file.st_mtime_ns}:{file.st_ctime_ns}" for file in states) or None


def require_unchanged_sources(dataset: Dataset, writer: StoreWriter) -> None:
    """Raise StoreError, naming them, where images or masks are no longer those that the store was made of.

    Files whose size and times are the recorded ones are not read. Others are compared by their decoded pixels, so that
    a touched or copied file is no change; its new times are recorded.
    """
    store, changed = writer.store, dict[str, str]()
    for unit in range(store.contents.units):
        done = [index for index in writer.images(unit) if store.records.done(PIXELS, index)]
        states = [source_state(dataset, dataset.samples[index]) for index in writer.images(unit)]
        if not done or not any(states):
            continue
        record = store.records.read(PIXELS, unit)
        known = record.sources or (None,) * len(states)
        for index in done:
            position = index - writer.images(unit)[0]
            if states[position] == known[position]:
                continue
            sample = dataset.samples[index]
            try:
                arrays = _changed(writer, index, dataset.load(sample))
            except (ValueError, OSError) as e:
                arrays = f"it cannot be read: {e}"
            if arrays:
                changed[sample.id] = arrays
        if tuple(states) != record.sources and not changed:
            store.records.write(PIXELS, unit, record.checksums, sources=states)
    if changed:
        raise StoreError(_changed_message(store, changed))


def _changed(writer: StoreWriter, index: int, pixels: Pixels) -> str:
    """Return which arrays of an image differ from the stored ones: `masks differ`; empty when none does."""
    arrays = writer.pixel_arrays((pixels.image, pixels.mask, pixels.instances)).items()
    records = writer.store.records
    differing = [name for name, values in arrays if records.checksum_of(PIXELS, name, index) != checksum(values)]
    return f"{' and '.join(differing)} differ" if differing else ""


def _changed_message(store: FeatureStore, changed: Mapping[str, str]) -> str:
    (id_, arrays), *others = changed.items()
    more = f", nor are {', '.join(id_ for id_, _ in others[:10])}" if others else ""
    more += f" and {len(others) - 10} more" if len(others) > 10 else ""
    return (
        f"{id_} is not the same in the data set as in {store.location} ({arrays}){more}; "
        f"bring the old files back, or pass --store for a new store"
    )
