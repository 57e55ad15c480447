"""Making and filling a feature store, unit by unit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import zarr

from pathseg.store.blocks import array_name
from pathseg.store.contents import Contents
from pathseg.store.errors import Damaged, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.arrays import chunk_names, descriptions
from pathseg.store.format.chunks import all_finite, is_plain, is_plain_shards, write_chunks, write_shard
from pathseg.store.format.manifest import extend_manifest, read_manifest
from pathseg.store.format.packing import PACKINGS
from pathseg.store.location.location import Location, open_location
from pathseg.store.records import PIXELS, Checksums, checksum, features_part
from pathseg.store.runtime.prefetch import prefetch_map

OneImage = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # image (H, W, 3), mask (H, W), instances (h0, w0)


class StoreWriter:
    """Writes into a store. A unit of work is a run of `images_per_unit` images.

    A unit's arrays are written first, each whole and in one call, and its completion record last, so whatever is not
    recorded is made again by the next run. Two writers at once write the same bytes and do no harm.
    """

    def __init__(self, path: str | os.PathLike[str] | Location, contents: Contents) -> None:
        """Make a store, or open the one that is there after checking that it is of the same make.

        Raises KeyMismatch when what is there was made in another way, StoreError when it is something else.
        """
        location = open_location(path)
        _require_ours(location)
        with location.metadata_lock():
            if read_manifest(location):
                FeatureStore.open(location).contents.require(contents, store=str(location))
            else:
                _describe(location, contents)
        self.store = FeatureStore.open(location)
        self._group = zarr.open_group(location.zarr(read_only=False), mode="r+", use_consolidated=False)
        self._arrays: dict[str, zarr.Array] = {}
        self._packing = PACKINGS[contents.key.packing]
        self.store.records.sweep()

    def add_arrays(self, timesteps: Iterable[int], blocks: Iterable[int]) -> None:
        """Make the arrays of these timesteps and blocks, unless they are there."""
        location, blocks = self.store.location, tuple(blocks)
        fresh = {t: [block for block in blocks if block not in self.store.stored_blocks(t)] for t in timesteps}
        parts = [features_part(t, lacking) for t, lacking in fresh.items() if lacking]
        if parts:
            with location.metadata_lock():
                _describe(location, self.store.contents, parts)
            self.store.manifest.update(read_manifest(location))

    def images(self, unit: int) -> range:
        """Indices of a unit's images."""
        size = self.store.contents.images_per_unit
        return range(unit * size, min((unit + 1) * size, len(self.store)))

    def write_pixels(self, unit: int, images: Sequence[OneImage | None]) -> None:
        """Write and commit the pixels of a unit; None for an image that is set aside."""
        arrays = {"images": [i and i[0] for i in images], "masks": [i and i[1] for i in images]}
        if self.store.contents.has_instances:
            arrays["instances"] = [i and self._padded(i[2]) for i in images]
        with self._named_if_lost():
            self._commit(PIXELS, unit, self._write_all(unit, arrays.items()))

    def write_features(self, unit: int, *, t: int, features: Iterable[tuple[int, Sequence[np.ndarray | None]]]) -> None:
        """Write and commit blocks of a unit: pairs of block and, for each image, (P, C, h, w) in the store's layout.

        Pairs are taken one at a time, and few of them wait to be written, so that a generator need not keep all blocks
        upsampled in memory. None stands for an image that is set aside. Raises StoreError for values that the store's
        dtype cannot hold.
        """
        numbers = {array_name(t, block): block for block in self.store.contents.blocks}
        with self._named_if_lost():
            sums = self._write_all(unit, ((array_name(t, block), maps) for block, maps in features))
            self._commit(features_part(t, [numbers[name] for name in sums]), unit, sums)

    def _commit(self, part: str, unit: int, sums: Checksums) -> None:
        """Write the record, unless the store has gone and its chunks fell into the bare folder below a lost mount."""
        self._require_there()
        self.store.records.write(part, unit, sums)

    def _require_there(self) -> None:
        if not self.store.location.exists("zarr.json"):
            raise StoreError(f"{self.store.location} is no longer there; bring it back (is it mounted?) and run again")

    @contextmanager
    def _named_if_lost(self) -> Iterator[None]:
        """A file or folder that vanishes in the middle of a write: say so if it is the whole store that did."""
        try:
            yield
        except FileNotFoundError:
            self._require_there()
            raise

    def _write_all(
        self, unit: int, arrays: Iterable[tuple[str, Sequence[np.ndarray | None]]]
    ) -> dict[str, list[int | None]]:
        """Write a unit of several arrays; by name the CRC-32C per image."""
        written = prefetch_map(
            lambda item: (item[0], self._write(item[0], unit, item[1])),
            arrays,
            threads=self.store.location.concurrency,
            size_bytes=lambda item: sum(image.nbytes for image in item[1] if image is not None),
        )
        return dict(written)

    def _write(self, name: str, unit: int, images: Sequence[np.ndarray | None]) -> list[int | None]:
        """Write a unit of one array in one call (a shard has one owner); CRC-32C per image."""
        target = self._array(name)
        for image in images:
            if image is not None and image.shape != target.shape[1:]:
                raise ValueError(f"{name} takes {target.shape[1:]} for one image, got {image.shape}")
        with np.errstate(over="ignore"):  # what this dtype cannot hold is found while it is written
            dtype = target.dtype.newbyteorder("<")
            values = [None if image is None else np.ascontiguousarray(image, dtype) for image in images]
        try:
            return self._write_values(target, unit, values)
        except OverflowError as e:
            found = zip(self.images(unit), values, strict=True)
            index = next(index for index, value in found if value is not None and not all_finite(value))
            raise StoreError(
                f"{name} of {self.store.ids[index]} has values that {target.dtype} cannot hold; pass --dtype float32"
            ) from e

    def _write_values(self, target: zarr.Array, unit: int, values: Sequence[np.ndarray | None]) -> list[int | None]:
        """Past Zarr where its codecs add no more than checksums. Raises OverflowError when a value is not finite."""
        location, size = self.store.location, self.store.contents.images_per_unit
        names = [f"{target.path}/{chunk}" for chunk in chunk_names(target, unit, size)]
        lacking = any(value is None for value in values)
        blank = np.full(target.shape[1:], target.fill_value, target.dtype.newbyteorder("<")) if lacking else None
        if is_plain_shards(target):
            return write_shard(location, names[0], values, blank=blank, slots=size)
        if is_plain(target) and not lacking:
            return [write_chunks(location, names, values[0])]
        if not all(value is None or all_finite(value) for value in values):
            raise OverflowError("a value is infinite or no number")
        if target.dtype.kind == "f":
            values = [None if value is None else self._packing.rounded(value) for value in values]
        indices = self.images(unit)
        target[indices.start : indices.stop] = np.stack([blank if value is None else value for value in values])
        return [None if value is None else checksum(value) for value in values]

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            self._arrays[name] = self._group[name]
        return self._arrays[name]

    def _padded(self, instances: np.ndarray) -> np.ndarray:
        padded = np.zeros(self._array("instances").shape[1:], np.uint16)
        padded[: instances.shape[0], : instances.shape[1]] = instances
        return padded


def _require_ours(location: Location) -> None:
    """Raise StoreError when something else lies there, Damaged for a store that has lost its manifest."""
    group = location.read("zarr.json") if location.exists("zarr.json") else b"pathseg_format"
    if b"pathseg_format" not in group:
        raise StoreError(f"{location} is a Zarr group but no pathseg store; pass another --store")
    foreign = next((name for name in location.names() if not name.endswith(("zarr.json", ".partial"))), None)
    if foreign is None or read_manifest(location):
        return
    if location.exists("zarr.json"):
        raise Damaged(f"{location} has lost its manifest; run pathseg verify --repair")
    raise StoreError(f"{location} holds something else ({foreign}) and is no pathseg store; pass another --store")


def _describe(location: Location, contents: Contents, parts: Iterable[str] = ()) -> None:
    """Put the descriptions in place that the manifest has not, then into the manifest; nothing is ever removed."""
    known = read_manifest(location)
    fresh = {name: text for name, text in descriptions(contents, parts).items() if name not in known}
    for name, text in fresh.items():
        location.write(name, text.encode())
    extend_manifest(location, list(fresh))
