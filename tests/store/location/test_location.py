import os
import threading
import time
from pathlib import Path

import pytest

from pathseg.store.errors import StoreError
from pathseg.store.location import local
from pathseg.store.location.local import LocalFolder
from pathseg.store.location.location import open_location


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    location = LocalFolder(tmp_path)
    location.write("a/b.json", b"old")
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        location.write("a/b.json", b"new")
    assert location.read("a/b.json") == b"old"
    assert list(location.names()) == ["a/b.json"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="lists open files as Linux does")
def test_a_flush_reaches_every_folder_from_the_files_to_the_one_above_the_store(tmp_path, monkeypatch):
    location, flushed, fsync = LocalFolder(tmp_path / "store"), [], os.fsync
    names = ["zarr.json", "t50/block04/c/0/0", "t50/block05/c/0/0"]
    for name in names:
        location.write(name, b"1")
    monkeypatch.setattr("os.fsync", lambda fd: flushed.append(Path(f"/proc/self/fd/{fd}").readlink()) or fsync(fd))
    location.flush(names)
    inside = ["", "t50", *(f"t50/block0{block}{below}" for block in (4, 5) for below in ("", "/c", "/c/0"))]
    assert sorted(flushed) == sorted([tmp_path, *(tmp_path / "store" / folder for folder in inside)])


def test_a_run_that_starts_removes_only_half_written_files(tmp_path):
    location = LocalFolder(tmp_path)
    location.write("keep", b"1")
    location.write("slides.partial", b"a download of the user")
    location.write("notes/0.abc.partial", b"his notes")
    (tmp_path / "masks/c/0").mkdir(parents=True)
    (tmp_path / f"masks/c/0/0.{'ab' * 16}.partial").write_bytes(b"half")
    with location.writer_lock() as alone:
        assert alone
        assert sorted(location.names()) == ["keep", "notes/0.abc.partial", "slides.partial"]


def test_a_second_writer_notices_the_first_and_removes_nothing(tmp_path):
    with LocalFolder(tmp_path).writer_lock():
        half = tmp_path / f"zarr.json.{'ab' * 16}.partial"
        half.write_bytes(b"being written")
        with LocalFolder(tmp_path).writer_lock() as alone:
            assert not alone
        assert half.exists()
    with LocalFolder(tmp_path).writer_lock() as alone:
        assert alone


@pytest.mark.parametrize("turn", range(3))
def test_of_runs_that_start_while_a_store_is_changed_one_is_the_first(tmp_path, turn):
    found, all_write = [], threading.Barrier(4)

    def write():
        with LocalFolder(tmp_path).writer_lock() as alone:
            found.append(alone)
            all_write.wait(20)  # each of them writes until the last has begun

    with LocalFolder(tmp_path).writer_lock(exclusive=True) as alone:
        assert alone
        runs = [threading.Thread(target=write) for _ in range(4)]
        for run in runs:
            run.start()
        time.sleep(0.3)
        assert found == []
    for run in runs:
        run.join()
    assert sorted(found) == [False, False, False, True]


@pytest.mark.parametrize(("start", "read"), [(0, b"0123"), (2, b"23"), (-1, b"3"), (-4, b"0123"), (-9, b"0123")])
def test_a_file_is_read_from_a_byte_counted_from_either_end(tmp_path, start, read):
    location = LocalFolder(tmp_path)
    location.write("a", b"0123")
    with location.open("a", start) as file:
        assert file.read() == read


def test_free_bytes_are_known_before_the_folder_is_made(tmp_path):
    assert LocalFolder(tmp_path / "not" / "yet").free_bytes() > 0


def test_a_url_of_another_kind_is_refused():
    with pytest.raises(StoreError, match="ftp://x"):
        open_location("ftp://x")


def test_where_folders_cannot_be_opened_a_store_is_written_without_locks(tmp_path, monkeypatch):
    def refused(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(local, "fcntl", None)  # as on Windows
    monkeypatch.setattr(local.os, "open", refused)
    with LocalFolder(tmp_path).writer_lock() as alone, local.folder_lock(tmp_path / "run") as held:
        assert alone
        assert held
