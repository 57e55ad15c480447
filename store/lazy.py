"""A store as lazy Dask arrays, for people who look at features with the tools they know."""

from __future__ import annotations

import os

import dask.array

from pathseg.store.features import FeatureStore
from pathseg.store.location.location import Location


def open_lazy(path: str | os.PathLike[str] | Location) -> dict[str, dask.array.Array]:
    """Every array of a store by its name (`images`, `masks`, `t50/block04`), read when it is computed.

    Images that are not extracted yet read as NaN in features and 0 in pixels. Raises as `FeatureStore.open`.
    """
    store = FeatureStore.open(path)
    pixels = ["images", "masks", *(["instances"] if store.contents.has_instances else [])]
    names = pixels + [f"t{t}/block{block:02d}" for t in store.timesteps() for block in store.stored_blocks(t)]
    return {name: dask.array.from_zarr(store.array(name)) for name in names}
