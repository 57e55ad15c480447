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
