import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.pipeline import extract, open_extraction, run_extraction
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.location.local import LocalFolder
from pathseg.store.verify import Verification, verify

CONFIG = ExtractConfig(layout="native", t=(10, 50))


def tree(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_the_result_has_the_complete_store_and_the_counts(toy_dataset, toy_model, tmp_path):
    result = extract(toy_dataset("a", "b"), toy_model, tmp_path / "store.zarr", CONFIG)
    assert (result.failures, result.complete, result.computed) == ((), 2, 2)
    assert result.store.read(1, t=50)[9].shape == (2, 2, 64, 64)
    assert result.store.contents.background == 0
    assert FeatureStore.open(tmp_path / "store.zarr").unfinished(t=10, blocks=(0, 4, 9)) == ()


def test_a_path_may_be_text(toy_dataset, toy_model, tmp_path):
    assert extract(toy_dataset("a", "b"), toy_model, str(tmp_path / "store.zarr"), CONFIG).complete == 2


def test_progress_adds_up_to_the_missing_patches(toy_dataset, toy_model, tmp_path):
    patches = []
    extract(toy_dataset("a", "b", "c"), toy_model, tmp_path / "store.zarr", CONFIG, progress=patches.append)
    assert patches == [2, 2, 2]


def test_a_second_run_computes_and_writes_nothing(toy_dataset, toy_model, tmp_path):
    path = tmp_path / "store.zarr"
    extract(toy_dataset("a", "b"), toy_model, path, CONFIG)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert extract(toy_dataset("a", "b"), toy_model, path, CONFIG).computed == 0
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_timesteps_and_blocks_that_are_added_later_give_the_same_features(toy_dataset, toy_model, tmp_path):
    dataset, at_once, in_turn = toy_dataset("a", "b"), tmp_path / "one.zarr", tmp_path / "two.zarr"
    extract(dataset, toy_model, at_once, CONFIG)
    for t, blocks in (((50,), (4,)), ((50,), (0, 4)), ((10, 50), (0, 4, 9))):
        extract(dataset, toy_model, in_turn, ExtractConfig(layout="native", t=t, blocks=blocks))
    one, two = FeatureStore.open(at_once), FeatureStore.open(in_turn)
    for t in (10, 50):
        for block, maps in one.read(1, t=t).items():
            np.testing.assert_array_equal(two.read(1, t=t)[block], maps)


@pytest.fixture
def batches(toy_model, monkeypatch):
    """The number of patches of each forward pass of the model."""
    sizes, prepare = [], toy_model.prepare
    monkeypatch.setattr(toy_model, "prepare", lambda images: sizes.append(len(images)) or prepare(images))
    return sizes


def test_a_store_goes_on_with_the_batch_size_that_it_was_begun_with(toy_dataset, toy_model, tmp_path, batches):
    begun, path = replace(CONFIG, batch_size=9), tmp_path / "store.zarr"  # what releases before this default took
    extract(toy_dataset("a"), toy_model, path, begun)
    result = extract(toy_dataset("a", "b"), toy_model, path, CONFIG)
    assert (result.computed, result.store.contents.key.batch_size) == (1, 9)
    assert batches == [2, 2]  # both patches of an image at a time


def test_a_new_store_of_a_model_with_latents_gets_one_patch_at_a_time_on_a_cpu(
    toy_dataset, toy_model, tmp_path, batches
):
    result = extract(toy_dataset("a"), toy_model, tmp_path / "store.zarr", CONFIG)
    assert batches == [1, 1]
    assert result.store.contents.key.batch_size == 1


def test_of_two_runs_that_begin_a_store_the_first_decides_on_the_batch_size(
    toy_dataset, toy_model, tmp_path, monkeypatch, batches
):
    path, free_bytes = tmp_path / "store.zarr", LocalFolder.free_bytes

    def begin_elsewhere(location):  # after this run has found no store
        monkeypatch.setattr(LocalFolder, "free_bytes", free_bytes)
        open_extraction(toy_dataset("a"), toy_model, path, replace(CONFIG, batch_size=9))
        return free_bytes(location)

    monkeypatch.setattr(LocalFolder, "free_bytes", begin_elsewhere)
    assert extract(toy_dataset("a"), toy_model, path, CONFIG).store.contents.key.batch_size == 9
    assert batches == [2]


def test_images_that_cannot_be_read_are_set_aside_in_the_order_of_the_store(toy_dataset, toy_model, tmp_path):
    dataset = toy_dataset("a", "unreadable_2", "b", "unreadable_1")
    result = extract(dataset, toy_model, tmp_path / "store.zarr", CONFIG)
    assert [failure.id for failure in result.failures] == ["unreadable_2", "unreadable_1"]
    assert "unreadable_2.png" in result.failures[0].reason
    assert result.complete == 2
    assert result.store.unfinished(t=50, blocks=(4,)) == (1, 3)


def test_what_a_repair_drops_before_the_first_unit_is_computed_again(toy_dataset, toy_model, tmp_path):
    dataset, path = toy_dataset("a", "b"), tmp_path / "store.zarr"
    extract(dataset, toy_model, path, CONFIG)
    whole = tree(path)
    extraction = open_extraction(dataset, toy_model, path, CONFIG)
    (path / "t50/block04/c/1/0/0/0/0").write_bytes(b"x")
    assert verify(path, repair=True)
    assert run_extraction(extraction).computed == 1
    assert tree(path) == whole


def test_a_run_that_starts_beside_a_repair_waits_and_makes_what_it_dropped(
    toy_dataset, toy_model, tmp_path, monkeypatch
):
    dataset, path, drop = toy_dataset("a", "b"), tmp_path / "store.zarr", Verification._repair
    extract(dataset, toy_model, path, CONFIG)
    whole = tree(path)
    (path / "t50/block04/c/1/0/0/0/0").write_bytes(b"x")
    with ThreadPoolExecutor(1) as pool:
        started = []

        def drop_later(verification):
            started.append(pool.submit(extract, dataset, toy_model, path, CONFIG))
            time.sleep(0.5)
            assert not started[0].done()
            drop(verification)

        monkeypatch.setattr(Verification, "_repair", drop_later)
        assert verify(path, repair=True)
        assert started[0].result().computed == 1
    assert tree(path) == whole


def test_units_that_another_run_completes_meanwhile_are_skipped(toy_dataset, toy_model, tmp_path):
    dataset, path, patches = toy_dataset("a", "b", "c", "d", "e", "f"), tmp_path / "store.zarr", []
    first = open_extraction(dataset, toy_model, path, CONFIG)

    def run_other(done):
        if not patches:
            extract(dataset, toy_model, path, CONFIG)
        patches.append(done)

    result = run_extraction(first, progress=run_other)
    assert result.computed < 6
    assert patches == [2] * 6
    assert FeatureStore.open(path).unfinished(t=10, blocks=(0, 4, 9)) == ()


def test_an_image_that_has_changed_since_is_refused(toy_dataset, toy_model, tmp_path):
    dataset, path = toy_dataset("a", "b"), tmp_path / "store.zarr"
    extract(dataset, toy_model, path, ExtractConfig(layout="native"))
    load = dataset.load

    def changed(sample):
        pixels = load(sample)
        pixels.image[0, 0] ^= 1
        return pixels

    object.__setattr__(dataset, "load", changed)
    with pytest.raises(StoreError, match=r"a is not the same in the data set as in .*store.zarr.*--store"):
        extract(dataset, toy_model, path, CONFIG)


@pytest.fixture
def drawn(tmp_path):
    """Four images with masks in the layout of `folder`, and a function that opens them."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for name in ("east", "north", "south", "west"):
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(tmp_path / f"data/images/{name}.png")
        Image.fromarray(rng.integers(0, 2, (256, 256), np.uint8)).save(tmp_path / f"data/masks/{name}.png")
    return partial(open_dataset, "folder", DatasetOptions(root=tmp_path / "data"))


def test_an_image_that_changes_after_its_store_is_finished_is_named(drawn, toy_model, tmp_path):
    config, path = ExtractConfig(layout="native", blocks=(0,)), tmp_path / "data/images/west.png"
    extract(drawn(), toy_model, tmp_path / "store.zarr", config)
    times = path.stat()
    Image.fromarray(np.asarray(Image.open(path))[::-1].copy()).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` and rsync keep them
    with pytest.raises(StoreError, match=r"west .*store\.zarr \(images differ\).*--store"):
        extract(drawn(), toy_model, tmp_path / "store.zarr", config)


def test_a_mask_that_changes_in_a_folder_is_written_again_and_a_new_code_moves_the_others(drawn, toy_model, tmp_path):
    store, config, path = tmp_path / "store.zarr", ExtractConfig(layout="native", blocks=(0,)), tmp_path / "data/masks"
    extract(drawn(), toy_model, store, config)
    features = {name: data for name, data in tree(store).items() if name.startswith(("t50", "images"))}
    mask = np.asarray(Image.open(path / "east.png"))
    Image.fromarray(mask * 2).save(path / "east.png")  # codes 0 and 2, beside 0 and 1 of the others
    Image.fromarray(np.asarray(Image.open(path / "west.png")) * 2).save(path / "west.png")
    result = extract(drawn(), toy_model, store, config)
    assert result.store.classes == ("code 0", "code 1", "code 2")
    assert np.array_equal(result.store.mask(0), mask * 2)
    Image.fromarray(np.asarray(Image.open(path / "north.png")) * 2).save(path / "north.png")
    Image.fromarray(np.asarray(Image.open(path / "south.png")) * 2).save(path / "south.png")
    result = extract(drawn(), toy_model, store, config)  # no mask has the code 1 any more
    assert result.store.classes == ("code 0", "code 2") and np.array_equal(result.store.mask(0), mask)
    assert {name: data for name, data in tree(store).items() if name in features} == features
    assert verify(store) == ()


def test_touched_files_are_no_change_and_read_once_more_only(drawn, toy_model, tmp_path):
    store, config = tmp_path / "store.zarr", ExtractConfig(layout="native", blocks=(0,))
    extract(drawn(), toy_model, store, config)
    digest = FeatureStore.open(store).digest()
    for path in tmp_path.glob("data/*/*"):
        path.touch()
    assert extract(drawn(), toy_model, store, config).computed == 0
    before = tree(store)
    dataset = drawn()
    object.__setattr__(dataset, "load", None)  # nothing is read again
    assert extract(dataset, toy_model, store, config).computed == 0
    assert tree(store) == before
    assert FeatureStore.open(store).digest() == digest


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    readme = Path(__file__).parents[2] / "extract" / "README.md"
    example = readme.read_text(encoding="utf-8").split("## From Python\n\n```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(readme), "exec"), {})
    assert "3 3 ()" in capsys.readouterr().out
