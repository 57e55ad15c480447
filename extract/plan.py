"""The plan of a run of stage one: the description of its store, what is missing in it, and whether that fits."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pathseg.extract.changes import Changes, find_changes, with_kept_splits
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.surroundings import centre_side, require_centre, surroundings_of
from pathseg.extract.unit import MissingWork, missing_of_image
from pathseg.store.blocks import format_blocks, select_blocks
from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.names import MANIFEST
from pathseg.store.format.packing import PACKINGS
from pathseg.store.format.size import BlockShape, fitting_layouts, format_bytes, images_per_unit, patch_bytes
from pathseg.store.grid import HEAD_CELLS, PATCH_PX, PatchGrid
from pathseg.store.key import BATCH_SIZE, StoreKey, Surroundings
from pathseg.store.location.location import Location, open_location
from pathseg.store.runtime.device import precision_warnings

PIXEL_BYTES = 4  # of an image pixel and its mask code, before compression
PACKAGES = ("pathseg", "torch", "diffusers", "timm", "zarr")  # whose versions a store names


@dataclass(frozen=True)
class ExtractPlan:
    """Sizes of a run of stage one, before it starts; `str()` is a table for people.

    splits: images per split. size: height and width of an image in px. shapes: of the blocks that are stored.
    exists: whether the store is there already. changes: what it follows in the data set, None in a new one.
    missing_images: images of which anything is missing, be it the mask alone. missing_features: images of which
    features are missing. missing_maps: block -> patches that lack
    it, summed over timesteps. missing_pixels: images without pixels. free_bytes: at the store's location, None where no
    limit is known. views: training images that are further crops of a tile, or an image turned or flipped. left_out,
    masks_per_class, warnings: see `Dataset`. notes: see `FeatureModel`.
    """

    store: str
    dataset: str
    splits: Mapping[str, int]
    size: tuple[int, int]
    model: str
    model_trained: bool
    layout: str
    dtype: str
    packing: str
    timesteps: tuple[int, ...]
    shapes: Mapping[int, BlockShape]
    exists: bool
    missing_images: int
    missing_features: int
    missing_maps: Mapping[int, int]
    missing_pixels: int
    free_bytes: int | None
    changes: Changes | None = None
    views: int = 0
    left_out: str = ""
    masks_per_class: Mapping[str, int] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    surroundings: Surroundings | None = None
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.splits.values())

    @property
    def patches_per_image(self) -> int:
        """Number of patches of an image."""
        return PatchGrid.of(*self.size).patches

    @property
    def patch_bytes(self) -> dict[int, int]:
        """Bytes of one patch at one timestep, by block."""
        return patch_bytes(
            self.shapes, layout=self.layout, dtype=self.dtype, packing=self.packing,
            patches_per_image=self.patches_per_image,
        )  # fmt: skip

    @property
    def feature_bytes(self) -> int:
        """Bytes of all features of all images and timesteps, stored or missing."""
        return sum(self.patch_bytes.values()) * self.images * self.patches_per_image * len(self.timesteps)

    @property
    def missing_patches(self) -> int:
        """Number of patches of which the run computes features."""
        return self.missing_features * self.patches_per_image

    @property
    def rewritten_masks(self) -> int:
        """Number of images of which the run writes the mask, or image and mask, and computes nothing."""
        return self.missing_images - self.missing_features

    @property
    def missing_bytes(self) -> int:
        """Bytes that the run will write: missing features, and missing images and masks before compression."""
        each = self.patch_bytes
        return self._missing_pixel_bytes + sum(each[block] * patches for block, patches in self.missing_maps.items())

    def require_space(self) -> None:
        """Raise StoreError, naming a way out, when what is missing does not fit into the free space."""
        if self.free_bytes is None or self.missing_bytes <= self.free_bytes:
            return
        free, way_out = self.free_bytes, "take fewer --blocks or --t"
        if self.exists:  # its layout is fixed
            way_out += ", free space, or pass another --store"
        elif fitting := fitting_layouts(
            self.shapes,
            layouts=("grid", "native"),
            free_bytes=free - self._missing_pixel_bytes,
            patches=self.images * self.patches_per_image * len(self.timesteps),
            dtype=self.dtype,
            packing=self.packing,
            patches_per_image=self.patches_per_image,
        ):
            way_out = " or ".join(f"--layout {name}" for name in fitting) + " would fit"
        raise StoreError(
            f"the features take {format_bytes(self.missing_bytes, packing=self.packing)} in layout {self.layout}, but "
            f"{format_bytes(free)} are free; {way_out}"
        )

    def __str__(self) -> str:
        """Return the sizes as lines of a table: images, patches, bytes per block, total and free space."""

        def sized(size_bytes: int) -> str:
            return format_bytes(size_bytes, packing=self.packing)

        one_patch, patches = sum(self.patch_bytes.values()), self.patches_per_image
        stored = PACKINGS[self.packing].stored_dtype or self.dtype
        splits = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        timesteps = f"{len(self.timesteps)} timestep{'s' * (len(self.timesteps) > 1)}"
        height, width = self.size
        rows = {
            "images": f"{self.images} of {self.dataset} ({splits}), {width}x{height} px",
            "model": f"{self.model}{'' if self.model_trained else ' (UNTRAINED: random weights)'}",
            "patches": f"{self.images * patches}, each {sized(one_patch)} in {self.layout} {stored}",
            "a patch": ", ".join(f"block {block} {sized(bytes_)}" for block, bytes_ in self.patch_bytes.items()),
            "an image": f"{sized(one_patch * patches)} ({patches} patches) at each timestep",
            "total": f"{sized(self.feature_bytes)} of features for {timesteps}",
        }
        if self.surroundings is not None:
            rows["field"] = str(self.surroundings)
        if self.views:
            rows["views"] = f"{self.views} of these images are views of others to train on, each epoch takes one"
        if self.changes is not None and str(self.changes):
            rows["changes"] = str(self.changes)
        if self.exists:
            work = f"{self.missing_patches} patches to compute, {self.rewritten_masks} masks to rewrite"
            rows["missing"] = f"{sized(self.missing_bytes)} in {self.missing_images} of {self.images} images: {work}"
        free = "no limit known" if self.free_bytes is None else format_bytes(self.free_bytes)
        rows["free"] = f"{free} at {self.store}"
        if self.left_out:
            rows["left out"] = self.left_out
        if self.masks_per_class:
            rows["classes"] = ", ".join(f"{name} in {count} masks" for name, count in self.masks_per_class.items())
        lines = [
            *rows.items(),
            *(("note", note) for note in self.notes),
            *(("warning", warning) for warning in self.warnings),
        ]
        return "\n".join(f"{name:>8}  {text}" for name, text in lines)

    @property
    def _missing_pixel_bytes(self) -> int:
        return self.missing_pixels * self.patches_per_image * PATCH_PX**2 * PIXEL_BYTES


def plan_extraction(
    dataset: Dataset,
    model: FeatureModel,
    store: str | os.PathLike[str],
    config: ExtractConfig,
) -> ExtractPlan:
    """Return the sizes of a run that computes what is missing in the store at this path or s3 URL; nothing is written.

    Raises ValueError for a block or a timestep that the model does not have and for another timestep of a model without
    noise, KeyMismatch when the store has features that were made in another way, StoreError when images have changed.
    """
    location = open_location(store)
    if not location.exists(MANIFEST):
        return plan_for(dataset, model, config, location, None)
    existing = FeatureStore.open(location)
    dataset, config = with_kept_splits(dataset, existing), config.following(existing.contents.key)
    changes = find_changes(dataset, existing, contents_of(dataset, model, config))
    return plan_for(dataset, model, config, location, existing, changes)


def plan_for(
    dataset: Dataset,
    model: FeatureModel,
    config: ExtractConfig,
    location: Location,
    existing: FeatureStore | None,
    changes: Changes | None = None,
) -> ExtractPlan:
    """Return the sizes of a run into an opened store, or into a new one where `existing` is None."""
    blocks = wanted_blocks(model, config)
    stored = () if existing is None or model.timesteps is not None else existing.timesteps()
    if stored and config.t[0] not in stored:
        raise ValueError(
            f"model {model.name} has no noise, so its features at t {config.t[0]} would equal those that "
            f"{location} has at t {stored[0]}; pass --t {stored[0]}"
        )
    patches = PatchGrid.of(*dataset.size).patches
    missing = _missing_in(existing, changes, dataset, config, blocks)
    maps: Counter[int] = Counter()
    for work in missing:
        for blocks_at_t in work.blocks.values():
            maps.update(dict.fromkeys(blocks_at_t, patches))
    return ExtractPlan(
        store=str(location),
        dataset=dataset.name,
        splits=Counter(sample.split for sample in dataset.samples),
        size=dataset.size,
        model=model.name,
        model_trained=model.trained,
        layout=config.layout,
        dtype=config.dtype,
        packing=config.packing,
        timesteps=config.t,
        shapes={block: shape for block, shape in block_shapes(model, config).items() if block in blocks},
        exists=existing is not None,
        missing_images=len(missing),
        missing_features=sum(bool(work.blocks) for work in missing),
        missing_maps=maps,
        missing_pixels=sum(work.pixels for work in missing),
        free_bytes=location.free_bytes(),
        changes=changes,
        views=_count_views(dataset),
        left_out=dataset.left_out,
        masks_per_class=dataset.masks_per_class,
        warnings=(*dataset.warnings, *precision_warnings(model.device.type, config.precision)),
        surroundings=surroundings_of(dataset, config.surroundings),
        notes=model.notes,
    )


def _count_views(dataset: Dataset) -> int:
    """Return the number of samples beyond the first of each group."""
    groups = Counter(sample.group for sample in dataset.samples if sample.group is not None)
    return groups.total() - len(groups)


def contents_of(
    dataset: Dataset, model: FeatureModel, config: ExtractConfig, *, device_type: str | None = None
) -> Contents:
    """Return the description of a store with features of this data set, model and configuration.

    Without a batch size in the configuration the store is a new one, whose batch size is the fastest on a device of
    `device_type` (torch's name), by default the model's.
    """
    patches = PatchGrid.of(*dataset.size).patches
    batch_size = config.batch_size or _fastest_batch_size(model, device_type or model.device.type, config.precision)
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
        # a batch holds patches of one image: all sizes from the number of its patches on are the same
        batch_size=batch_size if batch_size < patches else max(patches, BATCH_SIZE),
        vit=model.vit,
        surroundings=surroundings_of(dataset, config.surroundings),
        diffusers=model.diffusers,
        zoom=model.zoom,
    )
    shapes = block_shapes(model, config)
    stored = (
        PACKINGS[config.packing].arrays("", (patches, *shape.stored(config.layout)), config.dtype)
        for shape in shapes.values()
    )
    largest = max(array.image_bytes for arrays in stored for array in arrays)
    return Contents(
        key=key,
        images=tuple(ImageEntry(**dataclasses.asdict(sample)) for sample in dataset.samples),
        classes=dataset.classes,
        background=dataset.background,
        ignore=dataset.ignore,
        colours=dataset.colours,
        test_split=dataset.test_split,
        blocks=shapes,
        model_trained=model.trained,
        has_instances=dataset.has_instances,
        made_by={name: importlib.metadata.version(name) for name in PACKAGES},
        images_per_unit=images_per_unit(len(dataset.samples), largest),
    )


def _fastest_batch_size(model: FeatureModel, device_type: str, precision: str) -> int:
    """Return the number of patches in a forward pass with which a model is fastest on a kind of device.

    The maps of a denoiser outgrow the caches of a CPU with more than one patch. The products of a ViT are larger, and
    so faster, with several (benchmarks/README.md, "By backbone"); in half precision weights are converted in each pass.
    """
    one = device_type == "cpu" and precision == "float32" and model.latent_shape is not None
    return 1 if one else BATCH_SIZE


def block_shapes(model: FeatureModel, config: ExtractConfig) -> dict[int, BlockShape]:
    """Return the shape of the maps that are kept of a patch, by block of the model: of a wider field its centre.

    Blocks whose map is too coarse to have a centre are left out.
    """
    shapes = {
        block: BlockShape(channels, centre_side(side, config.surroundings))
        for block, (channels, side) in model.blocks.items()
    }
    return {block: shape for block, shape in shapes.items() if shape.side}


def wanted_blocks(model: FeatureModel, config: ExtractConfig) -> tuple[int, ...]:
    """Return the configured blocks, by default the model's `default_blocks`.

    Raises ValueError for a block or a timestep that the model does not have, for surroundings in which no whole cells
    of a block lie on the patch, and for layout `image` where the heads' cells are not fractions of a block's.
    """
    if model.timesteps is not None and (unknown_t := [t for t in config.t if not 0 <= t < model.timesteps]):
        raise ValueError(f"t {unknown_t[0]} is not within 0-{model.timesteps - 1}, the timesteps of model {model.name}")
    if model.timesteps is None and len(config.t) > 1:
        raise ValueError(
            f"model {model.name} has no noise, so its features at t {' and '.join(map(str, config.t))} would be equal; "
            "pass one --t"
        )
    blocks = model.default_blocks if config.blocks is None else select_blocks(config.blocks, model.blocks)
    if unknown := [block for block in blocks if block not in model.blocks]:
        raise ValueError(f"model {model.name} has blocks {format_blocks(model.blocks)}, not {format_blocks(unknown)}")
    require_centre(model, blocks, config.surroundings)
    shapes = block_shapes(model, config)
    # `train.heads.stack.to_head_grid` recovers the native values from maps of pixel size only then
    if config.layout == "image" and (uneven := [block for block in blocks if HEAD_CELLS % shapes[block].side]):
        side = shapes[uneven[0]].side
        raise ValueError(
            f"block {uneven[0]} of model {model.name} has maps of {side}x{side} cells, but --layout image takes sides "
            f"that divide {HEAD_CELLS}; pass --layout native or grid, or for a timm model of 14 px patches "
            "--input-px 224"
        )
    return blocks


def _missing_in(
    existing: FeatureStore | None,
    changes: Changes | None,
    dataset: Dataset,
    config: ExtractConfig,
    blocks: tuple[int, ...],
) -> list[MissingWork]:
    """Return what is missing of each image of the data set that lacks anything."""
    everything = MissingWork(pixels=True, blocks=dict.fromkeys(config.t, blocks))
    index_of = {} if existing is None else {id_: index for index, id_ in enumerate(existing.ids)}
    found = []
    for sample in dataset.samples:
        index = index_of.get(sample.id)
        if existing is None or index is None:
            found.append(everything)
            continue
        work = missing_of_image(existing, index, config.t, blocks)
        if changes is not None and index in changes.relabelled:
            work = dataclasses.replace(work, pixels=True)
        if work:
            found.append(work)
    return found
