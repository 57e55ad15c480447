"""A new edition of a folder: the old one stays whole until the new one is."""

import pytest

from pathseg.train.report.staged_folder import Edition

OURS = ("*.png", "index.html")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def old(tmp_path):
    for name in ("a.png", "b.png", "index.html", "notes.txt"):
        (tmp_path / name).write_bytes(b"old")
    return tmp_path


def test_published_files_take_the_place_of_the_old_ones(old):
    with Edition(old, ours=OURS) as edition:
        edition.add("a.png", b"new")
        edition.add("index.html", b"new")
        edition.publish()
    assert files(old) == {"a.png": b"new", "index.html": b"new", "notes.txt": b"old"}


def test_until_it_is_published_all_is_as_it_was(old):
    before = files(old)
    with Edition(old, ours=OURS) as edition:
        edition.add("a.png", b"new")
        edition.add("c.png", b"new")
        now = {name: content for name, content in files(old).items() if not name.endswith(".partial")}
    assert now == before


def test_an_interruption_leaves_the_folder_as_it_was(old):
    before = files(old)
    with pytest.raises(KeyboardInterrupt), Edition(old, ours=OURS) as edition:
        edition.add("a.png", b"new")
        raise KeyboardInterrupt
    assert files(old) == before


def test_what_a_killed_edition_left_is_cleared_away(old):
    before = files(old)
    (old / "gone.png.partial").write_bytes(b"half")
    with Edition(old, ours=OURS) as edition:
        assert files(edition.folder) == before


def test_a_missing_folder_is_made(tmp_path):
    with Edition(tmp_path / "a" / "b", ours=OURS) as edition:
        edition.add("index.html", b"new")
        edition.publish()
    assert files(tmp_path / "a" / "b") == {"index.html": b"new"}


def test_a_name_cannot_lead_out_of_the_folder(tmp_path):
    with Edition(tmp_path, ours=OURS) as edition:
        edition.add("x-../a b.png", b"new")
        edition.publish()
    assert files(tmp_path) == {"x-.._a_b.png": b"new"}
