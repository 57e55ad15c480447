import hashlib

import numpy as np
import pytest
import zarr

from pathseg.store.errors import Damaged, Incomplete, KeyMismatch, StoreError
from pathseg.store.features import FeatureStore


def file_digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_features_read_as_they_were_written(tmp_path, toy_contents):
    store = FeatureStore.create(tmp_path / "a.zarr", toy_contents())
    store.add_arrays([50], [4])
    maps = np.random.default_rng(0).normal(size=(2, 6, 16, 16)).astype(np.float16)
    store.write_features(3, t=50, features=[(4, maps)])
    assert np.array_equal(FeatureStore.open(tmp_path / "a.zarr").read(3, t=50, blocks=(4,))[4], maps)


def test_pixels_read_as_they_were_written(tmp_path, toy_contents):
    store, rng = FeatureStore.create(tmp_path / "a.zarr", toy_contents()), np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (256, 512, 3), dtype=np.uint8), rng.integers(0, 2, (256, 512), dtype=np.uint8)
    instances = rng.integers(0, 9, (201, 300)).astype(np.uint16)  # image 1 was 201x300 px
    store.write_pixels(1, image=image, mask=mask, instances=instances)
    again = FeatureStore.open(tmp_path / "a.zarr")
    assert np.array_equal(again.image(1), image)
    assert np.array_equal(again.mask(1), mask)
    assert np.array_equal(again.instances(1), instances)


def test_plain_zarr_reads_the_store(toy_store):
    group = zarr.open_group(str(toy_store.location), mode="r")
    assert group["images"].shape == (5, 256, 512, 3)
    assert group["masks"].dtype == np.uint8
    assert group["t50/block04"].shape == (5, 2, 6, 16, 16)
    assert np.array_equal(group["t50/block04"][2], toy_store.read(2, t=50, blocks=(4,))[4])
    assert group.attrs["ids"] == ["train_0", "train_1", "train_2", "train_3", "test_4"]
    assert group.attrs["patch_grid"] == [1, 2]
    assert [name for name, _ in group.members()] == ["images", "instances", "masks", "t50"]


def test_contents_come_back_equal(toy_store):
    assert FeatureStore.open(toy_store.location.root).contents == toy_store.contents


def test_what_was_not_written_is_incomplete(tmp_path, toy_contents):
    store = FeatureStore.create(tmp_path / "a.zarr", toy_contents())
    store.add_arrays([50], [4])
    with pytest.raises(Incomplete, match="block 4 at t 50 of train_0"):
        store.read(0, t=50, blocks=(4,))
    with pytest.raises(Incomplete, match="no images of train_0 yet"):
        store.image(0)
    assert store.unfinished(t=50, blocks=(4,)) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("change", ["flip", "truncate", "delete"])
def test_damage_is_found_when_it_is_read(toy_store, change):
    chunk = toy_store.location.root / "t50/block04/c/2/0/0/0/0"
    data = bytearray(chunk.read_bytes())
    if change == "flip":
        data[1000] ^= 4
        chunk.write_bytes(data)
    elif change == "truncate":
        chunk.write_bytes(data[:-100])
    else:
        chunk.unlink()
    with pytest.raises(Damaged, match="t50/block04 of train_2"):
        toy_store.read(2, t=50, blocks=(4,))
    assert toy_store.read(1, t=50, blocks=(4,))[4].shape == (2, 6, 16, 16)


def test_a_run_that_is_cut_off_and_goes_on_gives_the_same_bytes(tmp_path, toy_contents, fill_store):
    whole = fill_store(FeatureStore.create(tmp_path / "whole.zarr", toy_contents()))
    cut = FeatureStore.create(tmp_path / "cut.zarr", toy_contents())
    fill_store(cut)
    for name in ("_done/t50/0,4-5,9/000003.json", "_done/pixels/000004.json"):  # the moment before these were written
        (cut.location.root / name).unlink()
    (cut.location.root / "t50/block04/c/3/0/0/0/0.1234.partial").write_bytes(b"half")
    fill_store(FeatureStore.create(tmp_path / "cut.zarr", toy_contents()))
    assert file_digests(cut.location.root) == file_digests(whole.location.root)


def test_another_key_is_refused_and_nothing_changes(toy_store, toy_contents, toy_key):
    before = file_digests(toy_store.location.root)
    with pytest.raises(KeyMismatch, match="seed is 0 there, 1 asked for"):
        FeatureStore.create(toy_store.location.root, toy_contents(key=toy_key(seed=1)))
    assert file_digests(toy_store.location.root) == before


def test_other_images_are_refused(toy_store, toy_contents):
    with pytest.raises(KeyMismatch, match="ids: 5 there, 2 asked for"):
        FeatureStore.create(toy_store.location.root, toy_contents(splits=("train", "test")))


def test_later_timesteps_and_blocks_join_the_store(toy_store, fill_store):
    fill_store(toy_store, t=200, blocks=(4,))
    again = FeatureStore.open(toy_store.location.root)
    assert again.timesteps() == (50, 200)
    assert again.stored_blocks(200) == (4,)
    assert again.unfinished(t=200, blocks=(4,)) == ()


def test_a_folder_of_something_else_is_not_touched(tmp_path, toy_contents):
    (tmp_path / "thesis.txt").write_text("dear reader")
    with pytest.raises(StoreError, match="is no pathseg store"):
        FeatureStore.create(tmp_path, toy_contents())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_missing_store_names_the_way_out(tmp_path):
    with pytest.raises(StoreError, match="make one with pathseg extract"):
        FeatureStore.open(tmp_path / "none.zarr")


def test_a_foreign_zarr_group_is_refused(tmp_path):
    zarr.create_group(str(tmp_path / "b.zarr"))
    with pytest.raises(StoreError, match="no pathseg store"):
        FeatureStore.open(tmp_path / "b.zarr")


def test_a_newer_format_asks_for_an_upgrade(toy_store):
    zarr.open_group(str(toy_store.location)).attrs["pathseg_format"] = 99
    with pytest.raises(StoreError, match="has format 99"):
        FeatureStore.open(toy_store.location.root)


def test_values_beyond_float16_are_refused(tmp_path, toy_contents):
    store = FeatureStore.create(tmp_path / "a.zarr", toy_contents())
    store.add_arrays([50], [4])
    maps = np.full((2, 6, 16, 16), np.inf, np.float16)
    with pytest.raises(StoreError, match="pass --dtype float32"):
        store.write_features(0, t=50, features=[(4, maps)])
    assert store.unfinished(t=50, blocks=(4,)) == (0, 1, 2, 3, 4)


def test_a_large_image_is_chunked_by_patch(tmp_path, toy_contents, toy_key):
    from pathseg.store.size import BlockShape

    blocks = {0: BlockShape(960, 8)}
    store = FeatureStore.create(tmp_path / "a.zarr", toy_contents(key=toy_key(layout="image"), blocks=blocks))
    store.add_arrays([50], [0])
    array = zarr.open_group(str(store.location), mode="r")["t50/block00"]
    assert array.shape == (5, 2, 960, 256, 256)
    assert array.chunks == (1, 1, 960, 256, 256)
