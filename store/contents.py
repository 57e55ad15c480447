"""What a store says of itself: images, classes, blocks, key. Kept in the attributes of its root group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pathseg.store.classes import background_code
from pathseg.store.errors import Damaged, KeyMismatch, StoreError
from pathseg.store.format.size import BlockShape
from pathseg.store.grid import PatchGrid
from pathseg.store.key import StoreKey

FORMAT = 2  # raised when a reader of this release could not read the store rightly; format 1 is still read


@dataclass(frozen=True)
class ImageEntry:
    """One image: id, split, and its original height and width in px.

    source is the slide or region that it was cut from, where several images share one. group is the patch that it is
    a view of, view the view's number, 0 = the centre: training draws one view of a group in each epoch.
    """

    id: str
    split: str
    height: int
    width: int
    source: str | None = None
    group: str | None = None
    view: int = 0


@dataclass(frozen=True)
class Contents:
    """Everything stage two needs to know; it never asks the data set or the model.

    classes name the mask codes 0..K-1. background is the code of the class that is no object, None where every class
    is one. ignore is the code that counts in no loss, class weight or metric. test_split is the split that results are
    quoted on. blocks are all blocks of the model (which of them are stored is seen from the arrays). made_by is free
    text for people: versions, model card, licence. images_per_unit images are written and recorded together; above 1
    they share shards.
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

    @property
    def units(self) -> int:
        """Number of units of work."""
        return -(-len(self.images) // self.images_per_unit)

    @property
    def grid(self) -> PatchGrid:
        """The patches of an image, the same for all."""
        return PatchGrid.of(*self.key.size)

    def to_attributes(self) -> dict[str, Any]:
        """Plain JSON values, one attribute per fact; sources, groups and views where there are any."""
        cut = any(image.source is not None or image.group is not None for image in self.images)
        listed = {
            "sources": [image.source for image in self.images],
            "groups": [image.group for image in self.images],
            "views": [image.view for image in self.images],
        }
        return {
            "pathseg_format": FORMAT,
            "key": self.key.to_json(),
            "ids": [image.id for image in self.images],
            "splits": [image.split for image in self.images],
            "sizes": [[image.height, image.width] for image in self.images],
            **(listed if cut else {}),
            "classes": list(self.classes),
            "background": self.background,
            "ignore": self.ignore,
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

        Raises StoreError for attributes of something else or of a newer format, Damaged when one is missing or has
        the wrong type.
        """
        if "pathseg_format" not in values:
            raise StoreError(f"{store} is a Zarr group but no pathseg store; make one with pathseg extract")
        version = values["pathseg_format"]
        if not isinstance(version, int):
            raise Damaged(f"the format of {store} is {version!r}, no number; run pathseg verify --repair")
        if version > FORMAT:
            raise StoreError(f"{store} has format {version}, this pathseg reads up to {FORMAT}; upgrade pathseg")
        try:
            found = msgspec.convert(values, _Attributes, str_keys=True)
            images = found.entries()
            background = background_code(found.classes) if version == 1 else found.background
        except (msgspec.ValidationError, ValueError) as e:
            raise Damaged(f"the attributes of {store} are damaged: {e}; run pathseg verify --repair") from e
        return cls(
            key=StoreKey.from_json(found.key),
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
        )

    def require(self, wanted: Contents, *, store: str) -> None:
        """Raise KeyMismatch unless `wanted` describes the same features of the same images."""
        self.key.require(wanted.key, store=store)
        here, there = self.to_attributes(), wanted.to_attributes()
        for name in ("ids", "splits", "sizes", "classes", "ignore"):
            if here[name] != there[name]:
                raise KeyMismatch(
                    f"{store} was made for other {name}: {_difference(here[name], there[name])}; "
                    f"pass --store or --workspace for a new store"
                )


@dataclass(frozen=True)
class _Attributes:
    """The attributes of the root group as they are on disk, beside `pathseg_format` and copies of the key's fields."""

    key: dict[str, Any]
    ids: tuple[str, ...]
    splits: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    classes: tuple[str, ...]
    ignore: int | None
    test_split: str
    blocks: dict[int, tuple[int, int]]
    model_trained: bool
    has_instances: bool
    made_by: dict[str, str]
    images_per_unit: int
    background: int | None = None
    sources: tuple[str | None, ...] = field(default=())
    groups: tuple[str | None, ...] = field(default=())
    views: tuple[int, ...] = field(default=())

    def entries(self) -> tuple[ImageEntry, ...]:
        """One entry per image. Raises ValueError when the lists differ in length."""
        count = len(self.ids)
        sources, groups = self.sources or (None,) * count, self.groups or (None,) * count
        rows = zip(self.ids, self.splits, self.sizes, sources, groups, self.views or (0,) * count, strict=True)
        return tuple(ImageEntry(id_, split, *size, *cut) for id_, split, size, *cut in rows)


def _difference(here: Any, there: Any) -> str:
    if not isinstance(here, list):
        return f"{here!r} there, {there!r} asked for"
    if len(here) != len(there):
        return f"{len(here)} there, {len(there)} asked for"
    first = next(i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
    return f"number {first} is {here[first]!r} there, {there[first]!r} asked for"
