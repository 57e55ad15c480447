"""One unit of work of stage one: load its images, run the frozen model, write and commit what the store lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset, Pixels
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.models.noise import patch_noise
from pathseg.store.errors import StoreError
from pathseg.store.format.layout import to_layout
from pathseg.store.grid import PatchGrid
from pathseg.store.records import PIXELS, ArraySet, checksum
from pathseg.store.writer import StoreWriter

Wanted = dict[int, tuple[int, ...]]  # timestep -> blocks
Maps = dict[int, list[torch.Tensor | None]]  # block -> per image (P, C, h, w) float32, None = set aside


@dataclass(frozen=True)
class Failure:
    """An image that was set aside, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """The images of a unit, None where one could not be read, and the blocks it lacks at each timestep."""

    unit: int
    images: list[Pixels | None]
    failures: tuple[Failure, ...]
    lacking: Wanted


def lacking_blocks(writer: StoreWriter, unit: int, blocks: tuple[int, ...], config: ExtractConfig) -> Wanted:
    """Timestep -> the blocks that at least one image of the unit lacks; empty when the unit is done."""
    records, lacking = writer.store.records, {}
    for t in config.t:
        missing = {block for index in writer.images(unit) for block in records.missing(t, blocks, index)}
        if missing:
            lacking[t] = tuple(sorted(missing))
    return lacking


def still_lacking(writer: StoreWriter, unit: int, blocks: tuple[int, ...], config: ExtractConfig) -> Wanted:
    """`lacking_blocks` after a look at what somebody else has finished since the store was opened, pixels included."""
    lacking, records = lacking_blocks(writer, unit, blocks, config), writer.store.records
    for arrays in (PIXELS, *(ArraySet(t, missing) for t, missing in lacking.items())):
        records.refresh(arrays, unit)
    return lacking and lacking_blocks(writer, unit, blocks, config)


def has_pixels(writer: StoreWriter, unit: int) -> bool:
    """Whether the images and masks of a unit are in the store."""
    return all(writer.store.records.done(PIXELS, index) for index in writer.images(unit))


def work_left(writer: StoreWriter, unit: int, blocks: tuple[int, ...], config: ExtractConfig) -> bool:
    """Whether a unit lacks blocks or pixels, as far as is known."""
    return bool(lacking_blocks(writer, unit, blocks, config)) or not has_pixels(writer, unit)


def load_unit(writer: StoreWriter, dataset: Dataset, unit: int, lacking: Wanted) -> Loaded:
    """Decode a unit's images; one that cannot be read is set aside.

    Raises StoreError when an image is not the one that the store already holds under its id.
    """
    images, failures = [], []
    for index in writer.images(unit):
        sample = dataset.samples[index]
        try:
            pixels = dataset.load(sample)
        except (ValueError, OSError) as e:
            failures.append(Failure(sample.id, str(e)))
            images.append(None)
        else:
            _require_same(writer, index, pixels)
            images.append(pixels)
    return Loaded(unit, images, tuple(failures), lacking)


def compute_unit(
    model: FeatureModel, loaded: Loaded, ids: list[str], grid: PatchGrid, config: ExtractConfig
) -> dict[int, Maps]:
    """Timestep -> the lacking blocks of each image, native and float32, on the model's device.

    A batch holds patches of one image only, from its first patch on, so that where a run was cut changes no number.
    """
    maps: dict[int, Maps] = {t: {block: [] for block in blocks} for t, blocks in loaded.lacking.items()}
    for image_id, pixels in zip(ids, loaded.images, strict=True):
        done = {}
        if pixels is not None and maps:
            patches = grid.cut(pixels.image)
            done = compute_patches(model, patches, range(len(patches)), image_id, loaded.lacking, config)
        for t, blocks in maps.items():
            for block, images in blocks.items():
                images.append(torch.cat(done[t][block]) if done else None)
    return maps


def write_unit(writer: StoreWriter, loaded: Loaded, maps: dict[int, Maps], config: ExtractConfig) -> None:
    """Write and commit a unit: its pixels if they are not there, then each timestep."""
    if not has_pixels(writer, loaded.unit) and any(loaded.images):
        writer.write_pixels(loaded.unit, [p and (p.image, p.mask, p.instances) for p in loaded.images])
    for t, blocks in maps.items():
        if any(loaded.images):
            writer.write_features(loaded.unit, t=t, features=_stored(blocks, config))


def compute_patches(
    model: FeatureModel,
    patches: np.ndarray,
    numbers: Sequence[int],
    image_id: str,
    wanted: Wanted,
    config: ExtractConfig,
) -> dict[int, dict[int, list[torch.Tensor]]]:
    """Patches (P, 256, 256, 3) of an image -> timestep -> block -> a float32 tensor (n, C, h, w) per batch.

    numbers are the patches' indices in their image, which the noise depends on.
    """
    maps = {t: {block: [] for block in blocks} for t, blocks in wanted.items()}
    for start in range(0, len(patches), config.batch_size):
        batch = slice(start, start + config.batch_size)
        with _arithmetic(model, config):
            z0, context = model.prepare(patches[batch])
            for t, blocks in wanted.items():
                noise = _noise(model, image_id, numbers[batch], t, config.seed)
                for block, values in model.denoise(z0, context, t, blocks, noise).items():
                    maps[t][block].append(values.float())
    return maps


def _arithmetic(model: FeatureModel, config: ExtractConfig) -> AbstractContextManager:
    """Mixed precision where the configuration asks for it: matrices and convolutions in half, sums in float32."""
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(model.device.type, dtype=getattr(torch, config.precision))


def _noise(model: FeatureModel, image_id: str, patches: Sequence[int], t: int, seed: int) -> torch.Tensor | None:
    if model.latent_shape is None:
        return None
    return torch.stack([patch_noise(model.latent_shape, seed=seed, image_id=image_id, patch=p, t=t) for p in patches])


def _stored(maps: Maps, config: ExtractConfig) -> Iterator[tuple[int, list[np.ndarray | None]]]:
    """Block by block to the stored layout and dtype, so that only one is upsampled at a time."""
    dtype = getattr(torch, config.dtype)
    for block, images in maps.items():
        yield block, [None if m is None else to_layout(m, config.layout).to(dtype).cpu().numpy() for m in images]


def _require_same(writer: StoreWriter, index: int, pixels: Pixels) -> None:
    store = writer.store
    if not store.records.done(PIXELS, index):
        return
    for name, values in (("images", pixels.image), ("masks", pixels.mask)):
        if store.records.checksum_of(PIXELS, name, index) != checksum(values):
            raise StoreError(
                f"{store.ids[index]} is not the same in the data set as in {store.location} ({name} differ); "
                f"pass --store for a new store"
            )
