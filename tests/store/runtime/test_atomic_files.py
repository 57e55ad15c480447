import errno
import os
from pathlib import Path

import pytest

from pathseg.store.runtime.atomic_files import atomic_path, write_atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_into_a_new_folder_and_replaced(tmp_path):
    path = tmp_path / "runs" / "config.json"
    for content in (b"first", b"second"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert names(path.parent) == ["config.json"]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(tmp_path / "head.safetensors", b"x")
    assert caught.value.filename == str(tmp_path / "head.safetensors") and names(tmp_path) == []


def test_after_an_error_the_old_file_is_there_and_no_temporary_one(tmp_path):
    path = tmp_path / "mask.tif"
    write_atomic(path, b"old")
    with pytest.raises(InterruptedError), atomic_path(path) as partial:
        partial.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise InterruptedError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["mask.tif"]


def test_a_disk_that_is_full_at_the_flush_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_atomic(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["config.json"]


@pytest.mark.parametrize("leftover", ["file", "folder"])
def test_what_a_killed_process_left_is_replaced(tmp_path, leftover):
    if leftover == "folder":
        (tmp_path / "a.partial").mkdir()
        (tmp_path / "a.partial" / "half").write_bytes(b"half")
    else:
        (tmp_path / "a.partial").write_bytes(b"half of a longer file")
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    for name in ("old", "new"):
        with atomic_path(tmp_path / "map.zarr") as partial:
            partial.mkdir()
            (partial / name).write_bytes(b"")
    assert names(tmp_path / "map.zarr") == ["new"]


def test_a_file_never_replaces_a_folder(tmp_path):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "a.png" / "notes.txt").write_text("mine")
    with pytest.raises(IsADirectoryError, match=r"a folder lies where this file should.*a\.png"):
        write_atomic(tmp_path / "a.png", b"new")
    assert names(tmp_path) == ["a.png"] and (tmp_path / "a.png" / "notes.txt").read_text() == "mine"
