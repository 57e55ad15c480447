import hashlib

import numpy as np
import pytest
import zarr

from pathseg.store.errors import KeyMismatch, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import BlockShape
from pathseg.store.verify import verify
from pathseg.store.writer import StoreWriter


def file_digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_features_read_as_they_were_written(tmp_path, toy_contents):
    writer = StoreWriter(tmp_path / "a.zarr", toy_contents())
    writer.add_arrays([50], [4])
    maps = np.random.default_rng(0).normal(size=(2, 6, 16, 16)).astype(np.float16)
    writer.write_features(3, t=50, features=[(4, [maps])])
    assert np.array_equal(FeatureStore.open(tmp_path / "a.zarr").read(3, t=50, blocks=(4,))[4], maps)


def test_pixels_read_as_they_were_written(tmp_path, toy_contents):
    writer, rng = StoreWriter(tmp_path / "a.zarr", toy_contents()), np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (256, 512, 3), dtype=np.uint8), rng.integers(0, 2, (256, 512), dtype=np.uint8)
    instances = rng.integers(0, 9, (201, 300)).astype(np.uint16)  # image 1 was 201x300 px
    writer.write_pixels(1, [(image, mask, instances)])
    again = FeatureStore.open(tmp_path / "a.zarr")
    assert np.array_equal(again.image(1), image)
    assert np.array_equal(again.mask(1), mask)
    assert np.array_equal(again.instances(1), instances)


@pytest.mark.parametrize("images_per_unit", [1, 2, 5])
@pytest.mark.parametrize("packing", ["none", "lossless"])
def test_units_and_lossless_packing_change_no_number(
    tmp_path, toy_contents, toy_key, fill_store, toy_store, images_per_unit, packing
):
    made = toy_contents(key=toy_key(packing=packing), images_per_unit=images_per_unit)
    store = fill_store(StoreWriter(tmp_path / "a.zarr", made))
    for index in range(5):
        for block, maps in toy_store.read(index, t=50).items():
            assert np.array_equal(FeatureStore.open(store.location).read(index, t=50)[block], maps)
        assert np.array_equal(store.image(index), toy_store.image(index))


def test_images_of_a_unit_share_their_files(tmp_path, toy_contents, fill_store, toy_store):
    store = fill_store(StoreWriter(tmp_path / "a.zarr", toy_contents(images_per_unit=3)))
    files = [name for name in store.location.names("t50/block04") if not name.endswith("zarr.json")]
    assert sorted(files) == ["t50/block04/c/0/0/0/0/0", "t50/block04/c/1/0/0/0/0"]


def test_rounding_keeps_its_stated_bound(tmp_path, toy_contents, toy_key, fill_store, toy_store):
    store = fill_store(StoreWriter(tmp_path / "a.zarr", toy_contents(key=toy_key(packing="rounded"))))
    exact, rounded = toy_store.read(0)[9].astype(float), store.read(0)[9].astype(float)
    normal = np.abs(exact) >= 2.0**-14
    error = np.abs(rounded - exact)
    assert 1 / 128 < (error[normal] / np.abs(exact[normal])).max() <= 1 / 64
    assert error[~normal].max(initial=0) <= 2.0**-20


def test_an_image_that_is_set_aside_leaves_the_rest_of_its_unit(tmp_path, toy_contents, fill_store):
    writer = StoreWriter(tmp_path / "a.zarr", toy_contents(images_per_unit=5))
    writer.add_arrays([50], [4])
    maps = [np.full((2, 6, 16, 16), i, np.float16) for i in range(5)]
    image = (np.zeros((256, 512, 3), np.uint8), np.zeros((256, 512), np.uint8), np.zeros((200, 300), np.uint16))
    writer.write_pixels(0, [image, image, None, image, image])
    writer.write_features(0, t=50, features=[(4, [*maps[:2], None, *maps[3:]])])
    store = FeatureStore.open(tmp_path / "a.zarr")
    assert store.unfinished(t=50, blocks=(4,)) == (2,)
    assert store.read(3, t=50)[4].max() == 3


def test_work_that_was_cut_off_and_is_done_again_gives_the_same_bytes(tmp_path, toy_contents, fill_store):
    whole = fill_store(StoreWriter(tmp_path / "whole.zarr", toy_contents()))
    cut = fill_store(StoreWriter(tmp_path / "cut.zarr", toy_contents()))
    for name in ("_done/t50/0,4-5,9/000003.json", "_done/pixels/000004.json"):  # the moment before these were written
        (cut.location.root / name).unlink()
    fill_store(StoreWriter(tmp_path / "cut.zarr", toy_contents()))
    assert file_digests(cut.location.root) == file_digests(whole.location.root)


def test_another_key_is_refused_and_nothing_changes(toy_store, toy_contents, toy_key):
    before = file_digests(toy_store.location.root)
    with pytest.raises(KeyMismatch, match="seed is 0 there, 1 asked for"):
        StoreWriter(toy_store.location.root, toy_contents(key=toy_key(seed=1)))
    assert file_digests(toy_store.location.root) == before


def test_other_images_are_refused(toy_store, toy_contents):
    with pytest.raises(KeyMismatch, match="ids: 5 there, 2 asked for"):
        StoreWriter(toy_store.location.root, toy_contents(splits=("train", "test")))


def test_later_timesteps_and_blocks_join_the_store(toy_store, fill_store):
    fill_store(StoreWriter(toy_store.location.root, toy_store.contents), t=200, blocks=(4,))
    again = FeatureStore.open(toy_store.location.root)
    assert again.timesteps() == (50, 200)
    assert again.stored_blocks(200) == (4,)
    assert again.unfinished(t=200, blocks=(4,)) == ()


def test_blocks_of_two_digits_are_stored_as_those_of_a_vit_of_24_layers_are(tmp_path, toy_contents, fill_store):
    made = toy_contents(blocks={9: BlockShape(3, 16), 23: BlockShape(2, 16), 99: BlockShape(1, 8)})
    fill_store(StoreWriter(tmp_path / "a.zarr", made), blocks=(9, 23, 99))
    again = FeatureStore.open(tmp_path / "a.zarr")
    assert again.stored_blocks(50) == (9, 23, 99)
    assert again.read(2, blocks=(23,))[23].shape == (2, 2, 16, 16)
    assert verify(again.location) == ()


def test_a_folder_of_something_else_is_not_touched(tmp_path, toy_contents):
    (tmp_path / "thesis.txt").write_text("dear reader")
    with pytest.raises(StoreError, match="no pathseg store"):
        StoreWriter(tmp_path, toy_contents())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_foreign_zarr_group_is_not_touched(tmp_path, toy_contents):
    zarr.create_group(str(tmp_path / "b.zarr"), attributes={"mine": 1})
    with pytest.raises(StoreError, match="no pathseg store"):
        StoreWriter(tmp_path / "b.zarr", toy_contents())
    assert zarr.open_group(str(tmp_path / "b.zarr")).attrs["mine"] == 1


def test_a_store_killed_while_it_was_made_is_made_anew(tmp_path, toy_contents, fill_store, toy_store):
    store = fill_store(StoreWriter(tmp_path / "a.zarr", toy_contents()))
    begun = StoreWriter(tmp_path / "b.zarr", toy_contents())
    (begun.store.location.root / "_done/metadata.json").unlink()  # killed before the manifest
    fill_store(StoreWriter(tmp_path / "b.zarr", toy_contents()))
    assert file_digests(tmp_path / "b.zarr") == file_digests(store.location.root)


def test_values_beyond_float16_are_refused(tmp_path, toy_contents):
    writer = StoreWriter(tmp_path / "a.zarr", toy_contents())
    writer.add_arrays([50], [4])
    with pytest.raises(StoreError, match="pass --dtype float32"):
        writer.write_features(0, t=50, features=[(4, [np.full((2, 6, 16, 16), np.inf, np.float16)])])
    assert writer.store.unfinished(t=50, blocks=(4,)) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("images_per_unit", [1, 5])
@pytest.mark.parametrize("packing", ["none", "rounded"])
def test_the_image_with_values_beyond_float16_is_named(tmp_path, toy_contents, toy_key, images_per_unit, packing):
    made = toy_contents(key=toy_key(packing=packing), images_per_unit=images_per_unit)
    writer = StoreWriter(tmp_path / "a.zarr", made)
    writer.add_arrays([50], [4])
    maps = [np.full((2, 6, 16, 16), 70_000 if i == 3 else 1, np.float32) for i in range(5)]
    unit = 3 // images_per_unit
    with pytest.raises(StoreError, match="t50/block04 of train_3 has values that float16 cannot hold"):
        writer.write_features(unit, t=50, features=[(4, [maps[i] for i in writer.images(unit)])])


def test_a_large_image_is_chunked_by_patch(tmp_path, toy_contents, toy_key):
    blocks = {0: BlockShape(960, 8)}
    writer = StoreWriter(tmp_path / "a.zarr", toy_contents(key=toy_key(layout="image"), blocks=blocks))
    writer.add_arrays([50], [0])
    array = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")["t50/block00"]
    assert array.shape == (5, 2, 960, 256, 256)
    assert array.chunks == (1, 1, 960, 256, 256)


def test_dimensions_of_a_group_with_one_name_have_one_size_as_xarray_requires(toy_store):
    for group in (zarr.open_group(toy_store.location.root, mode="r"), zarr.open_group(toy_store.location.root / "t50")):
        sizes = {}
        for name, array in group.arrays():
            assert array.metadata.dimension_names is not None, name
            for dimension, size in zip(array.metadata.dimension_names, array.shape, strict=True):
                assert sizes.setdefault(dimension, size) == size, (name, dimension)
        assert sizes["image"] == 5


def test_the_users_zarr_configuration_changes_no_byte(tmp_path, toy_contents, fill_store, toy_store):
    with zarr.config.set({"default_zarr_format": 2, "array.order": "F", "array.write_empty_chunks": False}):
        fill_store(StoreWriter(tmp_path / "b.zarr", toy_contents()))
    assert file_digests(tmp_path / "b.zarr") == file_digests(toy_store.location.root)
