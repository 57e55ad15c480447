"""One unit of work of stage one: find what the store lacks, decode images, compute features, write and record them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from pathseg.extract.changes import load_pixels, require_same_image, source_state
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset, Pixels, Sample
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.models.noise import patch_noise
from pathseg.extract.surroundings import centre, load_field
from pathseg.store.contents import UNLISTED
from pathseg.store.features import FeatureStore
from pathseg.store.format.layout import to_layout
from pathseg.store.records import PIXELS, ArraySet
from pathseg.store.runtime.device import wait_for_stream
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
    """What the store lacks of an image: pixels or mask, and blocks at timesteps. False when it is complete."""

    pixels: bool
    blocks: TimestepBlocks

    def __bool__(self) -> bool:
        return self.pixels or bool(self.blocks)


class UnfinishedUnit(NamedTuple):
    """Numbers of a unit: images of which anything is missing, patches whose features are to be computed, and passes.

    passes: forward passes of single patches, each timestep one.
    """

    images: int
    patches: int
    passes: int


UnitWork = dict[
    int, MissingWork
]  # index of an image of a unit -> what it lacks; complete and unlisted ones are not in it


@dataclass(frozen=True)
class LoadedUnit:
    """The decoded images of a unit, None where one was set aside or lacks nothing; no images when nothing is missing.

    patches: of each image what the model sees of them, (P, 256, 256, 3) uint8, where features are missing. sources: of
    each image `source_state` before it was read.
    """

    unit: int
    missing: UnitWork
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
        return [self.writer.store.ids[index] for index in self.writer.images(unit)]

    def missing(self, unit: int) -> UnitWork:
        """Return what the store lacks of a unit, as far as its records were read."""
        return missing_work(self.writer.store, unit, self.config.t, self.blocks)

    def unfinished_units(self) -> dict[int, UnfinishedUnit]:
        """Return the units of which something is missing, as far as the records were read."""
        patches = self.writer.store.contents.grid.patches
        work = ((unit, self.missing(unit)) for unit in range(self.writer.store.contents.units))
        return {
            unit: UnfinishedUnit(
                len(missing),
                patches * sum(bool(one.blocks) for one in missing.values()),
                patches * sum(len(one.blocks) for one in missing.values()),
            )
            for unit, missing in work
            if missing
        }

    @cached_property
    def _samples(self) -> dict[str, Sample]:
        return {sample.id: sample for sample in self.dataset.samples}

    def load(self, unit: int) -> LoadedUnit:
        """Decode the images of a unit, unless another run has completed it meanwhile; unreadable ones are set aside.

        Raises StoreError when an image differs from the one that the store has under its id.
        """
        missing = self._missing_now(unit)
        images: list[Pixels | None] = []
        patches: list[np.ndarray | None] = []
        failures, sources = [], []
        store = self.writer.store
        for index in self.writer.images(unit) if missing else ():
            work, loaded, cut, state = missing.get(index), None, None, None
            if work is not None:
                sample = self._samples[store.ids[index]]
                state = source_state(self.dataset, sample)
                try:
                    pixels = (
                        self.dataset.load(sample) if work.blocks else load_pixels(self.dataset, sample, store, index)
                    )
                    cut = self._patches_of(sample, pixels.image) if work.blocks else None
                except (ValueError, OSError) as e:
                    failures.append(Failure(sample.id, str(e)))
                else:
                    require_same_image(store, index, pixels)
                    loaded = pixels
            images.append(loaded)
            patches.append(cut)
            sources.append(state)
        return LoadedUnit(unit, missing, tuple(images), tuple(patches), tuple(failures), tuple(sources))

    def passes(self, loaded: LoadedUnit) -> int:
        """Return the number of forward passes that a unit takes: patches of its images, each timestep one."""
        pairs = zip(self.writer.images(loaded.unit), loaded.patches, strict=True)
        return sum(len(cut) * len(loaded.missing[index].blocks) for index, cut in pairs if cut is not None)

    def compute(self, loaded: LoadedUnit) -> ComputedUnit:
        """Compute the missing features of a unit.

        A batch holds patches of one image only, from its first patch on, so that the numbers do not depend on where a
        run was interrupted. Its size is that of the store's key.
        """
        batch_size = self.writer.store.contents.key.batch_size
        none: list[torch.Tensor | None] = [None] * len(loaded.images)
        maps: dict[int, BlockMaps] = {
            t: {block: none.copy() for block in blocks} for t, blocks in _blocks_of_unit(loaded.missing).items()
        }
        indices = self.writer.images(loaded.unit)
        for position, (index, patches) in enumerate(zip(indices, loaded.patches, strict=True)):
            if patches is None:
                continue
            wanted, image_id = loaded.missing[index].blocks, self.writer.store.ids[index]
            batches = compute_patches(
                self.model, patches, range(len(patches)), image_id, wanted, self.config, batch_size=batch_size
            )
            for t, blocks in wanted.items():
                for block in blocks:
                    maps[t][block][position] = torch.cat(batches[t][block])
        computed = None
        if self._copy_stream is not None:
            computed = torch.cuda.Event()
            computed.record(torch.cuda.current_stream(self.model.device))
        return ComputedUnit(loaded, maps, computed)

    def write(self, unit: ComputedUnit) -> None:
        """Write and record a unit: its pixels if they are missing, then its features, timestep by timestep.

        On a GPU, upsampling and copies run on a stream of their own: on the default stream they would wait for the
        forward pass of the next unit, whose kernels are queued there already.
        """
        loaded = unit.loaded
        missing = self._missing_now(loaded.unit)  # without what another run has written meanwhile
        timesteps = _blocks_of_unit(missing).keys()
        if not any(loaded.images):
            return
        if any(work.pixels for work in missing.values()):
            pixels = [None if image is None else (image.image, image.mask, image.instances) for image in loaded.images]
            self.writer.write_pixels(loaded.unit, pixels, sources=loaded.sources)
        with torch.cuda.stream(self._copy_stream):  # None: no effect
            if self._copy_stream is not None and unit.computed is not None:
                self._copy_stream.wait_event(unit.computed)
            for t, blocks in ((t, blocks) for t, blocks in unit.maps.items() if t in timesteps):
                self.writer.write_features(loaded.unit, t=t, features=_stored_maps(blocks, self.config))

    def _patches_of(self, sample: Sample, image: np.ndarray) -> np.ndarray:
        """Return what the model sees of an image's patches, (P, 256, 256, 3) uint8."""
        times = self.config.surroundings
        seen = image if times == 1 else load_field(self.dataset, sample, image, times)
        return self.writer.store.contents.grid.cut(seen, times)

    @cached_property
    def _copy_stream(self) -> torch.cuda.Stream | None:
        """The stream of `write`, made by `compute` in its thread, whose current device is that of the model."""
        return torch.cuda.Stream(self.model.device) if self.model.device.type == "cuda" else None

    def _missing_now(self, unit: int) -> UnitWork:
        """Return what is missing after looking for records that other runs have written since the store was opened."""
        missing, records = self.missing(unit), self.writer.store.records
        for arrays in (PIXELS, *(ArraySet(t, blocks) for t, blocks in _blocks_of_unit(missing).items())):
            records.refresh(arrays, unit)
        return self.missing(unit) if missing else missing


def missing_work(store: FeatureStore, unit: int, timesteps: Iterable[int], blocks: Iterable[int]) -> UnitWork:
    """Return what the store lacks of the listed images of a unit."""
    timesteps, blocks, images = tuple(timesteps), tuple(blocks), store.contents.images
    listed = (index for index in store.contents.unit_images(unit) if images[index].split != UNLISTED)
    work = ((index, missing_of_image(store, index, timesteps, blocks)) for index in listed)
    return {index: missing for index, missing in work if missing}


def missing_of_image(store: FeatureStore, index: int, timesteps: Iterable[int], blocks: tuple[int, ...]) -> MissingWork:
    """Return what the store lacks of an image."""
    by_timestep = ((t, tuple(sorted(store.records.missing(t, blocks, index)))) for t in timesteps)
    return MissingWork(
        pixels=not store.records.done(PIXELS, index), blocks={t: missing for t, missing in by_timestep if missing}
    )


def _blocks_of_unit(missing: UnitWork) -> TimestepBlocks:
    """Return the blocks at each timestep that at least one image of a unit lacks."""
    by_timestep: dict[int, set[int]] = {}
    for work in missing.values():
        for t, blocks in work.blocks.items():
            by_timestep.setdefault(t, set()).update(blocks)
    return {t: tuple(sorted(blocks)) for t, blocks in by_timestep.items()}


def compute_patches(
    model: FeatureModel,
    patches: np.ndarray,
    indices: Sequence[int],
    image_id: str,
    wanted: TimestepBlocks,
    config: ExtractConfig,
    *,
    batch_size: int,
) -> dict[int, dict[int, list[torch.Tensor]]]:
    """Compute features of an image's patches: timestep -> block -> one float32 tensor (n, C, h, w) per batch.

    patches: (P, 256, 256, 3) uint8, as `PatchGrid.cut` gives them. indices: of the patches in their image; the noise
    depends on them. batch_size: patches per forward pass, whatever `config` says. Of fields wider than a patch the
    cells on the patch are returned.
    """
    maps: dict[int, dict[int, list[torch.Tensor]]] = {t: {block: [] for block in wanted[t]} for t in wanted}
    for start in range(0, len(patches), batch_size):
        batch = slice(start, start + batch_size)
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
    stored = to_layout(maps, config.layout, getattr(torch, config.dtype))
    if not stored.is_cuda:
        return stored.cpu().numpy()
    host = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True)  # copies to pageable memory block the GPU
    host.copy_(stored, non_blocking=True)
    # until then the caller holds `maps`, whose memory the stream that they were allocated on could use again
    wait_for_stream(torch.cuda.current_stream(stored.device))
    return host.numpy()
