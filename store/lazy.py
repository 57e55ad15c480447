"""A store as lazy Dask arrays."""

from __future__ import annotations

import os

import dask.array

from pathseg.store.features import FeatureStore
from pathseg.store.location.location import Location
from pathseg.store.records import PIXELS, ArraySet


def open_lazy(path: str | os.PathLike[str] | Location) -> dict[str, dask.array.Array]:
    """Return every array of a store by name (`images`, `masks`, `t50/block04`), read when it is computed.

    Images that are not extracted yet read as NaN in features and 0 in pixels; checksums of chunks are checked by Zarr.
    Raises as `FeatureStore.open`.
    """
    store = FeatureStore.open(path)
    array_sets = [PIXELS, *(ArraySet(t, store.stored_blocks(t)) for t in store.timesteps())]
    names = [name for arrays in array_sets for name in arrays.arrays(has_instances=store.contents.has_instances)]
    return {name: dask.array.from_zarr(store.array(name))[: len(store)] for name in names}
