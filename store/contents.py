"""The description of a store in the attributes of its root group: images, classes, blocks and key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any

import msgspec

from pathseg.store.blocks import MAX_BLOCK, array_name
from pathseg.store.classes import background_code
from pathseg.store.errors import Damaged, KeyMismatch, StoreError
from pathseg.store.format.packing import PACKINGS, Packing, StoredArray
from pathseg.store.format.size import BlockShape
from pathseg.store.grid import PatchGrid, fitted_size
from pathseg.store.key import LABEL_SETTINGS, StoreKey
from pathseg.store.records import ArraySet
from pathseg.store.runtime.json_records import decode_json

FORMAT = 2  # raised when a reader of this release could not read the store rightly; format 1 is still read
UNLISTED = "unlisted"  # split of an image that the data set no longer lists: it stays on disk and counts nowhere
UNLABELLED = "unlabelled"  # split of a window of a slide without enough labels: it has features, its mask is ignored
MAX_SIDE_PX, MAX_BLOCK_BYTES = 1_000_000, 2**40  # of an image: beyond them, a description is taken for damaged


@dataclass(frozen=True)
class ImageEntry:
    """One image: id, split, and its original height and width in px.

    split: `UNLISTED` of an image that the data set no longer lists, `UNLABELLED` of one that is there to be predicted
    alone.
    source: the slide or region that it was cut from, where several images share one. group: name of the group of views
    that it is one of: crops of one tile, or one image turned and flipped. view: its number in the group, 0 = the
    centre, or as in the file; training draws one view of a group in each epoch. slide, corner: of a window of a slide,
    the stem of the slide's file name and (y, x) of the window's first px at the store's um/px; None of other images.
    """

    id: str
    split: str
    height: int
    width: int
    source: str | None = None
    group: str | None = None
    view: int = 0
    slide: str | None = None
    corner: tuple[int, int] | None = None


@dataclass(frozen=True)
class Contents:
    """The description of a store: all that stage two knows about the data set and the model.

    classes: names of the mask codes 0..K-1. background: code of the class that is no object, None where every class is
    one. ignore: code that counts in no loss, class weight or metric. test_split: the split that results are reported
    on. blocks: all blocks of the model; the arrays tell which of them are stored. made_by: versions of the packages
    that wrote the store. colours: `#RRGGBB` of each class in pictures, None of one without; empty where no class has
    one. images_per_unit: images that are written and recorded together; above 1 they share shards.
    """

    key: StoreKey
    images: tuple[ImageEntry, ...]
    classes: tuple[str, ...]
    ignore: int | None
    test_split: str
    blocks: dict[int, BlockShape]
    model_trained: bool
    has_instances: bool
    made_by: dict[str, str]
    background: int | None = None
    images_per_unit: int = 1
    colours: tuple[str | None, ...] = ()

    @property
    def units(self) -> int:
        """Number of units of work."""
        return -(-len(self.images) // self.images_per_unit)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The id of each image, in order."""
        return tuple(image.id for image in self.images)

    @cached_property
    def listed(self) -> tuple[int, ...]:
        """Indices of the images that the data set lists; no other counts anywhere."""
        return tuple(index for index, image in enumerate(self.images) if image.split != UNLISTED)

    @cached_property
    def labelled(self) -> tuple[int, ...]:
        """Indices of the listed images with labels: those that heads are trained, validated and tested on."""
        return tuple(index for index in self.listed if self.images[index].split != UNLABELLED)

    @cached_property
    def padded_px(self) -> tuple[int, int]:
        """Height and width that object ids are padded to: of the largest original image."""
        return max(image.height for image in self.images), max(image.width for image in self.images)

    def unit_images(self, unit: int) -> range:
        """Return the indices of a unit's images."""
        first = unit * self.images_per_unit
        return range(first, min(first + self.images_per_unit, len(self.images)))

    @property
    def grid(self) -> PatchGrid:
        """Rows and columns of patches of an image, the same for all images."""
        return PatchGrid.of(*self.key.size)

    @property
    def packing(self) -> Packing:
        """How values are stored."""
        return PACKINGS[self.key.packing]

    def stored_arrays(self, t: int, block: int) -> tuple[StoredArray, ...]:
        """Return the arrays that hold a block at a timestep: its values and, where they are scaled, their scales.

        Raises ValueError for a block that the model does not have.
        """
        if block not in self.blocks:
            raise ValueError(f"the model has no block {block}")
        shape = (self.grid.patches, *self.blocks[block].stored(self.key.layout))
        return self.packing.arrays(array_name(t, block), shape, self.key.dtype)

    def array_names(self, arrays: ArraySet) -> tuple[str, ...]:
        """Return the paths in the store of arrays that are written and recorded together: `t50/block04`."""
        if arrays.t is None:
            return ("images", "masks", "instances") if self.has_instances else ("images", "masks")
        return tuple(array.name for block in arrays.blocks for array in self.stored_arrays(arrays.t, block))

    def content_px(self, index: int) -> tuple[int, int]:
        """Return the height and width in px that an image fills, from the upper left: all of its size but padding."""
        image, key = self.images[index], self.key
        return fitted_size((image.height, image.width), key.size) if key.preprocessing.padded else key.size

    def to_attributes(self) -> dict[str, Any]:
        """Return plain JSON values, one attribute per field; those of windows and views only where there are any."""
        has_views = any(image.source is not None or image.group is not None for image in self.images)
        views = {
            "sources": [image.source for image in self.images],
            "groups": [image.group for image in self.images],
            "views": [image.view for image in self.images],
        }
        windows = {
            "slides": [image.slide for image in self.images],
            "corners": [None if image.corner is None else list(image.corner) for image in self.images],
        }
        return {
            "pathseg_format": FORMAT,
            "key": self.key.to_json(),
            "ids": [image.id for image in self.images],
            "splits": [image.split for image in self.images],
            "sizes": [[image.height, image.width] for image in self.images],
            **(views if has_views else {}),
            **(windows if any(image.slide is not None for image in self.images) else {}),
            "classes": list(self.classes),
            "background": self.background,
            "ignore": self.ignore,
            **({"colours": list(self.colours)} if self.colours else {}),
            "test_split": self.test_split,
            "mpp": self.key.mpp,
            "patch_grid": [self.grid.rows, self.grid.cols],
            "layout": self.key.layout,
            "blocks": {str(b): [shape.channels, shape.side] for b, shape in self.blocks.items()},
            "model_trained": self.model_trained,
            "has_instances": self.has_instances,
            "made_by": self.made_by,
            "images_per_unit": self.images_per_unit,
        }

    @classmethod
    def from_attributes(cls, values: Mapping[str, Any], *, store: str) -> Contents:
        """The inverse of `to_attributes`; also reads format 1.

        Raises StoreError for the attributes of another Zarr group or of a newer format, Damaged naming store and
        attribute when one is missing, has the wrong type or is out of range.
        """
        if "pathseg_format" not in values:
            raise StoreError(f"{store} is a Zarr group but no pathseg store; make one with pathseg extract")
        version = values["pathseg_format"]
        if type(version) is not int or version < 1:
            raise Damaged(f"pathseg_format of {store} is {version!r:.80}, no format; run pathseg verify --repair")
        if version > FORMAT:
            raise StoreError(f"{store} has format {version!r:.80}, this pathseg reads up to {FORMAT}; upgrade pathseg")
        try:
            found = msgspec.convert(values, _Attributes, str_keys=True)
            images = found.entries()
            background = background_code(found.classes) if version == 1 else found.background
            if background is not None and background >= len(found.classes):
                raise ValueError(f"background is {background}, but there are {len(found.classes)} classes")
            if len(found.colours) not in (0, len(found.classes)):
                raise ValueError(f"there are {len(found.colours)} colours, but {len(found.classes)} classes")
            if all(image.split == UNLISTED for image in images):
                raise ValueError("splits lists no image")
        except (msgspec.ValidationError, ValueError, RecursionError) as e:
            raise Damaged(f"the attributes of {store} are damaged: {e}; run pathseg verify --repair") from e
        try:
            key = StoreKey.from_json(found.key)
            _require_credible(key, found.blocks)
        except StoreError as e:
            raise StoreError(f"{store} cannot be used: {e}") from e
        except (ValueError, RecursionError) as e:
            raise Damaged(f"the key of {store} is damaged: {e}; run pathseg verify --repair") from e
        return cls(
            key=key,
            images=images,
            classes=found.classes,
            ignore=found.ignore,
            test_split=found.test_split,
            blocks={block: BlockShape(*shape) for block, shape in found.blocks.items()},
            model_trained=found.model_trained,
            has_instances=found.has_instances,
            made_by=found.made_by,
            background=background,
            images_per_unit=found.images_per_unit,
            colours=found.colours,
        )

    def grown(self, wanted: Contents, *, store: str) -> Contents:
        """Return the description of this store once it has followed a data set, which `wanted` describes.

        Images keep their index. Those that `wanted` does not list get the split `UNLISTED`; those that are not in the
        store yet follow at the end. Splits, sources, classes and the settings of masks are those of `wanted`. Raises
        KeyMismatch when the features were made in another way, or when the store holds none of the images.
        """
        self.key.require(wanted.key, store=store)
        new_store = "pass --store or --workspace for a new store"
        if self.has_instances != wanted.has_instances:
            kinds = "has masks of objects" if self.has_instances else "has no masks of objects"
            raise KeyMismatch(f"{store} {kinds}, other than the data set; {new_store}")
        listed, here = {image.id: image for image in wanted.images}, {image.id for image in self.images}
        if here.isdisjoint(listed):
            raise KeyMismatch(f"{store} holds none of the images of the data set (its first is {self.images[0].id}, "
                              f"theirs {wanted.images[0].id}); {new_store}")  # fmt: skip
        kept = (listed.get(image.id, replace(image, split=UNLISTED)) for image in self.images)
        added = (image for image in wanted.images if image.id not in here)
        return replace(
            self,
            key=wanted.key,
            images=(*kept, *added),
            classes=wanted.classes,
            background=wanted.background,
            ignore=wanted.ignore,
            colours=wanted.colours,
            test_split=wanted.test_split,
        )

    def require(self, wanted: Contents, *, store: str) -> None:
        """Raise KeyMismatch unless this is the description of a store that has followed `wanted`."""
        if self.grown(wanted, store=store) == self:
            return
        here, there = self.to_attributes(), wanted.to_attributes()
        for name in ("ids", "splits", "sizes", "classes", "background", "ignore", "test_split"):
            if here[name] != there[name]:
                of_images = here["ids"] if name in ("splits", "sizes") else None
                what = f"{name}: {_difference(here[name], there[name], of_images)}"
                break
        else:
            what = "sources, colours or settings of masks"
        raise KeyMismatch(f"{store} was made for other {what}; pass --store or --workspace for a new store")

    def same_labels(self, other: Contents) -> bool:
        """Return whether equal files have equal mask codes under both descriptions."""
        own, others = (
            {name: value for name, value in one.key.preprocessing.settings.items() if name in LABEL_SETTINGS}
            for one in (self, other)
        )
        same_codes = (self.classes, self.background, self.ignore) == (other.classes, other.background, other.ignore)
        return same_codes and own == others


def read_attributes(text: bytes | str, *, source: str) -> dict[str, Any]:
    """Return the attributes in the text of a root zarr.json. Raises ValueError naming `source` for other content."""
    return decode_json(text, _RootGroup, source=source).attributes


class _RootGroup(msgspec.Struct, frozen=True):
    """What is read of the root zarr.json."""

    attributes: dict[str, Any] = {}


_Code = Annotated[int, msgspec.Meta(ge=0, le=255)]  # of a mask, which is uint8
_Colour = Annotated[str, msgspec.Meta(pattern="^#[0-9A-F]{6}$")]
_Pixels = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE_PX)]
_Block = Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK)]
_Position = Annotated[int, msgspec.Meta(ge=0)]
_Channels = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_Cells = Annotated[int, msgspec.Meta(ge=1, le=4096)]


@dataclass(frozen=True)
class _Attributes:
    """The attributes of the root group as they are on disk, beside `pathseg_format` and copies of the key's fields."""

    key: dict[str, Any]
    ids: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    splits: tuple[str, ...]
    sizes: tuple[tuple[_Pixels, _Pixels], ...]
    classes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=256)]
    ignore: _Code | None
    test_split: str
    blocks: Annotated[dict[_Block, tuple[_Channels, _Cells]], msgspec.Meta(min_length=1)]
    model_trained: bool
    has_instances: bool
    made_by: dict[str, str]
    images_per_unit: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    background: _Code | None = None
    colours: tuple[_Colour | None, ...] = field(default=())
    sources: tuple[str | None, ...] = field(default=())
    groups: tuple[str | None, ...] = field(default=())
    views: tuple[_Position, ...] = field(default=())
    slides: tuple[str | None, ...] = field(default=())
    corners: tuple[tuple[_Position, _Position] | None, ...] = field(default=())

    def entries(self) -> tuple[ImageEntry, ...]:
        """Return one entry per image. Raises ValueError when the lists differ in length or an id stands twice."""
        count = len(self.ids)
        if len(set(self.ids)) < count:
            raise ValueError("ids names an image twice")
        none = (None,) * count
        of_views = self.sources or none, self.groups or none, self.views or (0,) * count
        of_windows = self.slides or none, self.corners or none
        rows = zip(self.ids, self.splits, self.sizes, *of_views, *of_windows, strict=True)
        return tuple(ImageEntry(id_, split, *size, *rest) for id_, split, size, *rest in rows)


def _require_credible(key: StoreKey, blocks: Mapping[int, tuple[int, int]]) -> None:
    """Raise ValueError for sizes that no image has, before memory is allocated for them."""
    if max(key.size) > MAX_SIDE_PX:
        raise ValueError(f"size is {key.size[1]}x{key.size[0]} px, but a side has at most {MAX_SIDE_PX}")
    patches = PatchGrid.of(*key.size).patches
    if key.mpp is not None and not 0 < key.mpp < float("inf"):
        raise ValueError(f"mpp is {key.mpp}, but must be a positive number")
    for block, shape in blocks.items():
        size = patches * math.prod(BlockShape(*shape).stored(key.layout)) * int(key.dtype.removeprefix("float")) // 8
        if size > MAX_BLOCK_BYTES:
            raise ValueError(f"block {block} of an image has {size} bytes, but at most {MAX_BLOCK_BYTES}")


def _difference(here: Any, there: Any, ids: list[str] | None) -> str:
    """Describe the first difference; of the lists with one value for each of these images, its id."""
    if not isinstance(here, list):
        return f"{here!r} there, {there!r} asked for"
    if len(here) != len(there):
        return f"{len(here)} there, {len(there)} asked for"
    first = next(i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
    return f"{f'number {first}' if ids is None else ids[first]} is {here[first]!r} there, {there[first]!r} asked for"
