"""Chains of runs that start from each other: what an ancestor has seen, no later run is tested on."""

import dataclasses
import json
import shutil

import pytest

from pathseg.store.contents import UNLISTED, ImageEntry
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.data.joined import JoinedStores
from pathseg.train.data.splits import run_splits
from pathseg.train.runs.folder import CHECKSUMS, CONFIG
from pathseg.train.training.initial_weights import initial_weights, require_initial_run
from pathseg.train.training.sweep import train

LINEAR = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=1)


@pytest.fixture
def store_of(tmp_path, toy_contents, fill_store):
    """Make a store of images, id -> (split, source)."""

    def make(name, images):
        entries = tuple(ImageEntry(id_, split, 256, 512, source=source) for id_, (split, source) in images.items())
        return fill_store(StoreWriter(tmp_path / f"{name}.zarr", toy_contents(images=entries)))

    return make


def start(run, **changes):
    return dataclasses.replace(LINEAR, initial_weights=initial_weights(run.folder.path), **changes)


def chain_of(store_of, tmp_path, *, unlisted, sources=("A", "B")):
    """Return run 1, which has seen a and b, and run 2, which goes on with b alone."""
    a, b = sources
    first = store_of("first", {"a": ("train", a), "b": ("train", b), "t": ("test", "T")})
    second = store_of("second", {**({"a": (UNLISTED, a)} if unlisted else {}), "b": ("train", b), "t": ("test", "T")})
    one = train(first, [LINEAR], tmp_path, name="one", device="cpu").runs[0]
    two = train(second, [start(one)], tmp_path, name="two", device="cpu").runs[0]
    return one, two


def accept(store, config):
    stores = JoinedStores.of(store)
    require_initial_run(stores, config, run_splits(store, config)[0])


def as_of_an_earlier_release(run):
    """Take what earlier releases did not record out of a run's config.json."""
    path = run.folder.path / CONFIG
    values = json.loads(path.read_text())
    values["data"].pop("image_sources", None)
    values["data"].pop("ancestors", None)
    path.write_text(json.dumps(values))
    (run.folder.path / CHECKSUMS).unlink()


@pytest.mark.parametrize("unlisted", [True, False])
def test_an_image_that_an_ancestor_has_seen_is_no_test_image_two_runs_later(store_of, tmp_path, unlisted):
    one, two = chain_of(store_of, tmp_path, unlisted=unlisted)
    back = store_of("back", {"a": ("test", "A"), "b": ("train", "B")})
    with pytest.raises(ValueError, match=r"two or a run that it started from .* on A, .*--from"):
        train(back, [start(two)], tmp_path, name="three", device="cpu")
    assert not (tmp_path / "heads" / "three").exists()
    shutil.rmtree(one.folder.path)  # what it has seen is recorded in the next
    with pytest.raises(ValueError, match="on A, "):
        accept(back, start(two))
    accept(store_of("other", {"b": ("train", "B"), "c": ("test", "C")}), start(two))


def test_another_image_of_a_patient_that_an_ancestor_has_seen_is_no_test_image(store_of, tmp_path):
    one, two = chain_of(store_of, tmp_path, unlisted=False)
    back = store_of("back", {"a2": ("test", "A"), "b": ("train", "B")})  # a itself is in no store any more
    for run in (one, two):
        with pytest.raises(ValueError, match="on A, "):
            accept(back, start(run))


def test_a_run_records_the_images_of_all_its_ancestors_and_their_patients(store_of, tmp_path):
    one, two = chain_of(store_of, tmp_path, unlisted=False)
    assert one.data.ancestors is None and two.data.image_sources == {"train": ("B",)}
    third = store_of("third", {"c": ("train", "C")})
    three = train(third, [start(two)], tmp_path, name="three", device="cpu").runs[0]
    seen = three.data.ancestors
    assert {*seen.train, *seen.val} == {"a", "b"} and {*seen.train_sources, *seen.val_sources} == {"A", "B"}
    assert len(seen.val) == 1  # of run 1, which held out one of two patients


def test_a_run_that_starts_afresh_on_images_without_sources_records_nothing_more(store_of, tmp_path):
    store = store_of("plain", {"a": ("train", None), "t": ("test", None)})
    run = train(store, [LINEAR], tmp_path, name="one", device="cpu").runs[0]
    written = json.loads((run.folder.path / CONFIG).read_text())["data"]
    assert not {"image_sources", "ancestors"} & written.keys()


@pytest.mark.parametrize("moved", [False, True])
def test_ancestors_of_runs_that_recorded_none_are_read_where_they_still_are(store_of, tmp_path, moved):
    one, two = chain_of(store_of, tmp_path, unlisted=True)
    for run in (one, two):
        as_of_an_earlier_release(run)
    if moved:
        (tmp_path / "heads").rename(tmp_path / "elsewhere")
    two_now = tmp_path / ("elsewhere" if moved else "heads") / "two"
    config = dataclasses.replace(LINEAR, initial_weights=initial_weights(two_now))
    back = store_of("back", {"a": ("test", "A"), "b": ("train", "B")})
    with pytest.raises(ValueError, match="on A, "):
        accept(back, config)
    (two_now.parent / "one" / "head.safetensors").write_bytes(b"of another run")
    accept(back, config)  # nothing is known


def test_a_learning_curve_may_start_from_a_run_on_another_data_set(store_of, tmp_path):
    other = store_of("other", {"x": ("train", None), "y": ("train", None), "t": ("test", None)})
    run = train(other, [LINEAR], tmp_path, name="other", device="cpu").runs[0]
    store = store_of("own", {f"i{n}": ("train", None) for n in range(4)} | {"s": ("test", None)})
    accept(store, start(run, train_images=1))


@pytest.mark.parametrize("through", [False, True])
def test_a_subset_does_not_start_from_a_run_that_has_seen_more_images(store_of, tmp_path, through):
    images = {f"i{n}": ("train", None) for n in range(4)} | {"t": ("test", None)}
    store = store_of("all", images)
    few = dataclasses.replace(LINEAR, train_images=1)
    run = train(store, [LINEAR], tmp_path, name="all", device="cpu").runs[0]
    if through:
        run = train(store_of("one", {"i0": ("train", None)}), [start(run)], tmp_path, name="mid", device="cpu").runs[0]
    with pytest.raises(ValueError, match=r"has seen i.*train_images 1 .*--train-images all, or leave --from out"):
        train(store, [start(run, train_images=1)], tmp_path, name="few", device="cpu")
    assert not (tmp_path / "heads" / "few").exists()
    accept(store, start(run))
    small = train(store, [few], tmp_path, name="small", device="cpu").runs[0]
    accept(store, start(small, train_images=1))  # the same image
    accept(store, start(small, train_images=2))  # subsets of a seed are nested
