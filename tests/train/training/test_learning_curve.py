"""Heads on nested subsets of the training images: which images, how many steps, and the runs beside each other."""

from itertools import pairwise

import pytest

from pathseg.store.contents import ImageEntry
from pathseg.store.features import FeatureStore
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.data.joined import JoinedStores
from pathseg.train.data.splits import training_subset
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.training.sweep import expand_heads, is_finished, run_folders, train


def trained_on(run: FinishedRun) -> tuple[str, ...]:
    return run.data.images["train"]


@pytest.fixture
def patients(tmp_path, toy_contents):
    """Six patients with one to three training images each, twelve in all, every image with two views."""
    images = [
        ImageEntry(f"{patient}{number}v{view}", "train", 256, 512, f"patient {patient}", f"{patient}{number}", view)
        for patient in range(6)
        for number in range(1 + patient % 3)
        for view in (0, 1)
    ]
    images += [ImageEntry("test", "test", 256, 512)]
    return StoreWriter(tmp_path / "patients.zarr", toy_contents(images=tuple(images))).store


def test_subsets_of_one_seed_are_nested_and_other_seeds_draw_others(patients):
    train = range(24)
    subsets = [training_subset(patients, train, count, seed=0) for count in range(1, 13)]
    assert all(set(small) < set(large) for small, large in pairwise(subsets))
    assert {training_subset(patients, train, 3, seed=seed) for seed in range(8)} > {subsets[2]}


@pytest.mark.parametrize("count", range(1, 13))
def test_a_subset_takes_whole_patients_but_for_the_last_and_all_views_of_its_images(patients, count):
    images = [patients.contents.images[index] for index in training_subset(patients, range(24), count, seed=3)]
    assert len(images) == 2 * count and len({image.group for image in images}) == count
    sizes = {f"patient {patient}": 1 + patient % 3 for patient in range(6)}
    taken = {name: len({image.group for image in images if image.source == name}) for name in sizes}
    assert sum(0 < taken[name] < sizes[name] for name in sizes) <= 1


def test_more_images_than_there_are_name_both_numbers(patients):
    with pytest.raises(ValueError, match=r"train_images 13: only 12"):
        training_subset(patients, range(24), 13, seed=0)


def test_a_learning_curve_trains_each_number_of_images_for_as_many_steps(toy_store, tmp_path):
    configs = expand_heads(
        toy_store, blocks=(4,), head_type="linear", epochs=2, seed=(0, 1), train_images=(1, 2, "all"), val_fraction=0.3
    )
    runs = train(toy_store, configs, tmp_path).runs
    assert [len(trained_on(run)) for run in runs] == [1, 1, 2, 2, 3, 3]
    assert {tuple(line.steps for line in run.history) for run in runs} == {(3, 3)}
    assert {run.data.images["val"] for run in runs} == {runs[0].data.images["val"]}
    for small, large, whole in zip(runs[:2], runs[2:4], runs[4:], strict=True):
        assert set(trained_on(small)) < set(trained_on(large)) < set(trained_on(whole))


def test_a_head_on_a_subset_is_the_same_alone_as_in_a_sweep(toy_store, tmp_path):
    settings = {"blocks": (4,), "head_type": "linear", "epochs": 2, "val_fraction": 0.3}
    train(toy_store, expand_heads(toy_store, seed=(0, 1), train_images=(1, "all"), **settings), tmp_path / "sweep")
    train(toy_store, [HeadConfig(seed=1, train_images=1, **settings)], tmp_path / "alone")
    (alone,) = (tmp_path / "alone/heads").iterdir()
    assert "trainimages1" in alone.name
    same = tmp_path / "sweep/heads" / alone.name
    assert (alone / "head.safetensors").read_bytes() == (same / "head.safetensors").read_bytes()


def test_a_finished_run_on_a_subset_is_not_trained_again(toy_store, tmp_path):
    config = HeadConfig(blocks=(4,), head_type="linear", epochs=1, train_images=2, val_fraction=0.3)
    train(toy_store, [config], tmp_path)
    ((_, run),) = run_folders(toy_store, [config], tmp_path / "heads")
    assert is_finished(JoinedStores.of(toy_store), config, run, without=lambda: ())


def test_too_many_images_are_refused_before_anything_is_trained(toy_store, tmp_path):
    configs = expand_heads(toy_store, blocks=(4,), head_type="linear", epochs=1, train_images=(1, 9))
    with pytest.raises(ValueError, match="train_images 9"):
        train(toy_store, configs, tmp_path)
    assert not list((tmp_path / "heads").glob("*/*"))


def test_a_run_on_a_subset_that_is_drawn_otherwise_by_now_is_no_finished_one(toy_store, tmp_path):
    config = HeadConfig(blocks=(4,), head_type="linear", epochs=1, train_images=1, val_fraction=0.3)
    (record,) = toy_store.location.root.glob("_done/t50/*/000003.json")
    content = record.read_bytes()
    record.unlink()
    train(FeatureStore.open(toy_store.location.root), [config], tmp_path, complete_only=True)
    record.write_bytes(content)
    whole = FeatureStore.open(toy_store.location.root)
    ((_, run),) = run_folders(whole, [config], tmp_path / "heads")
    with pytest.raises(ValueError, match="finished run of other settings"):
        is_finished(JoinedStores.of(whole), config, run, without=lambda: ())
