from pathlib import Path

import pytest

from pathseg.store.errors import StoreError
from pathseg.store.runtime.workspace import heads_path, only_store, run_path, store_path


def test_places_are_those_of_the_interface():
    assert store_path(Path("w"), "glas", "mini") == Path("w/glas-mini.zarr")
    assert heads_path(Path("w")) == Path("w/heads")


def test_the_only_store_is_found(toy_store):
    assert only_store(toy_store.location.root.parent) == toy_store.location.root


def test_without_a_store_the_next_step_is_named(tmp_path):
    with pytest.raises(StoreError, match="run pathseg extract first"):
        only_store(tmp_path)


def test_several_stores_are_listed(tmp_path):
    for name in ("a.zarr", "b.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_text("{}")
    with pytest.raises(StoreError, match=r"a\.zarr, .*b\.zarr"):
        only_store(tmp_path)


def test_a_run_is_found_by_its_name_and_by_its_path(tmp_path):
    folder = heads_path(tmp_path) / "run"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert run_path(tmp_path, "run") == run_path(tmp_path / "elsewhere", str(folder)) == folder


def test_a_run_that_is_not_there_is_named_with_both_places(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run other, neither at .*heads/other nor at"):
        run_path(tmp_path, "other")
