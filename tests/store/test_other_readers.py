"""Stores as xarray and tensorstore read them."""

import numpy as np
import pytest
import tensorstore
import xarray

from pathseg.store.writer import StoreWriter

BLOCKS, CELLS = (0, 4, 5, 9), ("channel", "y", "x")


@pytest.fixture(params=[("none", 1), ("rounded", 2), ("int8", 2)], ids=lambda packing: packing[0])
def store(request, tmp_path, toy_contents, toy_key, fill_store):
    """The toy store of five images in each packing, with an image or two in a shard."""
    packing, images_per_unit = request.param
    made = toy_contents(key=toy_key(packing=packing), images_per_unit=images_per_unit)
    return fill_store(StoreWriter(tmp_path / "toy.zarr", made))


def values_of(stored, scales, dtype):
    """The values of an image by the rule of the array's attributes; `scales` is None where it has none."""
    return stored if scales is None else (stored.astype(np.float32) * scales[:, None, None]).astype(dtype)


def test_xarray_reads_the_values_pixels_and_dimensions(store):
    pixels = xarray.open_dataset(store.location.root, engine="zarr", consolidated=False)
    features = xarray.open_dataset(store.location.root, engine="zarr", group="t50", consolidated=False)
    assert pixels.attrs["ids"] == list(store.ids)
    assert pixels["images"].dims == ("image", "row", "column", "rgb")
    for index in range(len(store.ids)):
        np.testing.assert_array_equal(pixels["images"][index].values, store.image(index), strict=True)
        for block, expected in store.read(index, t=50, blocks=BLOCKS).items():
            array = features[f"block{block:02d}"]
            assert array.dims == ("image", "patch", *(f"{name}_block{block:02d}" for name in CELLS))
            scales = features[array.attrs["scales"]][index].values if "scales" in array.attrs else None
            np.testing.assert_array_equal(values_of(array[index].values, scales, expected.dtype), expected)


def test_tensorstore_reads_the_values_and_dimensions(store):
    def opened(name):
        kvstore = {"driver": "file", "path": f"{store.location.root / 't50' / name}/"}
        return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()

    for block in BLOCKS:
        name = f"block{block:02d}"
        array, scales = opened(name), None
        assert array.domain.labels == ("image", "patch", *(f"{axis}_{name}" for axis in CELLS))
        if store.contents.packing.scaled:
            scales = opened(f"{name}_scales").read().result()
        for index in range(len(store.ids)):
            expected = store.read(index, t=50, blocks=(block,))[block]
            own = None if scales is None else scales[index]
            np.testing.assert_array_equal(values_of(array[index].read().result(), own, expected.dtype), expected)
