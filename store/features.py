"""The feature store: one Zarr v3 group of images, masks and per-block feature maps, committed unit by unit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import zarr
from zarr.errors import ZarrUserWarning

from pathseg.store.arrays import create_feature_array, create_pixel_arrays
from pathseg.store.blocks import array_name
from pathseg.store.contents import Contents
from pathseg.store.errors import Damaged, Incomplete, StoreError
from pathseg.store.location import Location
from pathseg.store.records import PIXELS, Records, checksum, features_part


class FeatureStore:
    """Images, masks and cached features of a data set. `create` or `open` makes one; nothing else does.

    A unit of work is an image. Its arrays are written first and its completion record last, so whatever is not
    recorded is made again by the next run, and whatever is recorded reads as it was written or raises `Damaged`.
    """

    def __init__(self, location: Location, group: zarr.Group, contents: Contents) -> None:
        self.location = location
        self.contents = contents
        self.records = Records(location)
        self._group = group
        self._arrays: dict[str, zarr.Array] = {}

    @classmethod
    def create(cls, path: str | os.PathLike[str], contents: Contents) -> FeatureStore:
        """Make a store, or open the one that is there for more work after checking that it is of the same make.

        Raises KeyMismatch when what is there was made in another way, StoreError when it is something else.
        """
        location = Location(path)
        if location.exists():
            store = cls.open(path, read_only=False)
            store.contents.require(contents, store=str(location))
            location.sweep()
            return store
        if location.root.exists() and (not location.root.is_dir() or any(location.root.iterdir())):
            raise StoreError(f"{location} exists and is no pathseg store; pass another --store")
        group = zarr.create_group(location.zarr(read_only=False), attributes=contents.to_attributes())
        create_pixel_arrays(group, contents)
        return cls(location, group, contents)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, read_only: bool = True) -> FeatureStore:
        """Open a store. Raises StoreError when there is none, or something else."""
        location = Location(path)
        if not location.exists():
            raise StoreError(f"there is no feature store at {location}; make one with pathseg extract")
        try:
            group = zarr.open_group(
                location.zarr(read_only=read_only), mode="r" if read_only else "r+", use_consolidated=False
            )
        except (ValueError, KeyError, TypeError) as e:
            raise Damaged(f"{location}/zarr.json cannot be read: {e}") from e
        return cls(location, group, Contents.from_attributes(dict(group.attrs), store=str(location)))

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(image.id for image in self.contents.images)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(image.split for image in self.contents.images)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.contents.classes

    @property
    def ignore(self) -> int | None:
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

    def read(self, index: int, *, t: int = 50, blocks: Iterable[int]) -> dict[int, np.ndarray]:
        """Features of one image as stored: {block: (P, C, h, w)}.

        Raises Incomplete when one is not in the store yet, Damaged when the bytes are not those that were written.
        """
        features = {}
        for block in blocks:
            part = self.records.part_of(t, block, index)
            if part is None:
                raise Incomplete(
                    f"{self.location} has no block {block} at t {t} of {self.ids[index]}; run pathseg extract again"
                )
            features[block] = self._read(array_name(t, block), index, part)
        return features

    def unfinished(self, *, t: int, blocks: Iterable[int]) -> tuple[int, ...]:
        """Indices of the images that lack their pixels or one of these blocks."""
        blocks = tuple(blocks)
        return tuple(
            i for i in range(len(self)) if not self.records.done(PIXELS, i) or self.records.missing(t, blocks, i)
        )

    def timesteps(self) -> tuple[int, ...]:
        """The timesteps of which at least one image is finished, ascending."""
        return self.records.timesteps()

    def stored_blocks(self, t: int) -> tuple[int, ...]:
        """The blocks of which a timestep has an array."""
        return tuple(block for block in sorted(self.contents.blocks) if array_name(t, block) in self._group)

    def add_arrays(self, timesteps: Iterable[int], blocks: Iterable[int]) -> None:
        """Make the arrays of these timesteps and blocks, unless they are there."""
        for t in timesteps:
            for block in blocks:
                if array_name(t, block) not in self._group:
                    create_feature_array(self._group, self.contents, t=t, block=block)
        with warnings.catch_warnings():  # other readers list the arrays without stumbling over the records
            warnings.simplefilter("ignore", ZarrUserWarning)
            zarr.consolidate_metadata(self._group.store)

    def write_pixels(self, index: int, *, image: np.ndarray, mask: np.ndarray, instances: np.ndarray | None) -> None:
        """Write and commit an image (H, W, 3), its class mask (H, W) and its instance ids at the original size."""
        arrays = {"images": image, "masks": mask}
        if instances is not None:
            padded = np.zeros(self._array("instances").shape[1:], np.uint16)
            padded[: instances.shape[0], : instances.shape[1]] = instances
            arrays["instances"] = padded
        self.records.write(PIXELS, index, self._write(index, arrays.items()))

    def write_features(self, index: int, *, t: int, features: Iterable[tuple[int, np.ndarray]]) -> None:
        """Write and commit blocks of one image at one timestep: pairs of block and (P, C, h, w) in the store's layout.

        Pairs are taken one at a time, so a generator keeps no more than one upsampled block in memory.
        """
        written: list[int] = []

        def checked() -> Iterator[tuple[str, np.ndarray]]:
            for block, maps in features:
                if not np.isfinite(maps).all():
                    raise StoreError(
                        f"block {block} at t {t} of {self.ids[index]} has values that {self.contents.key.dtype} "
                        f"cannot hold; pass --dtype float32"
                    )
                written.append(block)
                yield array_name(t, block), maps

        sums = self._write(index, checked())
        self.records.write(features_part(t, written), index, sums)

    def _write(self, index: int, arrays: Iterable[tuple[str, np.ndarray]]) -> dict[str, int]:
        sums = {}
        for name, values in arrays:
            target = self._array(name)
            values = np.ascontiguousarray(values, dtype=target.dtype)
            if values.shape != target.shape[1:]:
                raise ValueError(f"{name} takes {target.shape[1:]} for one image, got {values.shape}")
            target[index] = values
            sums[name] = checksum(values)
        return sums

    def _read(self, name: str, index: int, part: str) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} is not within 0..{len(self) - 1}")
        if not self.records.done(part, index):
            raise Incomplete(f"{self.location} has no {name} of {self.ids[index]} yet; run pathseg extract again")
        try:
            values = np.asarray(self._array(name)[index])
        except (ValueError, RuntimeError, KeyError, FileNotFoundError) as e:
            raise self._damaged(name, index, str(e)) from e
        stored, computed = self.records.read(part, index).get(name), checksum(values)
        if stored != computed:
            raise self._damaged(name, index, f"stored checksum {stored}, computed {computed}")
        return values

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            self._arrays[name] = self._group[name]
        return self._arrays[name]

    def _damaged(self, name: str, index: int, why: str) -> Damaged:
        return Damaged(f"{name} of {self.ids[index]} in {self.location} is damaged: {why}")
