"""The feature store: one Zarr v3 group of images, masks and per-block feature maps, read back as it was written."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import zarr

from pathseg.store.blocks import array_name
from pathseg.store.contents import Contents, read_attributes
from pathseg.store.errors import Damaged, Incomplete, StoreError, unreadable_as_damage
from pathseg.store.format.arrays import chunk_names, open_array
from pathseg.store.format.chunks import ChunkFormat, chunk_format, read_chunks, read_from_shard, require_index_within
from pathseg.store.format.decompression import decompress_zlib
from pathseg.store.format.manifest import Manifest, read_description, read_growth, read_manifest
from pathseg.store.format.names import FOLDER, MANIFEST, ROOT
from pathseg.store.format.packing import unscaled
from pathseg.store.location.cache import ReadCache
from pathseg.store.location.location import Location, open_location
from pathseg.store.records import PIXELS, ArraySet, Records, checksum


class FeatureStore:
    """Images, masks and cached features of a data set, read-only; `writer.StoreWriter` creates and fills a store.

    Reading something with a completion record returns what was written or raises Damaged; without one it raises
    Incomplete. A store that grows meanwhile reads as it was when it was opened.
    """

    def __init__(
        self,
        location: Location,
        attributes: Mapping[str, Any],
        manifest: Manifest,
        *,
        cache: ReadCache | None = None,
    ) -> None:
        self.location = location
        self.contents = Contents.from_attributes(attributes, store=str(location))
        self.manifest = manifest
        self.reload_records()
        self._attributes = attributes
        # not of the whole description, so that features that were read before a store grew are found again
        made = json.dumps([str(location), self.contents.key.of_features.to_json()], sort_keys=True)
        self.cache, self._cache_folder = cache, hashlib.sha256(made.encode()).hexdigest()[:16]
        self._zarr = location.zarr(read_only=True)
        self._arrays: dict[str, zarr.Array] = {}
        self._formats: dict[str, ChunkFormat | None] = {}

    def reload_records(self) -> None:
        """Read again which units are complete."""
        contents = self.contents
        self.records = Records(self.location, images_per_unit=contents.images_per_unit, units=contents.units)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | Location, *, cache: ReadCache | None = None) -> FeatureStore:
        """Open a store at a local path or s3://bucket/prefix; with a cache, each image is fetched from S3 only once.

        Raises StoreError when there is no store, Damaged when its description is not what was written.
        """
        location = open_location(path)
        if not location.exists(ROOT):
            if location.exists(MANIFEST):
                raise Damaged(f"{location}/{ROOT} has gone; run pathseg verify --repair")
            raise StoreError(f"there is no feature store at {location}; make one with pathseg extract")
        manifest, text = read_description(location)
        try:
            attributes = read_attributes(text, source=f"{location}/{ROOT}")
        except ValueError as e:
            raise Damaged(f"{e}; run pathseg verify --repair") from e
        return cls(location, attributes, manifest, cache=cache)

    @property
    def ids(self) -> tuple[str, ...]:
        """The id of each image, in order."""
        return self.contents.ids

    @property
    def splits(self) -> tuple[str, ...]:
        """The split of each image, in order."""
        return tuple(image.split for image in self.contents.images)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the mask codes 0..K-1."""
        return self.contents.classes

    @property
    def ignore(self) -> int | None:
        """The mask code that counts in no loss or metric, None where there is none."""
        return self.contents.ignore

    @property
    def listed(self) -> tuple[int, ...]:
        """Indices of the images that the data set lists; the others stay on disk and count nowhere."""
        return self.contents.listed

    @property
    def labelled(self) -> tuple[int, ...]:
        """Indices of the listed images with labels, which heads learn from and are scored on."""
        return self.contents.labelled

    def __len__(self) -> int:
        return len(self.contents.images)

    def image(self, index: int) -> np.ndarray:
        """Read an image at the size that the model saw, (H, W, 3) uint8 RGB."""
        return self._read("images", index, PIXELS)

    def mask(self, index: int) -> np.ndarray:
        """Read class codes at the size of the image, (H, W) uint8."""
        return self._read("masks", index, PIXELS)

    def instances(self, index: int) -> np.ndarray:
        """Read object ids at the image's original size, (h0, w0) uint16, 0 = background.

        Raises StoreError when the data set has none.
        """
        if not self.contents.has_instances:
            raise StoreError(f"{self.location} holds no instance masks; its data set has none")
        entry = self.contents.images[index]
        return self._read("instances", index, PIXELS)[: entry.height, : entry.width]

    def read(
        self, index: int, t: int = 50, blocks: Iterable[int] = (), *, out: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, np.ndarray]:
        """Read features of one image in the store's layout: {block: (P, C, h, w)}; without `blocks` all stored ones.

        Values are of the key's dtype, also where they are stored scaled.
        out: an array in C order per block, filled and returned instead of a new one, because allocating memory takes as
        long as reading. Raises Incomplete when a block is not in the store yet, Damaged when the bytes are not those
        that were written, ValueError when an array of `out` has another shape or dtype.
        """
        blocks = tuple(blocks) or self.stored_blocks(t)
        if not self.contents.packing.scaled:
            into = None if out is None else {block: (out[block],) for block in blocks}
            found = self.read_stored(index, t=t, blocks=blocks, out=into)
            return {block: values for block, (values,) in found.items()}
        dtype, scaled = np.dtype(self.contents.key.dtype), {}
        for block, (integers, scales) in self.read_stored(index, t=t, blocks=blocks).items():
            values = np.empty(integers.shape, dtype) if out is None else out[block]
            _require_fitting(values, array_name(t, block), integers.shape, dtype)
            scaled[block] = unscaled(integers, scales, out=values)
        return scaled

    def read_stored(
        self, index: int, *, t: int, blocks: Iterable[int], out: Mapping[int, Sequence[np.ndarray]] | None = None
    ) -> dict[int, tuple[np.ndarray, ...]]:
        """Read features of one image as they are stored: {block: what each of `Contents.stored_arrays` holds of it}.

        out: an array in C order for each of them, filled and returned instead of a new one. Raises as `read`.
        """
        recorded: dict[str, ArraySet] = {}
        names: dict[int, list[str]] = {}
        for block in blocks:
            if (arrays := self.records.arrays_with(t, block, index)) is None:
                raise Incomplete(
                    f"{self.location} has no block {block} at t {t} of {self.ids[index]}; run pathseg extract again"
                )
            names[block] = [array.name for array in self.contents.stored_arrays(t, block)]
            recorded |= dict.fromkeys(names[block], arrays)
        for arrays in set(recorded.values()):
            self.records.read(arrays, index // self.contents.images_per_unit)  # once, and not in each thread
        buffers = [None] * len(recorded) if out is None else [one for block in names for one in out[block]]

        def read(name: str, buffer: np.ndarray | None) -> np.ndarray:
            return self._read(name, index, recorded[name], buffer)

        concurrent = len(recorded) > 1 and self.image_bytes(names) >= self.location.min_concurrent_bytes
        arrays_read = iter((self._threads.map if concurrent else map)(read, recorded, buffers))
        return {block: tuple(islice(arrays_read, len(own))) for block, own in names.items()}

    def image_bytes(self, blocks: Iterable[int]) -> int:
        """Return the bytes of these blocks of one image at one timestep as they are stored, uncompressed."""
        return sum(array.image_bytes for block in blocks for array in self.contents.stored_arrays(0, block))

    def complete(self, index: int, timesteps: Iterable[int], blocks: Iterable[int]) -> bool:
        """Return whether the pixels of an image and these blocks at all these timesteps are stored."""
        blocks = tuple(blocks)
        features = (not self.records.missing(t, blocks, index) for t in timesteps)
        return self.records.done(PIXELS, index) and all(features)

    def digest(self) -> str:
        """Return the SHA-256, 64 hex digits, of all that a head learns from.

        That is the attributes as they are on disk, without `made_by` and `colours`, and the checksums of images and
        masks; so it is the same in every release that reads the store.
        """
        attributes = {name: value for name, value in self._attributes.items() if name not in ("made_by", "colours")}
        units = [unit for arrays, unit in self.records.committed() if arrays == PIXELS]
        checksums = []
        for unit in units:
            images = len(self.contents.unit_images(unit))  # a record lists more while images are being added
            recorded = self.records.read(PIXELS, unit).checksums
            checksums.append({name: sums[:images] for name, sums in recorded.items()})
        return hashlib.sha256(json.dumps([attributes, checksums], sort_keys=True).encode()).hexdigest()

    def unfinished(self, *, t: int, blocks: Iterable[int]) -> tuple[int, ...]:
        """Return the indices of the listed images of which the pixels or one of these blocks are not stored."""
        blocks = tuple(blocks)
        return tuple(i for i in self.listed if not self.complete(i, (t,), blocks))

    def timesteps(self) -> tuple[int, ...]:
        """Return the timesteps at which features of at least one image are stored, ascending."""
        return tuple(t for t in self.records.timesteps() if self.stored_blocks(t))

    def stored_blocks(self, t: int) -> tuple[int, ...]:
        """Return the blocks that have an array at a timestep."""
        return tuple(b for b in sorted(self.contents.blocks) if self.manifest.has_array(array_name(t, b)))

    def array(self, name: str) -> zarr.Array:
        """Open an array of the store by name. Raises Damaged when its zarr.json is not what was written."""
        if name not in self._arrays:
            file = f"{name}/zarr.json"
            try:
                text = self.location.read(file)
            except FileNotFoundError:
                text = None
            grown = text is None or text.decode(errors="replace") != self.manifest.texts.get(file)
            if grown:  # since the description was read, or the file is damaged
                growth = read_growth(self.location)  # before the manifest, which is written before this file is removed
                manifest = read_manifest(self.location)
                if text is None or growth.get(file) != text.decode(errors="replace"):
                    manifest.require_intact(file, text, store=str(self.location))
            self._arrays[name] = open_array(
                self._zarr, self.contents, name, text or b"", location=str(self.location), grown=grown
            )
        return self._arrays[name]

    def stored(self, name: str, index: int, arrays: ArraySet) -> tuple[int | None, np.ndarray | None]:
        """Return the recorded CRC-32C of an image of an array and what is stored, (None, None) where nothing is.

        Also of an image of which other arrays are not there. Raises Damaged.
        """
        crc = self.records.recorded_checksum(arrays, name, index)
        return (None, None) if crc is None else (crc, self._checked(name, index, crc, None))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """Shared by all reads, so that images that are read in parallel do not start more requests than one image."""
        return ThreadPoolExecutor(self.location.concurrency)

    def _read(self, name: str, index: int, arrays: ArraySet, out: np.ndarray | None = None) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} is not within 0..{len(self) - 1}")
        if not self.records.done(arrays, index):
            raise Incomplete(f"{self.location} has no {name} of {self.ids[index]} yet; run pathseg extract again")
        stored = self.records.checksum_of(arrays, name, index)
        try:
            return self._checked(name, index, stored, out)
        except Damaged as e:
            if arrays == PIXELS and name != "images":
                if (replaced := self._replaced(name, index, stored)) is not None:
                    return replaced
                if self._rewritten(index):
                    raise StoreError(
                        f"the mask of {self.ids[index]} in {self.location} has changed since this process opened the "
                        "store; run the command again"
                    ) from e
            raise

    def _replaced(self, name: str, index: int, crc: int) -> np.ndarray | None:
        """Read the copy of a replaced mask with this CRC-32C, None where there is none."""
        contents = self.contents
        shape, dtype = (contents.key.size, np.uint8) if name == "masks" else (contents.padded_px, np.uint16)
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            data = decompress_zlib(self.location.read(replaced_file(name, index, crc)), size_bytes)
            values = np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape)
        except (FileNotFoundError, Damaged, zlib.error, ValueError):
            return None
        return values.copy() if checksum(values) == crc else None

    def _rewritten(self, index: int) -> bool:
        """Return whether the record of an image's pixels is another one than when it was read."""
        unit = index // self.contents.images_per_unit
        try:
            return self.records.read_again(PIXELS, unit) != self.records.read(PIXELS, unit)
        except Damaged:
            return False

    def _checked(self, name: str, index: int, stored: int, out: np.ndarray | None) -> np.ndarray:
        """Read one image of an array, or take it from the cache. Raises Damaged unless its CRC-32C is `stored`."""
        array = self.array(name)
        if out is not None:
            _require_fitting(out, name, array.shape[1:], array.dtype)
        if self.cache is not None:
            cached = f"{self._cache_folder}/{name}/{index}"
            values = self.cache.get(cached, stored, shape=array.shape[1:], dtype=array.dtype)
            if values is not None:
                return values if out is None else _copied(values, out)
        try:
            values, computed = self._values(name, index, out)
        except (ValueError, RuntimeError, KeyError, TypeError, OverflowError, FileNotFoundError, Damaged) as e:
            raise self._damaged(name, index, str(e)) from e
        if stored != computed:
            raise self._damaged(name, index, f"stored checksum {stored}, computed {computed}")
        if self.cache is not None:
            self.cache.put(cached, stored, values)
        return values

    def _values(self, name: str, index: int, out: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Read one image of an array, into `out` where it is given; return it and the CRC-32C of its bytes."""
        array = self.array(name)
        if name not in self._formats:
            self._formats[name] = chunk_format(array)
        found = self._formats[name]
        if found is None:
            with unreadable_as_damage(f"{self.location}/{name}"):
                values = self._decoded(name, index)
            values = values if out is None else _copied(values, out)
            return values, checksum(values)
        values = np.empty(array.shape[1:], array.dtype.newbyteorder("<")) if out is None else out
        files = [f"{name}/{chunk}" for chunk in chunk_names(array, index, 1)]
        if not found.sharded:
            return values, read_chunks(self.location, files, values, found.blosc)
        size = self.contents.images_per_unit
        crc = read_from_shard(self.location, files[0], index % size, values, chunks=size, blosc=found.blosc)
        return values, crc

    def _decoded(self, name: str, index: int) -> np.ndarray:
        """Read one image with Zarr's reader. Raises ValueError where a shard's index leads out of the shard.

        Zarr seeks and allocates what such an index says. Where it does not lead out, memory is short: no damage.
        """
        array = self.array(name)
        try:
            return np.asarray(array[index])
        except (MemoryError, OSError):
            if array.shards is not None:
                shard = f"{name}/{chunk_names(array, index // array.shards[0], array.shards[0])[0]}"
                require_index_within(self.location, shard, chunks=array.shards[0])
            raise

    def _damaged(self, name: str, index: int, why: str) -> Damaged:
        return Damaged(
            f"{name} of {self.ids[index]} in {self.location} is damaged: {why}; "
            f"pathseg verify --repair drops it, pathseg extract makes it again"
        )


def replaced_file(name: str, index: int, crc: int) -> str:
    """Return the name of the copy of a mask that was replaced: its bytes (C order, little endian) in zlib's format."""
    return f"{FOLDER}/replaced/{name}/{index:06d}-{crc:08x}"


def _require_fitting(out: np.ndarray, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if (out.shape, out.dtype, out.flags.c_contiguous) != (shape, dtype, True):
        raise ValueError(f"{name} is {dtype} {shape} an image, but out is {out.dtype} {out.shape}")


def _copied(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    out[...] = values
    return out
