import errno
import os
import pickle

import numpy as np
import pytest

from pathseg.store.errors import Damaged, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.location.cache import ENTRIES, ReadCache, cache_for
from pathseg.store.records import checksum


def values(number, size=100):
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)


def put(cache, number, size=100):
    cache.put(f"a/{number}", checksum(values(number, size)), values(number, size))


def there(cache, number, size=100):
    found = cache.get(f"a/{number}", checksum(values(number, size)), shape=(size,), dtype=np.dtype(np.uint8))
    return found is not None and np.array_equal(found, values(number, size))


def kept(cache):
    return sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())


def age(cache, numbers):
    """Let these have been used long ago, one after another."""
    for second, number in enumerate(numbers):
        (path,) = cache.folder.rglob(f"a/{number}-*")
        os.utime(path, (1e9 + second, 1e9 + second))


def cached_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_an_array_comes_back_in_its_shape_and_dtype(tmp_path):
    cache, maps = ReadCache(tmp_path), np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float16)
    cache.put("t50/block04/3", checksum(maps), maps)
    again = ReadCache(tmp_path).get("t50/block04/3", checksum(maps), shape=maps.shape, dtype=maps.dtype)
    assert again.dtype == maps.dtype
    assert np.array_equal(again, maps)
    assert again.flags.writeable


def test_other_values_of_the_same_name_are_not_taken_for_it(tmp_path):
    cache = ReadCache(tmp_path)
    cache.put("a/0", checksum(values(0)), values(0))
    assert cache.get("a/0", checksum(values(1)), shape=(100,), dtype=np.dtype(np.uint8)) is None


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d + b"0", lambda d: bytes([d[0] ^ 1]) + d[1:]])
def test_a_damaged_file_is_noticed_and_dropped(tmp_path, damage):
    cache = ReadCache(tmp_path)
    put(cache, 0)
    (path,) = cached_files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert not there(cache, 0)
    assert cached_files(tmp_path) == []


def test_the_limit_is_kept(tmp_path):
    cache = ReadCache(tmp_path, limit_bytes=1050)
    for number in range(30):
        put(cache, number)
    assert kept(cache) == 1000


def test_files_of_others_are_neither_counted_nor_deleted(tmp_path):
    mine = [tmp_path / "thesis" / "chapter1.dat", tmp_path / "0-00000000", tmp_path / ENTRIES / "a" / "notes.txt"]
    link = tmp_path / ENTRIES / "a" / "0-00000001"
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(900))
        os.utime(path, (1, 1))
    link.symlink_to(mine[0])
    cache = ReadCache(tmp_path, limit_bytes=1000)
    for number in range(20):
        put(cache, number)
    assert all(path.stat().st_size == 900 for path in mine) and link.is_symlink()
    assert sum(there(cache, number) for number in range(20)) == 10


def test_what_was_longest_unused_before_goes_first(tmp_path):
    for number in range(10):
        put(ReadCache(tmp_path, limit_bytes=1000), number)
    cache = ReadCache(tmp_path, limit_bytes=1000)
    age(cache, [7, 2, 5, 0, 1, 3, 4, 6, 8, 9])
    for number in (10, 11, 12):
        put(cache, number)
    assert [number for number in range(13) if there(cache, number)] == [0, 1, 3, 4, 6, 8, 9, 10, 11, 12]


def test_what_was_used_again_stays(tmp_path):
    for number in range(10):
        put(ReadCache(tmp_path, limit_bytes=1000), number)
    cache = ReadCache(tmp_path, limit_bytes=1000)
    age(cache, range(10))
    assert there(cache, 0)
    put(cache, 10)
    assert [number for number in range(11) if there(cache, number)] == [0, *range(2, 11)]


def test_an_epoch_larger_than_the_limit_keeps_what_came_first(tmp_path):
    cache, rng = ReadCache(tmp_path, limit_bytes=500), np.random.default_rng(0)
    hits = []
    for _ in range(3):
        found = 0
        for number in rng.permutation(10):
            found += (hit := there(cache, number))
            if not hit:
                put(cache, number)
        hits.append(found)
    assert hits == [0, 5, 5]


def test_small_arrays_still_fit_where_a_large_one_did_not(tmp_path):
    cache = ReadCache(tmp_path, limit_bytes=1000)
    put(cache, 0, size=2000)
    put(cache, 1, size=100)
    assert there(cache, 1)


def test_two_processes_with_one_folder_keep_the_limit_together(tmp_path):
    caches = [ReadCache(tmp_path, limit_bytes=10_000) for _ in range(2)]
    for number in range(200):
        put(caches[number % 2], number)
    assert kept(caches[0]) <= 10_500  # each may be a twentieth behind


def test_a_disk_that_takes_nothing_is_no_error(tmp_path):
    cache = ReadCache(tmp_path / "cache")
    (tmp_path / "cache" / ENTRIES / "a").write_bytes(b"a file where a folder should be")
    put(cache, 0)
    assert not there(cache, 0)


def test_by_default_half_of_the_free_space_is_used_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda app, appauthor: tmp_path / app)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 900}))
    assert (ReadCache().folder, ReadCache().limit_bytes) == (tmp_path / "pathseg", 450)
    (tmp_path / "pathseg" / ENTRIES / "0-00000000").write_bytes(bytes(100))
    assert ReadCache().limit_bytes == 500


def test_a_cache_sent_to_another_process_takes_the_limit_of_that_process(tmp_path, monkeypatch):
    free = {"free": 900}
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), free))
    default, explicit = pickle.dumps(ReadCache(tmp_path)), pickle.dumps(ReadCache(tmp_path, limit_bytes=77))
    free["free"] = 100
    assert (pickle.loads(default).limit_bytes, pickle.loads(default).folder) == (50, tmp_path)
    assert pickle.loads(explicit).limit_bytes == 77


def test_a_default_cache_folder_is_that_of_the_user_who_unpickles_it(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda app, appauthor: tmp_path / "driver")
    pickled = pickle.dumps(ReadCache())
    monkeypatch.setattr("platformdirs.user_cache_path", lambda app, appauthor: tmp_path / "worker")
    assert pickle.loads(pickled).folder == tmp_path / "worker"


def test_only_a_store_with_a_url_gets_a_cache(tmp_path):
    assert cache_for(tmp_path / "a.zarr", tmp_path) is None
    assert cache_for("s3://bucket/a.zarr", tmp_path).folder == tmp_path


def test_what_was_read_once_is_read_from_the_cache(toy_store, tmp_path):
    folder = toy_store.location.root
    first, image = FeatureStore.open(folder, cache=ReadCache(tmp_path / "cache")), toy_store.image(2)
    maps = first.read(2, t=50)
    assert np.array_equal(first.image(2), image)
    for chunk in [*folder.glob("t50/*/c/2/**/0"), *folder.glob("images/c/2/**/0")]:
        if chunk.is_file():
            chunk.unlink()
    again = FeatureStore.open(folder, cache=ReadCache(tmp_path / "cache"))
    assert all(np.array_equal(again.read(2, t=50)[block], maps[block]) for block in maps)
    assert np.array_equal(again.image(2), image)
    with pytest.raises(Damaged):
        FeatureStore.open(folder).read(2, t=50)


def test_a_damaged_cached_file_is_fetched_again(toy_store, tmp_path):
    store = FeatureStore.open(toy_store.location.root, cache=ReadCache(tmp_path / "cache"))
    maps = store.read(0, t=50, blocks=(4,))[4]
    (path,) = cached_files(tmp_path / "cache")
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + bytes([whole[50] ^ 8]) + whole[51:])
    assert np.array_equal(store.read(0, t=50, blocks=(4,))[4], maps)
    assert path.read_bytes() == whole


def test_damage_in_the_store_is_not_cached(toy_store, tmp_path):
    chunk = toy_store.location.root / "t50/block04/c/0/0/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(Damaged):
        FeatureStore.open(toy_store.location.root, cache=ReadCache(tmp_path / "cache")).read(0, t=50, blocks=(4,))
    assert cached_files(tmp_path / "cache") == []


def test_a_store_made_anew_does_not_read_the_old_values(toy_store, tmp_path, fill_store, toy_contents):
    from pathseg.store.writer import StoreWriter

    FeatureStore.open(toy_store.location.root, cache=ReadCache(tmp_path / "cache")).read(0, t=50)
    other = fill_store(StoreWriter(tmp_path / "other.zarr", toy_contents()), seed=1)
    cached = FeatureStore.open(other.location.root, cache=ReadCache(tmp_path / "cache")).read(0, t=50)
    assert all(np.array_equal(cached[block], other.read(0, t=50)[block]) for block in cached)
    assert not np.array_equal(cached[4], toy_store.read(0, t=50)[4])


def no_home(*names, **options):
    raise RuntimeError("Could not determine home directory.")  # as `Path.expanduser` under a bare user id


def read_only(path, *arguments, **more):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (("platformdirs.user_cache_path", no_home), ("HOME", "XDG_CACHE_HOME")),
        (("os.utime", read_only), ("Read-only", ENTRIES, "XDG_CACHE_HOME")),
        (("os.access", lambda *arguments: False), ("Permission denied", ENTRIES)),
        (("pathlib.Path.mkdir", read_only), ("Read-only", ENTRIES)),
    ],
    ids=["no HOME", "another's folder", "read-only folder", "read-only parent"],
)
def test_where_there_can_be_no_cache_one_line_says_so(tmp_path, monkeypatch, broken, words):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sent, notes = pickle.dumps(ReadCache()), []
    monkeypatch.setattr(*broken)
    with pytest.raises(StoreError, match=words[0]):
        ReadCache()
    assert cache_for("s3://bucket/a.zarr", on_note=notes.append) is None
    (note,) = notes
    assert "\n" not in note and all(word in note for word in ("S3", "--cache-dir", *words))
    with pytest.warns(UserWarning, match=words[0]):  # of a worker of a Dask cluster
        assert pickle.loads(sent) is None
    assert cache_for(tmp_path / "a.zarr", on_note=notes.append) is None and len(notes) == 1


def test_a_file_in_place_of_the_cache_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="file.*another --cache-dir"):
        assert cache_for("s3://bucket/a.zarr", tmp_path / "file") is None
