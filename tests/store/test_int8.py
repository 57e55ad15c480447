"""Stores with `--packing int8`: whole numbers and their scales, as pathseg and as any Zarr reader reads them."""

import numpy as np
import pytest
import zarr

from pathseg.store.describe import describe
from pathseg.store.errors import Damaged, Incomplete, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import BlockShape
from pathseg.store.growth import grow
from pathseg.store.lazy import open_lazy
from pathseg.store.verify import verify
from pathseg.store.writer import StoreWriter


@pytest.fixture
def int8_store(tmp_path, toy_contents, toy_key, fill_store):
    """Make the toy store of five images with packing int8."""

    def make(name="int8.zarr", *, images_per_unit=1, **changes):
        made = toy_contents(key=toy_key(packing="int8", **changes), images_per_unit=images_per_unit)
        return fill_store(StoreWriter(tmp_path / name, made))

    return make


def files_of(store):
    root = store.location.root
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def values_by_zarr(group, block, index):
    """The values of an image as the attributes of the plain Zarr array say, in float32."""
    array = group[f"t50/block{block:02d}"]
    assert array.attrs["scale_axis"] == 2
    scales = group["t50"][array.attrs["scales"]]
    return array[index].astype(np.float32) * scales[index][:, None, None]


@pytest.mark.parametrize(("layout", "images_per_unit"), [("native", 1), ("native", 2), ("grid", 5)])
def test_values_are_those_of_plain_zarr_and_within_half_a_scale(
    tmp_path, int8_store, toy_contents, toy_key, fill_store, layout, images_per_unit
):
    store = int8_store(layout=layout, images_per_unit=images_per_unit, dtype="float32")
    exact = fill_store(StoreWriter(tmp_path / "exact.zarr", toy_contents(key=toy_key(layout=layout, dtype="float32"))))
    group = zarr.open_group(str(store.location), mode="r")
    for index in (0, 3, 4):
        for block, values in FeatureStore.open(store.location).read(index).items():
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, values_by_zarr(group, block, index))
            scales = group[f"t50/block{block:02d}_scales"][index]  # (C,)
            error = np.abs(values.astype(float) - exact.read(index)[block]).max(axis=(0, 2, 3))
            assert (error <= scales * 0.5 * (1 + 1e-4)).all()  # the division and the product are rounded to float32
            largest = np.abs(exact.read(index)[block]).max(axis=(0, 2, 3))
            np.testing.assert_allclose(scales, largest / 127, rtol=1e-6)
    assert verify(store.location) == ()


def test_other_readers_see_signed_bytes_without_compression(int8_store):
    group = zarr.open_group(str(int8_store().location), mode="r")
    array, scales = group["t50/block04"], group["t50/block04_scales"]
    assert (array.dtype, array.shape, array.fill_value) == (np.int8, (5, 2, 6, 16, 16), -128)
    assert (scales.dtype, scales.shape) == (np.float32, (5, 6)) and np.isnan(scales.fill_value)
    chunk = int8_store("again.zarr").location.root / "t50/block04/c/2/0/0/0/0"
    assert chunk.read_bytes()[:-4] == array[2].tobytes()  # then its CRC-32C
    assert array.attrs["error_at_most_of_scale"] == 0.5
    assert array[...].min() >= -127 and np.abs(array[...].astype(int)).max() == 127


def test_values_are_read_in_the_dtype_of_the_key_and_into_arrays_that_are_given(int8_store):
    store = int8_store()  # float16
    group = zarr.open_group(str(store.location), mode="r")
    out = {4: np.empty((2, 6, 16, 16), np.float16)}
    assert store.read(1, blocks=(4,), out=out)[4] is out[4]
    np.testing.assert_array_equal(out[4], values_by_zarr(group, 4, 1).astype(np.float16))
    with pytest.raises(ValueError, match=r"t50/block04 is float16 .* but out is float32"):
        store.read(1, blocks=(4,), out={4: np.empty((2, 6, 16, 16), np.float32)})


def test_a_block_that_is_not_there_is_named(int8_store):
    with pytest.raises(Incomplete, match="no block 77 at t 50"):
        int8_store().read(0, blocks=(77,))


def test_lazy_arrays_are_values_and_images_that_are_not_there_nan(int8_store, toy_contents, toy_key, tmp_path):
    store = int8_store()
    lazy = open_lazy(store.location)
    assert set(lazy) == {"images", "masks", "instances", "t50/block00", "t50/block04", "t50/block05", "t50/block09"}
    np.testing.assert_array_equal(lazy["t50/block09"][3].compute(), store.read(3, blocks=(9,))[9])
    begun = StoreWriter(tmp_path / "begun.zarr", toy_contents(key=toy_key(packing="int8")))
    begun.add_arrays([50], [4])
    begun.write_features(1, t=50, features=[(4, [store.read(1)[4]])])
    values = open_lazy(begun.store.location)["t50/block04"]
    assert values.dtype == np.float16
    assert np.isnan(values[0].compute()).all() and np.isfinite(values[1].compute()).all()


@pytest.mark.parametrize("images_per_unit", [1, 2])
@pytest.mark.parametrize("array", ["t50/block04", "t50/block04_scales"])
def test_a_flipped_bit_is_found_repaired_and_written_again(int8_store, fill_store, array, images_per_unit):
    store = int8_store(images_per_unit=images_per_unit)
    whole = files_of(store)
    name = next(name for name in whole if name.startswith(f"{array}/c/0/"))
    path, data = store.location.root / name, bytearray(whole[name])
    data[1] ^= 4
    path.write_bytes(data)
    assert {(finding.kind, finding.name) for finding in verify(store.location)} == {("damaged", name)}
    with pytest.raises(Damaged, match=f"{array} of train_0"):
        FeatureStore.open(store.location).read(0, blocks=(4,))
    verify(store.location, repair=True)
    fill_store(StoreWriter(store.location, store.contents))
    assert files_of(store) == whole


def test_scales_that_have_gone_are_missed(int8_store):
    store = int8_store()
    (store.location.root / "t50/block04_scales/c/2/0").unlink()
    assert {(f.kind, f.name) for f in verify(store.location)} == {("missing", "t50/block04_scales/c/2/0")}
    (store.location.root / "t50/block05_scales/zarr.json").unlink()
    verify(store.location, repair=True)
    assert FeatureStore.open(store.location).read(0, blocks=(5,))[5].shape == (2, 4, 32, 32)


def test_a_lost_manifest_is_rebuilt_with_the_scales(int8_store):
    store = int8_store()
    whole = files_of(store)
    (store.location.root / "_done/metadata.json").unlink()
    verify(store.location, repair=True)
    assert files_of(store) == whole


@pytest.mark.parametrize("images_per_unit", [1, 3])
def test_a_store_grows_to_the_bytes_of_one_made_at_once(
    tmp_path, toy_contents, toy_key, fill_store, int8_store, images_per_unit
):
    whole = int8_store(images_per_unit=images_per_unit)
    entries = whole.contents.images
    few = toy_contents(key=toy_key(packing="int8"), images_per_unit=images_per_unit, splits=("train",) * 4)
    begun = fill_store(StoreWriter(tmp_path / "grown.zarr", few))
    assert begun.contents.images == entries[:4]
    before = begun.read(3)
    grow(begun, whole.contents, {})
    grown = fill_store(StoreWriter(tmp_path / "grown.zarr", whole.contents))
    assert {n: d for n, d in files_of(grown).items() if "zarr.json" not in n and n != "_done/metadata.json"} == {
        n: d for n, d in files_of(whole).items() if "zarr.json" not in n and n != "_done/metadata.json"
    }
    assert verify(grown.location) == ()
    for block, values in before.items():
        np.testing.assert_array_equal(grown.read(3)[block], values)


def test_an_image_that_is_set_aside_and_comes_later_leaves_the_others_as_they_are(tmp_path, toy_contents, toy_key):
    writer = StoreWriter(tmp_path / "a.zarr", toy_contents(key=toy_key(packing="int8"), images_per_unit=5))
    writer.add_arrays([50], [4])
    maps = [np.random.default_rng(i).normal(size=(2, 6, 16, 16)).astype(np.float16) for i in range(5)]
    writer.write_features(0, t=50, features=[(4, [*maps[:2], None, *maps[3:]])])
    first = writer.store.read(3)[4]
    writer.write_features(0, t=50, features=[(4, [None, None, maps[2], None, None])])
    again = FeatureStore.open(tmp_path / "a.zarr")
    assert again.records.missing(50, (4,), 2) == ()
    np.testing.assert_array_equal(again.read(3)[4], first)
    np.testing.assert_allclose(again.read(2)[4].astype(float), maps[2], atol=np.abs(maps[2]).max() / 250)


def test_the_image_with_values_beyond_float16_is_named(tmp_path, toy_contents, toy_key):
    writer = StoreWriter(tmp_path / "a.zarr", toy_contents(key=toy_key(packing="int8"), images_per_unit=5))
    writer.add_arrays([50], [4])
    maps = [np.full((2, 6, 16, 16), 70_000 if i == 3 else 1, np.float32) for i in range(5)]
    with pytest.raises(
        StoreError, match=r"t50/block04 of train_3 has values that float16 cannot hold.*--dtype float32"
    ):
        writer.write_features(0, t=50, features=[(4, maps)])
    assert writer.store.unfinished(t=50, blocks=(4,)) == (0, 1, 2, 3, 4)


def test_an_image_takes_a_byte_a_value_and_four_a_channel(int8_store):
    store = int8_store()
    assert store.image_bytes((4, 9)) == 2 * 6 * 16 * 16 + 4 * 6 + 2 * 3 * 64 * 64 + 4 * 3
    assert "one signed byte a value" in describe(store)


def test_a_large_image_has_a_chunk_a_patch_and_one_of_scales(tmp_path, toy_contents, toy_key):
    blocks = {0: BlockShape(1200, 8)}  # 2 patches of 1200 x 256 x 256 bytes are more than 128 MiB
    made = toy_contents(key=toy_key(layout="image", packing="int8"), blocks=blocks)
    StoreWriter(tmp_path / "a.zarr", made).add_arrays([50], [0])
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")["t50"]
    assert group["block00"].chunks == (1, 1, 1200, 256, 256) and group["block00_scales"].chunks == (1, 1200)


def test_dimensions_of_a_group_with_one_name_have_one_size_as_xarray_requires(int8_store):
    sizes = {}
    for _, array in zarr.open_group(int8_store().location.root / "t50", mode="r").arrays():
        for dimension, size in zip(array.metadata.dimension_names, array.shape, strict=True):
            assert sizes.setdefault(dimension, size) == size
    assert sizes["channel_block04"] == 6
