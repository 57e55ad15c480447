"""A staged folder: the old files stay whole until the new ones are published."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from pathseg.train.report.staged_folder import StagedFolder, file_name

OWNED = ("*.png", "index.html")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def old(tmp_path):
    for name in ("a.png", "b.png", "index.html", "notes.txt"):
        (tmp_path / name).write_bytes(b"old")
    return tmp_path


def test_published_files_replace_the_old_ones(old):
    with StagedFolder(old, owned=OWNED) as staged:
        staged.add("a.png", b"new")
        staged.add("index.html", b"new")
        staged.publish()
    assert files(old) == {"a.png": b"new", "index.html": b"new", "notes.txt": b"old"}


def test_until_it_is_published_all_is_as_it_was(old):
    before = files(old)
    with StagedFolder(old, owned=OWNED) as staged:
        staged.add("a.png", b"new")
        staged.add("c.png", b"new")
        now = {name: content for name, content in files(old).items() if not name.endswith(".partial")}
    assert now == before


def test_an_interruption_leaves_the_folder_as_it_was(old):
    before = files(old)
    with pytest.raises(KeyboardInterrupt), StagedFolder(old, owned=OWNED) as staged:
        staged.add("a.png", b"new")
        raise KeyboardInterrupt
    assert files(old) == before


def test_files_that_a_killed_process_left_are_removed(old):
    before = files(old)
    (old / "gone.png.partial").write_bytes(b"half")
    with StagedFolder(old, owned=OWNED) as staged:
        assert files(staged.folder) == before


def test_a_missing_folder_is_made(tmp_path):
    with StagedFolder(tmp_path / "a" / "b", owned=OWNED) as staged:
        staged.add("index.html", b"new")
        staged.publish()
    assert files(tmp_path / "a" / "b") == {"index.html": b"new"}


def test_a_name_cannot_lead_out_of_the_folder(tmp_path):
    with StagedFolder(tmp_path, owned=OWNED) as staged:
        staged.add("x-../a b.png", b"new")
        staged.publish()
    assert files(tmp_path) == {file_name("x-../a b.png"): b"new"}
    assert file_name("x-../a b.png").startswith("x-.._a_b-")


def test_a_second_process_waits_until_the_first_has_published(tmp_path):
    def stage(content):
        with StagedFolder(tmp_path, owned=OWNED) as staged:
            staged.add("a.png", content)
            staged.add("index.html", content)
            staged.publish()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(stage, [bytes([number]) for number in range(20)]))
    found = files(tmp_path)
    assert found.keys() == {"a.png", "index.html"}
    assert found["a.png"] == found["index.html"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("a b.csv", "a_b.csv"), ("a/b.csv", "a?b.csv"), ("a" * 300 + ".csv", "a" * 301 + ".csv")],
)
def test_names_that_differ_in_one_letter_give_two_files(one, other):
    assert file_name(one) != file_name(other)
    assert all(len(file_name(name).encode()) < 240 and file_name(name).endswith(".csv") for name in (one, other))
