"""Stage one: every image through the frozen model once, its feature maps into the store."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.unit import (
    Failure,
    Wanted,
    compute_unit,
    has_pixels,
    load_unit,
    still_lacking,
    work_left,
    write_unit,
)
from pathseg.store.blocks import BLOCKS, format_blocks
from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.errors import StoreError
from pathseg.store.format.manifest import MANIFEST
from pathseg.store.format.size import BlockShape, fitting_layouts, format_bytes, images_per_unit, patch_bytes
from pathseg.store.grid import PATCH_PX, PatchGrid
from pathseg.store.key import StoreKey
from pathseg.store.location.location import open_location
from pathseg.store.writer import StoreWriter

AHEAD = 2  # units that wait between reading, computing and writing


@dataclass(frozen=True)
class Size:
    """What a run will write: bytes of one patch by block, patches of all images, timesteps, bytes of the pixels."""

    per_block: dict[int, int]
    patches: int
    timesteps: int
    pixels: int

    @property
    def features(self) -> int:
        """Bytes of all features."""
        return sum(self.per_block.values()) * self.patches * self.timesteps


def contents_of(dataset: Dataset, model: FeatureModel, config: ExtractConfig) -> Contents:
    """What a store of this data set, model and configuration says of itself."""
    key = StoreKey(
        dataset=dataset.name,
        preprocessing=dataset.preprocessing,
        size=dataset.size,
        mpp=dataset.mpp,
        model=model.name,
        model_digest=model.digest,
        first_stage=model.first_stage,
        condition=model.condition,
        seed=config.seed,
        layout=config.layout,
        dtype=config.dtype,
        packing=config.packing,
        precision=config.precision,
    )
    shapes = {block: BlockShape(*shape) for block, shape in model.blocks.items()}
    largest = max(patch_bytes(shapes, layout=config.layout, dtype=config.dtype).values())
    packages = ("pathseg", "torch", "diffusers", "timm", "zarr")
    return Contents(
        key=key,
        images=tuple(ImageEntry(**dataclasses.asdict(sample)) for sample in dataset.samples),
        classes=dataset.classes,
        background=dataset.background,
        ignore=dataset.ignore,
        test_split=dataset.test_split,
        blocks=shapes,
        model_trained=model.trained,
        has_instances=dataset.has_instances,
        made_by={name: importlib.metadata.version(name) for name in packages},
        images_per_unit=images_per_unit(len(dataset.samples), largest * PatchGrid.of(*dataset.size).patches),
    )


def wanted_blocks(model: FeatureModel, config: ExtractConfig) -> tuple[int, ...]:
    """The configured blocks; all of them means all that the model has.

    Raises ValueError for a block or a timestep that the model does not have.
    """
    if model.timesteps is not None and (beyond := [t for t in config.t if not 0 <= t < model.timesteps]):
        raise ValueError(f"t {beyond[0]} is not within 0-{model.timesteps - 1}, the timesteps of model {model.name}")
    blocks = tuple(sorted(model.blocks)) if config.blocks == BLOCKS else config.blocks
    if unknown := [block for block in blocks if block not in model.blocks]:
        raise ValueError(f"model {model.name} has blocks {format_blocks(model.blocks)}, not {format_blocks(unknown)}")
    return blocks


def size_of(dataset: Dataset, model: FeatureModel, config: ExtractConfig) -> Size:
    """How large what a whole run writes is (images and masks at most: they are compressed)."""
    shapes = {block: BlockShape(*model.blocks[block]) for block in wanted_blocks(model, config)}
    per_block = patch_bytes(shapes, layout=config.layout, dtype=config.dtype)
    patches = PatchGrid.of(*dataset.size).patches * len(dataset.samples)
    return Size(per_block, patches, len(config.t), pixels=patches * PATCH_PX**2 * 4)


def size_table(dataset: Dataset, model: FeatureModel, config: ExtractConfig, path: Path | str) -> str:
    """What a run will write, in lines for a person: images, patches, bytes per block, total and free space."""
    size, counts = size_of(dataset, model, config), Counter(sample.split for sample in dataset.samples)
    free = open_location(path).free_bytes()
    grid, patch = PatchGrid.of(*dataset.size), sum(size.per_block.values())
    blocks = ", ".join(f"block {block} {format_bytes(bytes_)}" for block, bytes_ in size.per_block.items())
    splits = ", ".join(f"{split} {count}" for split, count in counts.items())
    rows = {
        "images": f"{len(dataset.samples)} of {dataset.name} ({splits}), {dataset.size[1]}x{dataset.size[0]} px",
        "model": f"{model.name}{'' if model.trained else ' (UNTRAINED: random weights)'}",
        "patches": f"{size.patches}, each {format_bytes(patch)} in {config.layout} {config.dtype}",
        "a patch": blocks,
        "an image": f"{format_bytes(patch * grid.patches)} ({grid.patches} patches) at each timestep",
        "total": f"{format_bytes(size.features)} of features for {size.timesteps} timestep{'s' * (size.timesteps > 1)}",
        "free": f"{'no limit known' if free is None else format_bytes(free)} at {path}",
    }
    if dataset.left_out:
        rows["left out"] = dataset.left_out
    return "\n".join(f"{name:>8}  {text}" for name, text in rows.items())


def prepare_store(path: Path | str, dataset: Dataset, model: FeatureModel, config: ExtractConfig) -> StoreWriter:
    """The store that a run writes to, made or opened, with its arrays in place.

    Raises StoreError before anything is written when what is lacking does not fit into the free space (the message
    names a layout that would), KeyMismatch when the store there is of another make.
    """
    contents, blocks = contents_of(dataset, model, config), wanted_blocks(model, config)
    location = open_location(path)
    share = 1.0
    if location.exists(MANIFEST):
        writer = StoreWriter(location, contents)
        share = unfinished_images(writer, blocks, config) / len(writer.store)
    free_bytes = location.free_bytes()
    if free_bytes is not None:
        _require_space(size_of(dataset, model, config), share, model, config, free_bytes=free_bytes)
    writer = StoreWriter(location, contents)
    writer.add_arrays(config.t, blocks)
    return writer


def _require_space(size: Size, share: float, model: FeatureModel, config: ExtractConfig, *, free_bytes: int) -> None:
    needed = int((size.features + size.pixels) * share)
    if needed <= free_bytes:
        return
    shapes = {block: BlockShape(*model.blocks[block]) for block in size.per_block}
    patches = int(size.patches * size.timesteps * share)
    fitting = fitting_layouts(
        shapes, layouts=("grid", "native"), free_bytes=free_bytes, patches=patches, dtype=config.dtype
    )
    way = (
        " or ".join(f"--layout {name}" for name in fitting) + " would fit" if fitting else "take fewer --blocks or --t"
    )
    raise StoreError(
        f"the features take {format_bytes(needed)} in layout {config.layout}, "
        f"but {format_bytes(free_bytes)} are free; {way}"
    )


def extract(
    writer: StoreWriter,
    dataset: Dataset,
    model: FeatureModel,
    config: ExtractConfig,
    on_unit: Callable[[int], None] = lambda images: None,
) -> tuple[Failure, ...]:
    """Compute and store whatever the store lacks of this run, unit by unit.

    Decoding the next unit, the forward pass of this one and writing the last ones overlap; at most `AHEAD` units wait
    on either side, so memory does not grow with the data set. `on_unit` is called with the number of images of each
    unit that was worked on. An image that cannot be read is set aside, the rest goes on, the failures are returned.
    A second run on the same store takes units from the other end and skips what the first has finished.
    """
    blocks, store, failures = wanted_blocks(model, config), writer.store, []
    with store.location.writer_lock() as alone, ThreadPoolExecutor(1) as reader, _saver() as saver:
        units = range(store.contents.units) if alone else reversed(range(store.contents.units))
        loading, saving = deque(), deque()
        todo = _todo(writer, units, blocks, config)
        for _ in range(AHEAD):
            loading.extend(reader.submit(load_unit, writer, dataset, *item) for item in islice(todo, 1))
        while loading:
            loaded = loading.popleft().result()
            loading.extend(reader.submit(load_unit, writer, dataset, *item) for item in islice(todo, 1))
            failures.extend(loaded.failures)
            images = writer.images(loaded.unit)
            maps = compute_unit(model, loaded, [store.ids[i] for i in images], store.contents.grid, config)
            while len(saving) >= AHEAD:
                saving.popleft().result()
            saving.append(saver.submit(write_unit, writer, loaded, maps, config))
            on_unit(len(images))
        for waiting in saving:
            waiting.result()
    return tuple(failures)


@contextmanager
def _saver() -> Iterator[ThreadPoolExecutor]:
    """One thread that brings maps to their layout and writes them, on one core: the forward pass needs the others."""
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as saver:
            yield saver
    finally:
        torch.set_num_threads(torch.get_num_threads())  # new threads take what was set last, wherever it was set


def unfinished_images(writer: StoreWriter, blocks: tuple[int, ...], config: ExtractConfig) -> int:
    """How many images a run still has to work on, counted in whole units."""
    units = range(writer.store.contents.units)
    return sum(len(writer.images(unit)) for unit in units if work_left(writer, unit, blocks, config))


def _todo(
    writer: StoreWriter, units: Iterable[int], blocks: tuple[int, ...], config: ExtractConfig
) -> Iterator[tuple[int, Wanted]]:
    """The units with work to do, each looked at when its turn comes, with the blocks it lacks."""
    for unit in units:
        lacking = still_lacking(writer, unit, blocks, config)
        if lacking or not has_pixels(writer, unit):
            yield unit, lacking
