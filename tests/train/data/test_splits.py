import hashlib

import pytest

from pathseg.store.contents import ImageEntry
from pathseg.store.describe import describe
from pathseg.store.errors import Incomplete
from pathseg.store.features import FeatureStore
from pathseg.store.writer import StoreWriter
from pathseg.train.data.splits import draw_views, first_views, incomplete_images, shared_sources, split_images


@pytest.fixture
def splits_of(tmp_path, toy_contents):
    def make(splits, **settings):
        store = StoreWriter(tmp_path / "a.zarr", toy_contents(splits=splits)).store
        return split_images(store, **({"val_fraction": 0.25, "seed": 0} | settings))

    return make


def test_validation_is_held_out_of_training(splits_of):
    found = splits_of(("train",) * 8 + ("testA", "testB", "testB"))
    assert len(found.val) == 2
    assert sorted(found.train + found.val) == list(range(8))
    assert found.tests == {"testA": (8,), "testB": (9, 10)}


def test_the_seed_chooses_the_validation_images(tmp_path, toy_contents):
    store = StoreWriter(tmp_path / "a.zarr", toy_contents(splits=("train",) * 40 + ("test",))).store
    chosen = [split_images(store, val_fraction=0.25, seed=seed).val for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_val_split_of_the_data_set_is_taken_as_it_is(splits_of):
    found = splits_of(("train", "train", "val", "test"))
    assert (found.train, found.val) == ((0, 1), (2,))


@pytest.mark.parametrize(
    ("splits", "words"),
    [(("val", "test"), "no training images"), (("test", "test"), "no training images")],
)
def test_splits_that_cannot_be_used_say_why(splits_of, splits, words):
    with pytest.raises(ValueError, match=words):
        splits_of(splits)


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
    found = split_images(store, val_fraction=0.3, seed=0, without=lacking)
    assert sorted(found.train + found.val) == [0, 1, 2]


@pytest.fixture
def patches(tmp_path, toy_contents):
    """Ten training regions of two patches with three views each, a test patch with its centre."""
    images = [
        ImageEntry(f"{region}{patch}v{view}", "train", 256, 512, f"r{region}", f"r{region}p{patch}", view)
        for region in range(10)
        for patch in range(2)
        for view in (1, 0, 2)
    ]
    images.append(ImageEntry("test", "test", 256, 512, "r10", "r10p0", 0))
    return StoreWriter(tmp_path / "a.zarr", toy_contents(images=tuple(images))).store


def regions(store, indices):
    return {store.contents.images[index].source for index in indices}


def test_no_region_is_on_both_sides_of_the_validation_split(patches):
    found = split_images(patches, val_fraction=0.3, seed=0)
    assert len(regions(patches, found.val)) == 3
    assert not regions(patches, found.train) & regions(patches, found.val)
    assert len(found.train) == 7 * 2 * 3


def test_validation_sees_the_centre_of_each_patch(patches):
    found = split_images(patches, val_fraction=0.3, seed=0)
    assert len(found.val) == 3 * 2
    assert {patches.contents.images[index].view for index in found.val} == {0}


def test_sources_of_a_test_split_with_training_or_validation_images_are_counted(tmp_path, toy_contents):
    named = [("train", "a"), ("train", None), ("val", "b"), ("testA", "a"), ("testA", "a"), ("testA", "b"),
             ("testA", "c"), ("testB", "c"), ("testB", None)]  # fmt: skip
    images = tuple(ImageEntry(str(n), split, 9, 9, source) for n, (split, source) in enumerate(named))
    store = StoreWriter(tmp_path / "a.zarr", toy_contents(images=images)).store
    assert shared_sources(store, split_images(store, val_fraction=0.5, seed=0)) == {"testA": 2}


def test_one_region_is_trained_on_without_validation(tmp_path, toy_contents):
    images = (*(ImageEntry(f"v{v}", "train", 9, 9, "r", "p", v) for v in (0, 1)), ImageEntry("t", "test", 9, 9))
    store = StoreWriter(tmp_path / "a.zarr", toy_contents(images=images)).store
    found = split_images(store, val_fraction=0.5, seed=0)
    assert (found.train, found.val, found.tests) == ((0, 1), (), {"test": (2,)})


def test_a_store_without_a_test_split_has_no_tests(splits_of):
    found = splits_of(("train",) * 4)
    assert found.tests == {} and len(found.train) + len(found.val) == 4 and found.val


def test_views_of_an_image_without_source_are_on_one_side(tmp_path, toy_contents):
    images = [ImageEntry(f"{n}v{v}", "train", 256, 512, None, str(n), v) for n in range(10) for v in range(4)]
    images.append(ImageEntry("test", "test", 256, 512))
    store = StoreWriter(tmp_path / "a.zarr", toy_contents(images=tuple(images))).store
    found = split_images(store, val_fraction=0.3, seed=0)
    groups = [{images[index].group for index in indices} for indices in (found.train, found.val)]
    assert [len(found.train), len(found.val)] == [7 * 4, 3] and not groups[0] & groups[1]
    assert {images[index].view for index in found.val} == {0}
    plain = [image for image in images if not image.view]  # the same images validate without views
    alone = StoreWriter(tmp_path / "b.zarr", toy_contents(images=tuple(plain))).store
    assert {plain[index].id for index in split_images(alone, val_fraction=0.3, seed=0).val} == {
        images[index].id for index in found.val
    }


def test_an_epoch_draws_one_view_of_each_patch(patches):
    drawn = draw_views(patches, range(60), seed=0, epoch=1)
    assert [patches.contents.images[index].group for index in drawn] == [f"r{r}p{p}" for r in range(10) for p in (0, 1)]


def test_a_draw_is_that_of_the_rule(patches):
    (drawn,) = draw_views(patches, (3, 4, 5), seed=7, epoch=2)
    digest = hashlib.sha256(b"7/r0p1/epoch 2").digest()
    assert patches.contents.images[drawn].view == int.from_bytes(digest[:8], "big") % 3


def test_a_draw_does_not_depend_on_the_order_or_on_other_patches(patches):
    among = set(draw_views(patches, range(60)[::-1], seed=0, epoch=5))
    alone = {
        index for start in range(0, 60, 3) for index in draw_views(patches, range(start, start + 3), seed=0, epoch=5)
    }
    assert among == alone


def test_epochs_and_seeds_draw_anew(patches):
    draws = {draw_views(patches, range(60), seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (1, 2, 3)}
    assert len(draws) == 6


def test_over_epochs_every_view_is_seen(patches):
    seen = {index for epoch in range(40) for index in draw_views(patches, range(60), seed=0, epoch=epoch)}
    assert seen == set(range(60))


def test_a_patch_that_lacks_its_centre_has_another_view(patches):
    assert first_views(patches, (2, 0)) == (0,)  # views 2 and 1 of the first patch


def test_images_that_are_no_views_are_all_taken(toy_store):
    assert first_views(toy_store, (3, 1)) == draw_views(toy_store, (3, 1), seed=0, epoch=1) == (3, 1)


def test_unlabelled_images_are_in_no_split_and_training_does_not_wait_for_their_features(
    toy_contents, tmp_path, fill_store
):
    contents = toy_contents(splits=("train", "train", "unlabelled", "test", "unlabelled"))
    store = fill_store(StoreWriter(tmp_path / "s.zarr", contents))
    assert store.labelled == (0, 1, 3) and store.listed == (0, 1, 2, 3, 4)
    named = split_images(store, val_fraction=0.5, seed=0).named()
    assert sorted(index for indices in named.values() for index in indices) == [0, 1, 3]
    assert "images  3 of toy (train 2, unlabelled 2, test 1)" in describe(store)
    for name in ("_done/pixels/000004.json", "_done/t50/0,4-5,9/000004.json"):
        store.location.remove(name)
    lacking = FeatureStore.open(store.location)
    assert lacking.unfinished(t=50, blocks=(4,)) == (4,)
    assert incomplete_images(lacking, t=50, blocks=(4,)) == incomplete_images(lacking, t=None, blocks=()) == ()
    with pytest.raises(Incomplete, match=r"lacks features of 1 of 3 images"):
        store.location.remove("_done/t50/0,4-5,9/000000.json")
        incomplete_images(FeatureStore.open(store.location), t=50, blocks=(4,), allowed=False)
