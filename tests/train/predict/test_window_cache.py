import numpy as np
import pytest

from pathseg.train.predict.records import WindowCacheIdentity
from pathseg.train.predict.window_cache import WindowCache

SHAPE = (2, 16, 16)


def maps(count, seed=0):
    return np.random.default_rng(seed).random((count, *SHAPE), np.float32)


def identity(**changes):
    values = {
        "file": "a.tif", "size_bytes": 9, "content_digest": "ab", "size": (20, 50), "mpp": 0.5, "run": "a",
        "weights_digest": "cd", "model_digest": "ef", "overlap": 4, "tissue": "otsu", "batch_size": 1,
        "windows": (0, 1, 2, 5),
    }  # fmt: skip
    return WindowCacheIdentity(**(values | changes))


def cache(folder, **changes):
    return WindowCache.on_disk(folder, identity(**changes), shape=SHAPE)


def chunk_file(folder):
    (chunk,) = (path for path in folder.rglob("*") if path.is_file() and "/c/" in path.as_posix())
    return chunk


def test_in_memory_values_come_back_exactly():
    kept = WindowCache.in_memory()
    kept.write([0, 2], maps(2))
    np.testing.assert_array_equal(kept.read(2), maps(2)[1])
    assert kept.complete([0, 2])
    assert not kept.complete([0, 1])


def test_on_disk_values_come_back_as_float16(tmp_path):
    kept = cache(tmp_path / "work")
    kept.write([1], maps(1))
    np.testing.assert_array_equal(kept.read(1), maps(1)[0].astype(np.float16))


def test_written_windows_are_complete_after_opening_again(tmp_path):
    cache(tmp_path / "work").write([0, 1], maps(2))
    again = cache(tmp_path / "work")
    assert again.complete([0, 1])
    assert not again.complete([1, 2])
    np.testing.assert_array_equal(again.read(1), maps(2)[1].astype(np.float16))


def test_a_journal_line_that_was_cut_off_does_not_count_nor_spoil_the_next(tmp_path):
    cache(tmp_path / "work").write([0], maps(1))
    with (tmp_path / "work" / "done.txt").open("a") as journal:
        journal.write("1")  # of a number that was to follow
    cache(tmp_path / "work").write([3], maps(1))
    again = cache(tmp_path / "work")
    assert [again.complete([i]) for i in range(4)] == [True, False, False, True]


@pytest.mark.parametrize("change", [{"run": "b"}, {"batch_size": 2}, {"mpp": None}, {"windows": (0, 1, 2, 6)}], ids=str)
def test_windows_of_another_identity_are_deleted(tmp_path, change):
    cache(tmp_path / "work").write([0], maps(1))
    assert not cache(tmp_path / "work", **change).complete([0])


def test_windows_without_a_readable_identity_are_deleted(tmp_path):
    cache(tmp_path / "work").write([0], maps(1))
    (tmp_path / "work" / "about.json").write_text("{")
    assert not cache(tmp_path / "work").complete([0])


def test_a_damaged_window_is_named_with_its_folder(tmp_path):
    cache(tmp_path / "work").write([0], maps(1))
    chunk = chunk_file(tmp_path / "work")
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match=rf"window 0 in {tmp_path}/work is damaged.*delete"):
        cache(tmp_path / "work").read(0)


def test_a_missing_window_is_not_read_as_empty(tmp_path):
    cache(tmp_path / "work").write([0], maps(1))
    chunk_file(tmp_path / "work").unlink()
    with pytest.raises(ValueError, match=rf"window 0 in {tmp_path}/work is missing.*delete"):
        cache(tmp_path / "work").read(0)


def test_a_window_in_the_place_of_another_is_named(tmp_path):
    cache(tmp_path / "work").write([0, 1], maps(2))
    first, second = sorted(path for path in (tmp_path / "work").rglob("*") if path.is_file() and "/c/" in str(path))
    first.write_bytes(second.read_bytes())
    again = cache(tmp_path / "work")
    np.testing.assert_array_equal(again.read(1), maps(2)[1].astype(np.float16))
    with pytest.raises(ValueError, match=rf"window 0 in {tmp_path}/work .*delete"):
        again.read(0)


@pytest.mark.parametrize("text", ["", "{}", '{"zarr_format": 3}', "\xff"])
def test_a_damaged_description_of_the_array_does_not_matter(tmp_path, text):
    cache(tmp_path / "work").write([2], maps(1))
    (tmp_path / "work" / "windows.zarr" / "zarr.json").write_text(text, encoding="latin1")
    np.testing.assert_array_equal(cache(tmp_path / "work").read(2), maps(1)[0].astype(np.float16))


def test_damaged_lines_of_the_journal_count_no_window(tmp_path):
    cache(tmp_path / "work").write([0, 1, 2], maps(3))
    journal = tmp_path / "work" / "done.txt"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"\xff" + lines[1] + lines[2][:1] + b"x" + lines[2][2:])
    assert [cache(tmp_path / "work").complete([i]) for i in range(3)] == [True, False, False]
