"""Creating and filling a feature store, unit by unit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import zarr

from pathseg.store.contents import Contents
from pathseg.store.errors import Damaged, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.arrays import chunk_names, same_metadata, zarr_metadata
from pathseg.store.format.chunks import all_finite, chunk_format, write_chunks, write_shard
from pathseg.store.format.manifest import extend_manifest, read_manifest
from pathseg.store.format.names import HALF_WRITTEN, MANIFEST, METADATA, ROOT
from pathseg.store.format.packing import StoredArray
from pathseg.store.growth import finish_growth
from pathseg.store.location.location import Location, open_location
from pathseg.store.records import PIXELS, ArraySet, Checksums, checksum
from pathseg.store.runtime.prefetch import prefetch_map

ImagePixels = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # image (H, W, 3), mask (H, W), instances (h0, w0)


class StoreWriter:
    """Writes into a store. A unit of work is a run of `images_per_unit` images.

    The arrays of a unit are written first, each in one call, and the completion record last; a unit without a record is
    written again by the next run. Two writers at the same time write the same bytes and do no harm.
    """

    def __init__(self, path: str | os.PathLike[str] | Location, contents: Contents) -> None:
        """Create a store, or open an existing one after checking that it has followed this description.

        A growth that was cut off is finished first; `growth.grow` lets a store follow another description. Raises
        KeyMismatch when it holds other features or images, StoreError when there are other files, Damaged when its
        description is not what was written.
        """
        location = open_location(path)
        with location.metadata_lock():
            if not read_manifest(location):
                _require_no_other_files(location)
                _write_metadata(location, contents)
            finish_growth(location)
            self.store = FeatureStore.open(location)
        self.store.contents.require(contents, store=str(location))
        self._zarr = location.zarr(read_only=False)
        self._arrays: dict[str, zarr.Array] = {}
        self.store.records.remove_superseded()

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold while units are written; gives False when another run is writing to the store too.

        Waits while the store is being repaired, and reads the records again: a repair may have dropped some of them.
        """
        with self.store.location.writer_lock() as is_first:
            self.store.reload_records()
            yield is_first

    def add_arrays(self, timesteps: Iterable[int], blocks: Iterable[int]) -> None:
        """Create the arrays of these timesteps and blocks that do not exist yet."""
        location, blocks = self.store.location, tuple(blocks)
        missing = {t: [block for block in blocks if block not in self.store.stored_blocks(t)] for t in timesteps}
        array_sets = [ArraySet(t, tuple(sorted(numbers))) for t, numbers in missing.items() if numbers]
        if array_sets:
            with location.metadata_lock():
                _write_metadata(location, self.store.contents, array_sets)
            self.store.manifest = read_manifest(location)

    def images(self, unit: int) -> range:
        """Return the indices of a unit's images."""
        return self.store.contents.unit_images(unit)

    def write_pixels(
        self, unit: int, images: Sequence[ImagePixels | None], *, sources: Sequence[str | None] = ()
    ) -> None:
        """Write and record the pixels of a unit; None for an image that is set aside, or stays as it is stored.

        Arrays that are stored with these values already are not written again: of new masks the masks alone are.
        sources: of each image the size and times of its files, by which a later run sees whether to read them again;
        of an image that stays as it is they are kept.
        """
        stored = [None if image is None else pixel_arrays(image, self.store.contents) for image in images]
        arrays = {name: [None if image is None else image[name] for image in stored] for name in self._pixel_names}
        with self._lost_store_named():
            record = self.store.records.known(PIXELS, unit)
            recorded = {} if record is None else {name: list(sums) for name, sums in record.checksums.items()}
            complete = {name: self._with_stored(name, unit, PIXELS, values) for name, values in arrays.items()}
            same = {
                name for name, values in complete.items()
                if recorded.get(name) == [None if value is None else checksum(value) for value in values]
            }  # fmt: skip
            written = self._write_all(unit, ((name, values) for name, values in complete.items() if name not in same))
            checksums = {name: recorded[name] if name in same else written[name] for name in complete}
            if record is not None and record.sources and sources:
                before = [*record.sources, *[None] * len(images)]
                pairs = zip(sources, before, images, strict=False)
                sources = [old if image is None and new is None else new for new, old, image in pairs]
            self._commit(PIXELS, unit, checksums, sources=sources)

    def _with_stored(
        self, name: str, unit: int, arrays: ArraySet, images: Sequence[np.ndarray | None]
    ) -> list[np.ndarray | None]:
        """Return the images of an array with those that are None replaced by what is stored, if anything is."""
        indices = self.images(unit)
        return [
            self.store.stored(name, index, arrays)[1] if image is None else image
            for index, image in zip(indices, images, strict=True)
        ]

    @property
    def _pixel_names(self) -> tuple[str, ...]:
        return self.store.contents.array_names(PIXELS)

    def write_features(self, unit: int, *, t: int, features: Iterable[tuple[int, Sequence[np.ndarray | None]]]) -> None:
        """Write and record blocks of a unit: pairs of block and, per image, (P, C, h, w) in the store's layout.

        Pairs are taken one at a time, and few of them are held until they are written, so that a generator need not
        keep all blocks upsampled in memory. None stands for an image that is set aside, or stays as it is stored.
        Raises StoreError for values that the store's dtype cannot hold.
        """
        written: dict[int, Checksums] = {}
        with self._lost_store_named():
            for block, checksums in prefetch_map(
                lambda item: (item[0], self._write_block(unit, t, *item)),
                features,
                threads=self.store.location.concurrency,
                size_bytes=lambda item: _bytes_of(item[1]),
            ):
                written[block] = checksums
            of_arrays = {name: sums for checksums in written.values() for name, sums in checksums.items()}
            self._commit(ArraySet(t, tuple(sorted(written))), unit, of_arrays)

    def _write_block(self, unit: int, t: int, block: int, maps: Sequence[np.ndarray | None]) -> Checksums:
        """Write a unit of the arrays of a block; images that are None stay as they are stored, if they are."""
        arrays, images = self.store.contents.stored_arrays(t, block), list[Sequence[np.ndarray | None]]()
        for index, values in zip(self.images(unit), maps, strict=True):
            if values is not None:
                images.append(self._encoded(arrays[0], index, values))
            elif (recorded := self.store.records.arrays_with(t, block, index)) is not None:
                images.append([self.store.stored(array.name, index, recorded)[1] for array in arrays])
            else:
                images.append([None] * len(arrays))
        of_arrays = zip(arrays, zip(*images, strict=True), strict=True)
        return {array.name: self._write(array.name, unit, stored) for array, stored in of_arrays}

    def _encoded(self, array: StoredArray, index: int, values: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what is stored of an image's values, of which `array` is the first."""
        _require_shape(array.name, array.shape, values)
        contents = self.store.contents
        try:
            return contents.packing.encode(values, contents.key.dtype)
        except OverflowError as e:
            raise self._overflow(array.name, index) from e

    def _commit(self, arrays: ArraySet, unit: int, checksums: Checksums, *, sources: Sequence[str | None] = ()) -> None:
        """Write the record, unless the mount that held the store is lost and its chunks were written below it."""
        self._require_store()
        size = self.store.contents.images_per_unit
        names = self.store.contents.array_names(arrays)
        self.store.location.flush(
            f"{name}/{chunk}" for name in names for chunk in chunk_names(self._array(name), unit, size)
        )
        self.store.records.write(arrays, unit, checksums, sources=sources)

    def _require_store(self) -> None:
        if not self.store.location.exists(ROOT):
            raise StoreError(f"{self.store.location} is no longer there; bring it back (is it mounted?) and run again")

    @contextmanager
    def _lost_store_named(self) -> Iterator[None]:
        """Raise StoreError instead of FileNotFoundError when the whole store has gone during a write."""
        try:
            yield
        except FileNotFoundError:
            self._require_store()
            raise

    def _write_all(
        self, unit: int, arrays: Iterable[tuple[str, Sequence[np.ndarray | None]]]
    ) -> dict[str, list[int | None]]:
        """Write a unit of several arrays; return by name the CRC-32C of each image."""
        written = prefetch_map(
            lambda item: (item[0], self._write(item[0], unit, item[1])),
            arrays,
            threads=self.store.location.concurrency,
            size_bytes=lambda item: _bytes_of(item[1]),
        )
        return dict(written)

    def _write(self, name: str, unit: int, images: Sequence[np.ndarray | None]) -> list[int | None]:
        """Write a unit of one array in one call, so that each shard is written once; return the CRC-32C per image."""
        target = self._array(name)
        for image in images:
            if image is not None:
                _require_shape(name, target.shape[1:], image)
        dtype = target.dtype.newbyteorder("<")
        values = [None if image is None else np.ascontiguousarray(image, dtype) for image in images]
        try:
            return self._write_values(target, unit, values)
        except OverflowError as e:
            pairs = zip(self.images(unit), values, strict=True)
            index = next(index for index, value in pairs if value is not None and not all_finite(value))
            raise self._overflow(name, index) from e

    def _overflow(self, name: str, index: int) -> StoreError:
        return StoreError(self.store.contents.key.overflow(f"{name} of {self.store.ids[index]}"))

    def _write_values(self, target: zarr.Array, unit: int, values: Sequence[np.ndarray | None]) -> list[int | None]:
        """Write without Zarr what `format.chunks` can. Raises OverflowError when a value is not finite."""
        location, size = self.store.location, self.store.contents.images_per_unit
        names = [f"{target.path}/{chunk}" for chunk in chunk_names(target, unit, size)]
        set_aside = any(value is None for value in values)
        fill = np.full(target.shape[1:], target.fill_value, target.dtype.newbyteorder("<")) if set_aside else None
        chosen = chunk_format(target)
        if chosen is not None and chosen.sharded:
            return write_shard(location, names[0], values, fill=fill, chunks=size, blosc=chosen.blosc)
        if chosen is not None and values[0] is not None and not set_aside:
            return [write_chunks(location, names, values[0], chosen.blosc)]
        if not all(value is None or all_finite(value) for value in values):
            raise OverflowError("a value is not finite")
        indices = self.images(unit)
        filled = [fill if value is None else value for value in values]
        target[indices.start : indices.stop] = np.stack([value for value in filled if value is not None])
        return [None if value is None else checksum(value) for value in values]

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            self.store.array(name)  # raises Damaged unless it is described as it was created
            array = zarr.open_array(self._zarr, path=name, mode="r+", zarr_format=3)
            self._arrays[name] = array.with_config({"write_empty_chunks": True, "order": "C"})  # no file holds these
        return self._arrays[name]


def _require_shape(name: str, shape: tuple[int, ...], image: np.ndarray) -> None:
    if image.shape != shape:
        raise ValueError(f"{name} takes {shape} for one image, got {image.shape}")


def _bytes_of(images: Iterable[np.ndarray | None]) -> int:
    return sum(image.nbytes for image in images if image is not None)


def pixel_arrays(image: ImagePixels, contents: Contents) -> dict[str, np.ndarray]:
    """Return the pixels of an image by array, as a store with these contents holds them."""
    pixels, mask, instances = image
    arrays = {"images": pixels, "masks": mask}
    return arrays | ({"instances": _padded(instances, contents)} if contents.has_instances else {})


def _padded(instances: np.ndarray | None, contents: Contents) -> np.ndarray:
    if instances is None:
        raise ValueError("an image has no instance ids, but its store has an array of them")
    padded = np.zeros(contents.padded_px, np.uint16)
    padded[: instances.shape[0], : instances.shape[1]] = instances
    return padded


def _require_no_other_files(location: Location) -> None:
    """Raise StoreError when the location holds something else, Damaged for a store that has lost its manifest."""
    described = location.exists(ROOT)
    if described and b"pathseg_format" not in location.read(ROOT):
        raise StoreError(f"{location} is a Zarr group but no pathseg store; pass another --store")
    begun = (METADATA, HALF_WRITTEN)  # all that a run leaves that was killed before it had written the manifest
    foreign = next((name for name in location.names() if not any(own.fullmatch(name) for own in begun)), None)
    if foreign is None:
        return
    if described:
        raise Damaged(f"{location} has lost its manifest; run pathseg verify --repair")
    raise StoreError(f"{location} holds something else ({foreign}) and is no pathseg store; pass another --store")


def _write_metadata(location: Location, contents: Contents, array_sets: Iterable[ArraySet] = ()) -> None:
    """Write the zarr.json files that the manifest does not list, then add them to it; nothing is ever removed."""
    known = read_manifest(location).texts
    fresh = {name: text for name, text in zarr_metadata(contents, array_sets).items() if name not in known}
    for name, text in fresh.items() if known else ():
        if location.exists(name) and not same_metadata(location.read(name), text):
            raise StoreError(f"{location}/{name} was not written by pathseg; move that array away and run again")
    for name, text in fresh.items():
        location.write(name, text.encode())
    extend_manifest(location, list(fresh))
    location.flush([*fresh, MANIFEST])
