"""Joined stores: several stores of the same images, whose features one head reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from pathseg.store.contents import UNLISTED
from pathseg.store.features import FeatureStore
from pathseg.store.format.packing import StoredArray
from pathseg.store.location.cache import ReadCache
from pathseg.store.records import PIXELS
from pathseg.train.config import IMAGE, Layer

Value = TypeVar("Value")
SAME_STORES = "join stores that were extracted from the same images"


@dataclass(frozen=True)
class JoinedStores:
    """Stores of the same images, in an order that does not depend on the one they were given in; a single one too.

    names: of each store, by which selections name it. `join_stores` makes one.
    """

    stores: tuple[FeatureStore, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, store: FeatureStore | JoinedStores) -> JoinedStores:
        """Return joined stores as they are, and a single store as the only one."""
        return store if isinstance(store, JoinedStores) else cls((store,), (store_name(store),))

    def opener(self) -> Callable[[], JoinedStores]:
        """Return a function that opens the same stores, also in another process; the read caches stay."""
        return partial(_open, tuple((str(store.location), store.cache) for store in self.stores), self.names)

    @property
    def images(self) -> FeatureStore:
        """The store that images, masks, splits and classes are read from: they are the same in all."""
        return self.stores[0]

    @property
    def digest(self) -> str:
        """The digests of all stores (`FeatureStore.digest`), joined by `+`."""
        return "+".join(store.digest() for store in self.stores)

    def channels(self, layer: Layer) -> int:
        """Return the channels of a layer; 3 of the image itself."""
        return 3 if layer == IMAGE else self.stores[layer.source].contents.blocks[layer.block].channels

    def stored_arrays(self, layer: Layer) -> tuple[StoredArray, ...]:
        """Return the arrays that hold a layer: its values (P, C, h, w) and, where they are scaled, scales (C,)."""
        return self.stores[layer.source].contents.stored_arrays(layer.t, layer.block)

    def dtype(self, layers: Iterable[Layer]) -> np.dtype:
        """Return the dtype that holds the values of all these layers as heads get them: float32 of scaled ones."""
        return np.result_type(*(array.dtype for layer in layers for array in self.stored_arrays(layer)))

    def image_bytes(self, layers: Iterable[Layer]) -> int:
        """Return the bytes of these layers of one image as they are stored, uncompressed."""
        return sum(store.image_bytes(blocks) for store, _, blocks in self.arrays(layers))

    def arrays(self, layers: Iterable[Layer]) -> Iterator[tuple[FeatureStore, int, tuple[int, ...]]]:
        """Yield store, timestep and blocks of each read that gives these layers; the image itself is left out."""
        for (source, t), blocks in _reads(layers).items():
            yield self.stores[source], t, blocks

    def read(self, index: int, out: Mapping[Layer, Sequence[np.ndarray]]) -> None:
        """Read what is stored of layers of one image into an array in C order for each of `stored_arrays`.

        Raises as `FeatureStore.read` does.
        """
        for (source, t), blocks in _reads(out).items():
            into = {block: out[Layer(source, t, block)] for block in blocks}
            self.stores[source].read_stored(index, t=t, blocks=blocks, out=into)

    def of_each(self, values: Value | Mapping[str, Value], *, flag: str) -> tuple[Value, ...]:
        """Return one value for each store, from a mapping of names or from one value for all.

        Raises ValueError, naming the flag, for a name of no store and for a store without a value.
        """
        if not isinstance(values, Mapping):
            return (values,) * len(self.stores)
        stores = ", ".join(self.names)
        if unknown := [name for name in values if name not in self.names]:
            raise ValueError(f"{flag} names the store {unknown[0]}, but the stores are {stores}; name one of these")
        if lacking := [name for name in self.names if name not in values]:
            raise ValueError(
                f"{flag} has no value for the store {lacking[0]}, only for {', '.join(values)}; add {lacking[0]}:…"
            )
        return tuple(values[name] for name in self.names)


def join_stores(stores: Mapping[str, FeatureStore]) -> JoinedStores:
    """Join stores by name, in the order of their keys' digests, so that results do not depend on the order given.

    One store may be given twice, under two names. Raises ValueError, with both values, unless all hold the same images
    with the same masks, splits and classes.
    """
    first, *others = stores
    for name in others:
        _require_same_images(first, stores[first], name, stores[name])
    names = sorted(stores, key=lambda name: _rank(name, stores[name]))
    return JoinedStores(tuple(stores[name] for name in names), tuple(names))


def open_joined(stores: Sequence[str], *, open_store: Callable[[str], FeatureStore]) -> JoinedStores:
    """Open stores given as `PATH` or `NAME=PATH` and join them; without a name, a store has that of its folder.

    A text with = that is an existing path is taken as one. Raises ValueError where two have the same name, where a
    model of one name and settings has other weights in two stores, and as `join_stores` and opening a store do.
    """
    named: dict[str, FeatureStore] = {}
    for text in stores:
        before, equals, after = text.partition("=")
        # else a path or URL with = in it
        given = bool(equals) and not set(before) & set("/\\:") and not Path(text).exists()
        store = open_store(after if given else text)
        name = before if given else store_name(store)
        if not name or "," in name:
            raise ValueError(
                f"--store {text!r} gives the name {name!r}; write --store NAME=PATH, a NAME without commas"
            )
        if name in named:
            raise ValueError(
                f"two stores are named {name}: {named[name].location} and {store.location}; give one another name with "
                "--store NAME=PATH"
            )
        named[name] = store
    _require_one_model_per_name(named)
    return join_stores(named)


def _require_one_model_per_name(stores: Mapping[str, FeatureStore]) -> None:
    """Raise ValueError, naming both digests, for two models that predict could not tell apart: by name and settings."""
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    for name, store in stores.items():
        key = store.contents.key
        model = key.model, key.condition, repr(key.vit), repr(key.diffusers), repr(key.zoom)
        other, digest = found.setdefault(model, (name, key.model_digest))
        if digest != key.model_digest:
            raise ValueError(
                f"the stores {other} and {name} are both of a model {key.model}, but of other weights or contexts "
                f"({digest[:8]} and {key.model_digest[:8]}), which predict tells apart by name; give the models' "
                "folders different names and extract again"
            )


def store_name(store: FeatureStore) -> str:
    """Return the name of a store: that of its folder without `.zarr`."""
    return PurePath(str(store.location)).name.removesuffix(".zarr")


def _open(stores: Sequence[tuple[str, ReadCache | None]], names: tuple[str, ...]) -> JoinedStores:
    return JoinedStores(tuple(FeatureStore.open(location, cache=cache) for location, cache in stores), names)


def _rank(name: str, store: FeatureStore) -> tuple[str, ...]:
    return store.contents.key.digest, store.digest(), str(store.location), name


def _reads(layers: Iterable[Layer]) -> dict[tuple[int, int], tuple[int, ...]]:
    reads: dict[tuple[int, int], list[int]] = {}
    for layer in sorted(layers):
        if layer != IMAGE:
            reads.setdefault((layer.source, layer.t), []).append(layer.block)
    return {read: tuple(blocks) for read, blocks in reads.items()}


def _require_same_images(name: str, store: FeatureStore, other_name: str, other: FeatureStore) -> None:
    """Raise ValueError, naming both values, unless two stores differ in their features alone."""
    if str(store.location) == str(other.location):
        return
    here, there = _facts(store), _facts(other)
    for fact, value in here.items():
        if value != there[fact]:
            raise ValueError(
                f"the stores {name} and {other_name} differ in {fact}: {value} in {name}, {there[fact]} in "
                f"{other_name}; {SAME_STORES}"
            )
    for index, (image, theirs) in enumerate(zip(store.contents.images, other.contents.images, strict=True)):
        for fact in ("id", "split", "height", "width", "source", "group", "view"):
            if getattr(image, fact) != getattr(theirs, fact):
                raise ValueError(
                    f"image {index} of the stores {name} and {other_name} differs in its {fact}: "
                    f"{getattr(image, fact)} in {name}, {getattr(theirs, fact)} in {other_name}; {SAME_STORES}"
                )
        if image.split == UNLISTED or not (store.records.done(PIXELS, index) and other.records.done(PIXELS, index)):
            continue  # an incomplete image is found, or left out, when heads are planned
        for array in store.contents.array_names(PIXELS):
            crc, theirs_crc = (one.records.checksum_of(PIXELS, array, index) for one in (store, other))
            if crc != theirs_crc:
                raise ValueError(
                    f"the {array} of {image.id} differ in the stores {name} and {other_name}: CRC-32C {crc} in {name}, "
                    f"{theirs_crc} in {other_name}; {SAME_STORES}"
                )


def _facts(store: FeatureStore) -> dict[str, Any]:
    """What must be equal in joined stores, beside images."""
    contents = store.contents
    return {
        "data set": contents.key.dataset,
        "number of images": len(store),
        "size of the images in px": "x".join(map(str, reversed(contents.key.size))),
        "um/px": contents.key.mpp,
        "resizing of whole images": contents.key.preprocessing.resized,
        "classes": ", ".join(contents.classes),
        "background class": contents.background,
        "ignored code": contents.ignore,
        "test split": contents.test_split,
        "object masks": contents.has_instances,
    }
