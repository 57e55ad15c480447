"""A store as lazy Dask arrays."""

from __future__ import annotations

import os

import dask.array

from pathseg.store.features import FeatureStore
from pathseg.store.format.packing import for_cells
from pathseg.store.location.location import Location
from pathseg.store.records import PIXELS


def open_lazy(path: str | os.PathLike[str] | Location) -> dict[str, dask.array.Array]:
    """Return every array of a store by name (`images`, `masks`, `t50/block04`), read when it is computed.

    Features that are stored scaled are given as values, in the key's dtype. Images that are not extracted yet read as
    NaN in features and 0 in pixels; checksums of chunks are checked by Zarr.
    Raises as `FeatureStore.open`.
    """
    store = FeatureStore.open(path)
    lazy = {name: _from_zarr(store, name) for name in store.contents.array_names(PIXELS)}
    for t in store.timesteps():
        for block in store.stored_blocks(t):
            name, *of_scales = (array.name for array in store.contents.stored_arrays(t, block))
            values = _from_zarr(store, name)
            for scales in of_scales:
                values = (values * for_cells(_from_zarr(store, scales))).astype(store.contents.key.dtype)
            lazy[name] = values
    return lazy


def _from_zarr(store: FeatureStore, name: str) -> dask.array.Array:
    return dask.array.from_zarr(store.array(name))[: len(store)]
