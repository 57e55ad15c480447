"""The feature store: one Zarr v3 group of images, masks and per-block feature maps, read back as it was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import zarr

from pathseg.store.blocks import array_name
from pathseg.store.contents import Contents
from pathseg.store.errors import Damaged, Incomplete, StoreError
from pathseg.store.format.arrays import chunk_names
from pathseg.store.format.chunks import is_plain, is_plain_shards, read_chunks, read_from_shard
from pathseg.store.format.manifest import read_manifest, require_intact
from pathseg.store.format.size import patch_bytes
from pathseg.store.location.cache import ReadCache
from pathseg.store.location.location import Location, open_location
from pathseg.store.records import PIXELS, Records, checksum


class FeatureStore:
    """Images, masks and cached features of a data set, read-only; `writer.StoreWriter` makes and fills one.

    Whatever a completion record speaks of reads as it was written or raises Damaged; whatever has none is Incomplete.
    """

    def __init__(
        self, location: Location, contents: Contents, manifest: dict[str, str], *, cache: ReadCache | None = None
    ) -> None:
        self.location = location
        self._cache, self._make = cache, hashlib.sha256(manifest.get("zarr.json", "").encode()).hexdigest()[:16]
        self.contents = contents
        self.manifest = manifest
        self.records = Records(location, images_per_unit=contents.images_per_unit)
        self._group = zarr.open_group(location.zarr(read_only=False), mode="r", use_consolidated=False)
        self._arrays: dict[str, zarr.Array] = {}
        self._kinds: dict[str, str] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str] | Location, *, cache: ReadCache | None = None) -> FeatureStore:
        """Open a store at a local path or s3://bucket/prefix; with a cache, images are fetched from there only once.

        Raises StoreError when there is none or something else, Damaged when its own description has changed.
        """
        location = open_location(path)
        if not location.exists("zarr.json"):
            raise StoreError(f"there is no feature store at {location}; make one with pathseg extract")
        manifest = read_manifest(location)
        if manifest:
            require_intact(location, "zarr.json", manifest)
        try:
            group = zarr.open_group(location.zarr(read_only=True), mode="r", use_consolidated=False)
        except (ValueError, KeyError, TypeError) as e:
            raise Damaged(f"{location}/zarr.json cannot be read: {e}") from e
        contents = Contents.from_attributes(dict(group.attrs), store=str(location))
        return cls(location, contents, manifest, cache=cache)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all images, in order."""
        return tuple(image.id for image in self.contents.images)

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
        """The mask code that counts nowhere, None where there is none."""
        return self.contents.ignore

    def __len__(self) -> int:
        return len(self.contents.images)

    def image(self, index: int) -> np.ndarray:
        """The image at working size, (H, W, 3) uint8 RGB."""
        return self._read("images", index, PIXELS)

    def mask(self, index: int) -> np.ndarray:
        """Class codes at working size, (H, W) uint8."""
        return self._read("masks", index, PIXELS)

    def instances(self, index: int) -> np.ndarray:
        """Object ids at the image's original size, (h0, w0) uint16, 0 = background. StoreError where there are none."""
        if not self.contents.has_instances:
            raise StoreError(f"{self.location} holds no instance masks; its data set has none")
        entry = self.contents.images[index]
        return self._read("instances", index, PIXELS)[: entry.height, : entry.width]

    def read(
        self, index: int, t: int = 50, blocks: Iterable[int] = (), *, out: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, np.ndarray]:
        """Features of one image as stored: {block: (P, C, h, w)}; without `blocks` all that are there.

        out: an array in C order for each block, to be filled and returned instead of a new one: fresh memory costs as
        much as reading. Raises Incomplete when a block is not in the store yet, Damaged when the bytes are not those
        that were written, ValueError when an array of `out` is of another shape or type.
        """
        blocks, parts = tuple(blocks) or self.stored_blocks(t), {}
        for block in blocks:
            if (part := self.records.part_of(t, block, index)) is None:
                raise Incomplete(
                    f"{self.location} has no block {block} at t {t} of {self.ids[index]}; run pathseg extract again"
                )
            parts[array_name(t, block)] = part
        for part in set(parts.values()):
            self.records.read(part, index // self.contents.images_per_unit)  # once, and not in each thread
        worth = len(blocks) > 1 and self.image_bytes(blocks) >= self.location.min_concurrent_bytes
        into = [None if out is None else out[block] for block in blocks]
        each = self._threads.map if worth else map
        values = each(lambda name, own: self._read(name, index, parts[name], own), parts, into)
        return dict(zip(blocks, values, strict=True))

    def image_bytes(self, blocks: Iterable[int]) -> int:
        """What these blocks of one image take at one timestep."""
        key = self.contents.key
        each = patch_bytes(self.contents.blocks, layout=key.layout, dtype=key.dtype)
        return self.contents.grid.patches * sum(each[block] for block in blocks)

    def complete(self, index: int, timesteps: Iterable[int], blocks: Iterable[int]) -> bool:
        """Whether the pixels of an image and these blocks at all these timesteps are there."""
        blocks = tuple(blocks)
        there = (not self.records.missing(t, blocks, index) for t in timesteps)
        return self.records.done(PIXELS, index) and all(there)

    def digest(self) -> str:
        """64 hex digits for all that a head learns from: key, images, splits, classes, and the pixels' checksums.

        Of the attributes as they are on disk, so that it is the same for every release that reads the store.
        """
        about = {name: value for name, value in self._group.attrs.items() if name != "made_by"}
        sums = [self.records.read(part, unit)["crc32c"] for part, unit in self.records.committed() if part == PIXELS]
        return hashlib.sha256(json.dumps([about, sums], sort_keys=True).encode()).hexdigest()

    def unfinished(self, *, t: int, blocks: Iterable[int]) -> tuple[int, ...]:
        """Indices of the images that lack their pixels or one of these blocks."""
        blocks = tuple(blocks)
        return tuple(i for i in range(len(self)) if not self.complete(i, (t,), blocks))

    def timesteps(self) -> tuple[int, ...]:
        """The timesteps of which at least one image is finished, ascending."""
        return self.records.timesteps()

    def stored_blocks(self, t: int) -> tuple[int, ...]:
        """The blocks of which a timestep has an array."""
        return tuple(b for b in sorted(self.contents.blocks) if f"{array_name(t, b)}/zarr.json" in self.manifest)

    def array(self, name: str) -> zarr.Array:
        """An array of the store by its name. Raises Damaged when its description is not what was written."""
        if name not in self._arrays:
            require_intact(self.location, f"{name}/zarr.json", self.manifest)
            self._arrays[name] = self._group[name]
        return self._arrays[name]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """Of all reads: several images that are read at once do not take more of the disk or network than one."""
        return ThreadPoolExecutor(self.location.concurrency)

    def _read(self, name: str, index: int, part: str, out: np.ndarray | None = None) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} is not within 0..{len(self) - 1}")
        if not self.records.done(part, index):
            raise Incomplete(f"{self.location} has no {name} of {self.ids[index]} yet; run pathseg extract again")
        stored, array = self.records.expected(part, name, index), self.array(name)
        if out is not None and (out.shape, out.dtype, out.flags.c_contiguous) != (array.shape[1:], array.dtype, True):
            raise ValueError(f"{name} is {array.dtype} {array.shape[1:]} an image, but out is {out.dtype} {out.shape}")
        cached = f"{self._make}/{name}/{index}"
        if self._cache is not None:
            values = self._cache.get(cached, stored, shape=array.shape[1:], dtype=array.dtype)
            if values is not None:
                return values if out is None else _copied(values, out)
        try:
            values, computed = self._values(name, index, out)
        except (ValueError, RuntimeError, KeyError, FileNotFoundError) as e:
            raise self._damaged(name, index, str(e)) from e
        if stored != computed:
            raise self._damaged(name, index, f"stored checksum {stored}, computed {computed}")
        if self._cache is not None:
            self._cache.put(cached, stored, values)
        return values

    def _values(self, name: str, index: int, out: np.ndarray | None) -> tuple[np.ndarray, int]:
        """One image of an array, in `out` where there is one, and the CRC-32C of its bytes."""
        array = self.array(name)
        if name not in self._kinds:
            self._kinds[name] = "chunks" if is_plain(array) else "shards" if is_plain_shards(array) else "other"
        if self._kinds[name] == "other":
            values = np.asarray(array[index]) if out is None else _copied(array[index], out)
            return values, checksum(values)
        values = np.empty(array.shape[1:], array.dtype.newbyteorder("<")) if out is None else out
        files = [f"{name}/{chunk}" for chunk in chunk_names(array, index, 1)]
        if self._kinds[name] == "chunks":
            return values, read_chunks(self.location, files, values)
        return values, read_from_shard(self.location, files[0], index % self.contents.images_per_unit, values)

    def _damaged(self, name: str, index: int, why: str) -> Damaged:
        return Damaged(
            f"{name} of {self.ids[index]} in {self.location} is damaged: {why}; "
            f"pathseg verify --repair drops it, pathseg extract makes it again"
        )


def _copied(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    out[...] = values
    return out
