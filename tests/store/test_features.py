from collections import Counter

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from pathseg.store.errors import Damaged, Incomplete, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.location.cache import ReadCache
from pathseg.store.location.local import LocalFolder
from pathseg.store.writer import StoreWriter


def test_plain_zarr_reads_the_store(toy_store):
    group = zarr.open_group(str(toy_store.location), mode="r")
    assert group["images"].shape == (5, 256, 512, 3)
    assert group["masks"].dtype == np.uint8
    assert group["t50/block04"].shape == (5, 2, 6, 16, 16)
    assert np.array_equal(group["t50/block04"][2], toy_store.read(2, t=50, blocks=(4,))[4])
    assert group.attrs["ids"] == ["train_0", "train_1", "train_2", "train_3", "test_4"]
    assert group.attrs["patch_grid"] == [1, 2]
    assert sorted(name for name, _ in group.members()) == ["_done", "images", "instances", "masks", "t50"]


def test_what_was_not_written_is_incomplete(tmp_path, toy_contents):
    writer = StoreWriter(tmp_path / "a.zarr", toy_contents())
    writer.add_arrays([50], [4])
    with pytest.raises(Incomplete, match="block 4 at t 50 of train_0"):
        writer.store.read(0, t=50, blocks=(4,))
    with pytest.raises(Incomplete, match="no images of train_0 yet"):
        writer.store.image(0)
    assert writer.store.unfinished(t=50, blocks=(4,)) == (0, 1, 2, 3, 4)


def test_contents_come_back_equal(toy_store):
    assert FeatureStore.open(toy_store.location.root).contents == toy_store.contents


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


def test_a_missing_store_names_the_way_out(tmp_path):
    with pytest.raises(StoreError, match="make one with pathseg extract"):
        FeatureStore.open(tmp_path / "none.zarr")


def test_a_foreign_zarr_group_is_refused(tmp_path):
    zarr.create_group(str(tmp_path / "b.zarr"))
    with pytest.raises(StoreError, match="no pathseg store"):
        FeatureStore.open(tmp_path / "b.zarr")


def test_a_newer_format_asks_for_an_upgrade(tmp_path, toy_contents):
    zarr.create_group(str(tmp_path / "c.zarr"), attributes=toy_contents().to_attributes() | {"pathseg_format": 99})
    with pytest.raises(StoreError, match="has format 99"):
        FeatureStore.open(tmp_path / "c.zarr")


@pytest.mark.parametrize("name", ["zarr.json", "t50/block04/zarr.json", "_done/metadata.json"])
def test_a_description_that_changed_is_damage(toy_store, name):
    path = toy_store.location.root / name
    path.write_bytes(path.read_bytes().replace(b"16", b"17", 1).replace(b"background", b"backdround", 1))
    with pytest.raises(Damaged, match="verify --repair"):
        FeatureStore.open(toy_store.location.root).read(0, t=50, blocks=(4,))


def test_without_a_choice_all_stored_blocks_are_read(toy_store):
    assert list(toy_store.read(0)) == [0, 4, 5, 9]


@pytest.mark.parametrize("packing", ["none", "lossless"])
@pytest.mark.parametrize("images_per_unit", [1, 2])
def test_arrays_that_are_given_are_filled(tmp_path, toy_contents, toy_key, fill_store, packing, images_per_unit):
    contents = toy_contents(key=toy_key(packing=packing), images_per_unit=images_per_unit)
    store = fill_store(StoreWriter(tmp_path / "a.zarr", contents))
    out = {4: np.full((2, 6, 16, 16), np.nan, np.float16), 9: np.full((2, 3, 64, 64), np.nan, np.float16)}
    read = store.read(3, t=50, blocks=(4, 9), out=out)
    assert all(read[block] is out[block] for block in out)
    group = zarr.open_group(str(store.location), mode="r")
    assert all(np.array_equal(out[block], group[f"t50/block0{block}"][3]) for block in out)


def test_arrays_that_are_given_are_filled_from_the_cache(toy_store, tmp_path):
    for _ in range(2):  # from the store, then from the cache
        cached = FeatureStore.open(toy_store.location.root, cache=ReadCache(tmp_path / "cache"))
        out = {4: np.full((2, 6, 16, 16), np.nan, np.float16)}
        assert cached.read(3, t=50, blocks=(4,), out=out)[4] is out[4]
        assert np.array_equal(out[4], toy_store.read(3, t=50, blocks=(4,))[4])


@pytest.mark.parametrize(
    "wrong",
    [
        np.empty((2, 6, 16, 15), np.float16),
        np.empty((2, 6, 16, 16), np.float32),
        np.empty((2, 6, 16, 32), "f2")[..., ::2],
    ],
    ids=["shape", "type", "order"],
)
def test_an_array_that_does_not_fit_is_not_filled(toy_store, wrong):
    with pytest.raises(ValueError, match=r"t50/block04 is float16 \(2, 6, 16, 16\) an image, but out is"):
        toy_store.read(3, t=50, blocks=(4,), out={4: wrong})


class CountingLocation(LocalFolder):
    """Counts the reads of each file, Zarr's own included."""

    def __init__(self, path):
        super().__init__(path)
        self.reads = Counter()

    def read(self, name):
        self.reads[name] += 1
        return super().read(name)

    def zarr(self, *, read_only):
        location = self

        class CountingStore(LocalStore):
            async def get(self, key, *arguments, **options):
                location.reads[key] += 1
                return await super().get(key, *arguments, **options)

        return CountingStore(self.root, read_only=read_only)


def test_opening_and_reading_reads_the_description_of_the_store_once(toy_store):
    location = CountingLocation(toy_store.location.root)
    store = FeatureStore.open(location)
    store.read(0, t=50)
    store.image(0)
    assert location.reads["zarr.json"] == location.reads["_done/metadata.json"] == 1


def test_a_writer_reads_the_description_of_an_existing_store_once(toy_store, toy_contents):
    location = CountingLocation(toy_store.location.root)
    StoreWriter(location, toy_contents())
    assert location.reads["zarr.json"] == 1


def test_reading_opens_no_array_for_writing(toy_store):
    store = FeatureStore.open(toy_store.location.root)
    with pytest.raises(ValueError, match="read-only"):
        store.array("masks")[0] = 1


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"attributes": 3}'])
def test_a_damaged_description_is_named_with_the_way_out(toy_store, content):
    (toy_store.location.root / "zarr.json").write_bytes(content)
    for manifest in (True, False):
        if not manifest:
            (toy_store.location.root / "_done/metadata.json").unlink()
        with pytest.raises(Damaged, match=r"zarr\.json.*--repair"):
            FeatureStore.open(toy_store.location.root)


def test_a_store_that_lost_its_description_is_damaged(toy_store, toy_contents):
    (toy_store.location.root / "zarr.json").unlink()
    for call in (FeatureStore.open, lambda path: StoreWriter(path, toy_contents())):
        with pytest.raises(Damaged, match=r"zarr\.json has gone; run pathseg verify --repair"):
            call(toy_store.location.root)
