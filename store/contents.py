"""What a store says of itself: images, classes, blocks, key. Kept in the attributes of its root group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pathseg.store.errors import Damaged, KeyMismatch, StoreError
from pathseg.store.format.size import BlockShape
from pathseg.store.grid import PatchGrid
from pathseg.store.key import StoreKey

FORMAT = 1  # raised when a reader of this release could not read the store rightly
CUT = {"source": None, "group": None, "view": 0}  # of images cut from larger ones; a store without is of whole images


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

    classes name the mask codes 0..K-1, `ignore` is the code that counts nowhere. `blocks` are all blocks of the model
    (stored ones are seen from the arrays). `made_by` is free text for people: versions, model card, licence.
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
    images_per_unit: int = 1  # images that are written and recorded together; above 1 they share shards

    @property
    def units(self) -> int:
        """Number of units of work."""
        return -(-len(self.images) // self.images_per_unit)

    @property
    def grid(self) -> PatchGrid:
        """The patches of an image, the same for all."""
        return PatchGrid.of(*self.key.size)

    def to_attributes(self) -> dict[str, Any]:
        """Plain JSON values, one attribute a fact; sources, groups and views where there are any."""
        cut = any(image.source is not None or image.group is not None for image in self.images)
        views = {name + "s": [getattr(image, name) for image in self.images] for name in CUT} if cut else {}
        return {
            "pathseg_format": FORMAT,
            "key": self.key.to_dict(),
            "ids": [image.id for image in self.images],
            "splits": [image.split for image in self.images],
            "sizes": [[image.height, image.width] for image in self.images],
            **views,
            "classes": list(self.classes),
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
    def from_attributes(cls, values: dict[str, Any], *, store: str) -> Contents:
        """The inverse of `to_attributes`. Raises StoreError when they are of something else or newer."""
        if "pathseg_format" not in values:
            raise StoreError(f"{store} is a Zarr group but no pathseg store; make one with pathseg extract")
        if not isinstance(values["pathseg_format"], int):
            raise Damaged(
                f"the format of {store} is {values['pathseg_format']!r}, no number; run pathseg verify --repair"
            )
        if values["pathseg_format"] > FORMAT:
            raise StoreError(
                f"{store} has format {values['pathseg_format']}, this pathseg reads up to {FORMAT}; upgrade pathseg"
            )
        missing = sorted({"key", "ids", "splits", "sizes", "classes", "blocks", "images_per_unit"} - set(values))
        if missing:
            raise Damaged(f"the attributes of {store} lack {', '.join(missing)}; run pathseg verify --repair")
        count = len(values["ids"])
        cut = zip(*(values.get(name + "s", [default] * count) for name, default in CUT.items()), strict=True)
        rows = zip(values["ids"], values["splits"], values["sizes"], cut, strict=True)
        return cls(
            key=StoreKey.from_dict(values["key"]),
            images=tuple(ImageEntry(i, split, *size, *views) for i, split, size, views in rows),
            classes=tuple(values["classes"]),
            ignore=values["ignore"],
            test_split=values["test_split"],
            blocks={int(b): BlockShape(*shape) for b, shape in values["blocks"].items()},
            model_trained=values["model_trained"],
            has_instances=values["has_instances"],
            made_by=values["made_by"],
            images_per_unit=values["images_per_unit"],
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


def _difference(here: Any, there: Any) -> str:
    if not isinstance(here, list):
        return f"{here!r} there, {there!r} asked for"
    if len(here) != len(there):
        return f"{len(here)} there, {len(there)} asked for"
    first = next(i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
    return f"number {first} is {here[first]!r} there, {there[first]!r} asked for"
