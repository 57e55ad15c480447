import pytest

from pathseg.store.errors import Incomplete
from pathseg.store.features import FeatureStore
from pathseg.store.writer import StoreWriter
from pathseg.train.parts import incomplete_images, split_images


@pytest.fixture
def parts_of(tmp_path, toy_contents):
    def make(splits, **settings):
        store = StoreWriter(tmp_path / "a.zarr", toy_contents(splits=splits)).store
        return split_images(store, **({"val_fraction": 0.25, "seed": 0} | settings))

    return make


def test_validation_is_held_out_of_training(parts_of):
    parts = parts_of(("train",) * 8 + ("testA", "testB", "testB"))
    assert len(parts.val) == 2
    assert sorted(parts.train + parts.val) == list(range(8))
    assert parts.tests == {"testA": (8,), "testB": (9, 10)}


def test_the_seed_chooses_the_validation_images(tmp_path, toy_contents):
    store = StoreWriter(tmp_path / "a.zarr", toy_contents(splits=("train",) * 40 + ("test",))).store
    chosen = [split_images(store, val_fraction=0.25, seed=seed).val for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_val_split_of_the_data_set_is_taken_as_it_is(parts_of):
    parts = parts_of(("train", "train", "val", "test"))
    assert (parts.train, parts.val) == ((0, 1), (2,))


@pytest.mark.parametrize(
    ("splits", "words"),
    [(("train", "train"), "no test split"), (("train", "test"), "at least 2"), (("val", "test"), "no training images")],
)
def test_splits_that_cannot_be_used_say_why(parts_of, splits, words):
    with pytest.raises(ValueError, match=words):
        parts_of(splits)


def test_a_timestep_that_was_not_extracted_names_those_that_were(toy_store):
    with pytest.raises(Incomplete, match=r"no features at t 10, only at t 50; run pathseg extract --t 10"):
        incomplete_images(toy_store, t=10, blocks=(4,))


def test_a_block_that_was_not_extracted_is_named(toy_store):
    with pytest.raises(Incomplete, match=r"not \[6\]"):
        incomplete_images(toy_store, t=50, blocks=(4, 6))


def test_missing_images_are_named(toy_store):
    (toy_store.location.root / "_done/t50/0,4-5,9/000003.json").unlink()
    with pytest.raises(Incomplete, match=r"lacks features of 1 of 5 images \(train_3\)"):
        incomplete_images(FeatureStore.open(toy_store.location.root), t=50, blocks=(4,))


def test_missing_images_can_be_done_without(toy_store):
    (toy_store.location.root / "_done/t50/0,4-5,9/000003.json").unlink()
    store = FeatureStore.open(toy_store.location.root)
    lacking = incomplete_images(store, t=50, blocks=(4,), allowed=True)
    assert lacking == (3,)
    parts = split_images(store, val_fraction=0.3, seed=0, without=lacking)
    assert sorted(parts.train + parts.val) == [0, 1, 2]
