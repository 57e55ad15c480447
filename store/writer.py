"""Making and filling a feature store, unit by unit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import zarr

from pathseg.store.arrays import create_feature_array, create_pixel_arrays
from pathseg.store.blocks import array_name
from pathseg.store.codec import PACKINGS
from pathseg.store.contents import Contents
from pathseg.store.errors import Damaged, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.location import Location, open_location
from pathseg.store.manifest import extend_manifest, read_manifest
from pathseg.store.records import PIXELS, checksum, features_part

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
        if read_manifest(location):
            FeatureStore.open(location).contents.require(contents, store=str(location))
        else:
            _begin(location, contents)
        self.store = FeatureStore.open(location)
        self._group = zarr.open_group(location.zarr(read_only=False), mode="r+", use_consolidated=False)
        self._packing = PACKINGS[contents.key.packing]

    def add_arrays(self, timesteps: Iterable[int], blocks: Iterable[int]) -> None:
        """Make the arrays of these timesteps and blocks, unless they are there."""
        blocks, names = tuple(blocks), []
        for t in timesteps:
            fresh = [block for block in blocks if block not in self.store.stored_blocks(t)]
            if fresh and f"t{t}/zarr.json" not in self.store.manifest:
                self._group.create_group(f"t{t}", overwrite=True)
                names.append(f"t{t}")
            names += [create_feature_array(self._group, self.store.contents, t=t, block=b) for b in fresh]
        extend_manifest(self.store.location, [f"{name}/zarr.json" for name in names])
        self.store.manifest.update(read_manifest(self.store.location))

    def images(self, unit: int) -> range:
        """Indices of a unit's images."""
        size = self.store.contents.images_per_unit
        return range(unit * size, min((unit + 1) * size, len(self.store)))

    def write_pixels(self, unit: int, images: Sequence[OneImage | None]) -> None:
        """Write and commit the pixels of a unit; None for an image that is set aside."""
        arrays = {"images": [i and i[0] for i in images], "masks": [i and i[1] for i in images]}
        if self.store.contents.has_instances:
            arrays["instances"] = [i and self._padded(i[2]) for i in images]
        self.store.records.write(PIXELS, unit, {name: self._write(name, unit, v) for name, v in arrays.items()})

    def write_features(self, unit: int, *, t: int, features: Iterable[tuple[int, Sequence[np.ndarray | None]]]) -> None:
        """Write and commit blocks of a unit: pairs of block and, for each image, (P, C, h, w) in the store's layout.

        Pairs are taken one at a time, so a generator keeps no more than one upsampled block in memory. None stands
        for an image that is set aside. Raises StoreError for values that the store's dtype cannot hold.
        """
        sums = {}
        for block, maps in features:
            for index, values in zip(self.images(unit), maps, strict=True):
                if values is not None and not np.isfinite(values).all():
                    raise StoreError(
                        f"block {block} at t {t} of {self.store.ids[index]} has values that "
                        f"{self.store.contents.key.dtype} cannot hold; pass --dtype float32"
                    )
            rounded = [None if values is None else self._packing.rounded(values) for values in maps]
            sums[block] = self._write(array_name(t, block), unit, rounded)
        named = {array_name(t, block): crcs for block, crcs in sums.items()}
        self.store.records.write(features_part(t, sums), unit, named)

    def _write(self, name: str, unit: int, images: Sequence[np.ndarray | None]) -> list[int | None]:
        """Write a unit of one array in one call (a shard has one owner); CRC-32C per image."""
        target, indices = self._group[name], self.images(unit)
        values = np.full((len(indices), *target.shape[1:]), target.fill_value, target.dtype)
        for place, image in zip(values, images, strict=True):
            if image is not None:
                if image.shape != place.shape:
                    raise ValueError(f"{name} takes {place.shape} for one image, got {image.shape}")
                place[...] = image
        target[indices.start : indices.stop] = values
        return [None if image is None else checksum(place) for place, image in zip(values, images, strict=True)]

    def _padded(self, instances: np.ndarray) -> np.ndarray:
        padded = np.zeros(self._group["instances"].shape[1:], np.uint16)
        padded[: instances.shape[0], : instances.shape[1]] = instances
        return padded


def _begin(location: Location, contents: Contents) -> None:
    """Make an empty store; what an attempt that was killed before its manifest left is made anew."""
    if location.exists("zarr.json") and b"pathseg_format" not in location.read("zarr.json"):
        raise StoreError(f"{location} is a Zarr group but no pathseg store; pass another --store")
    foreign = next((name for name in location.names() if not name.endswith(("zarr.json", ".partial"))), None)
    if foreign and location.exists("zarr.json"):
        raise Damaged(f"{location} has lost its manifest; run pathseg verify --repair")
    if foreign:
        raise StoreError(f"{location} holds something else ({foreign}) and is no pathseg store; pass another --store")
    group = zarr.create_group(location.zarr(read_only=False), attributes=contents.to_attributes(), overwrite=True)
    names = create_pixel_arrays(group, contents)
    extend_manifest(location, ["zarr.json", *(f"{name}/zarr.json" for name in names)])
