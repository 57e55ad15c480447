"""Sizes before a run, by hand: two patches an image; blocks 0 (8 x 8 x 8), 4 (4 x 16 x 16), 9 (2 x 64 x 64)."""

import dataclasses

import pytest

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.symmetries import with_symmetries
from pathseg.extract.pipeline import extract
from pathseg.extract.plan import contents_of, plan_extraction
from pathseg.store.errors import KeyMismatch, StoreError
from pathseg.store.location.local import LocalFolder

NATIVE = ExtractConfig(layout="native")
BLOCK_BYTES = {0: 2 * 8 * 8 * 8, 4: 2 * 4 * 16 * 16, 9: 2 * 2 * 64 * 64}  # of a patch in native float16
FEATURE_BYTES = 2 * sum(BLOCK_BYTES.values())  # of an image at one timestep
PIXEL_BYTES = 512 * 256 * (3 + 1)  # of an image and its mask


@pytest.fixture
def dataset(toy_dataset):
    return toy_dataset("a", "b", "c")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store.zarr"


@pytest.fixture
def free(monkeypatch):
    def set_free(size_bytes):
        monkeypatch.setattr(LocalFolder, "free_bytes", lambda self: size_bytes)

    return set_free


@pytest.mark.parametrize(("batch_size", "in_key"), [(1, 1), (2, 9), (9, 9), (20, 9)])
def test_batch_sizes_that_give_equal_bytes_have_one_key(dataset, toy_model, batch_size, in_key):
    config = ExtractConfig(layout="native", batch_size=batch_size)  # of images of two patches
    assert contents_of(dataset, toy_model, config).key.batch_size == in_key


@pytest.mark.parametrize(
    ("latents", "device_type", "precision", "in_key"),
    [
        (True, None, "float32", 1),
        (True, "cpu", "float32", 1),
        (True, "cpu", "bfloat16", 9),
        (True, "cuda", "float32", 9),
        (False, "cpu", "float32", 9),
        (False, "cuda", "float32", 9),
    ],
)
def test_a_new_store_takes_the_batch_size_that_is_fastest_on_its_device(
    dataset, toy_model, monkeypatch, latents, device_type, precision, in_key
):
    if not latents:
        monkeypatch.setattr(toy_model, "latent_shape", None)
    config = dataclasses.replace(NATIVE, precision=precision)
    assert contents_of(dataset, toy_model, config, device_type=device_type).key.batch_size == in_key


def test_a_store_of_another_batch_size_is_refused_with_both(dataset, toy_model, store):
    extract(dataset, toy_model, store, NATIVE)
    for run in (extract, plan_extraction):
        with pytest.raises(KeyMismatch, match=r"store\.zarr.*batch_size is 1 there, 9 asked for.*--store"):
            run(dataset, toy_model, store, ExtractConfig(layout="native", batch_size=2))


def test_the_sizes_of_a_new_store_are_those_of_all_images(dataset, toy_model, store):
    plan = plan_extraction(dataset, toy_model, store, ExtractConfig(t=(10, 50), layout="native"))
    assert plan.patch_bytes == BLOCK_BYTES
    assert plan.feature_bytes == 3 * 2 * FEATURE_BYTES
    assert plan.missing_bytes == 3 * (2 * FEATURE_BYTES + PIXEL_BYTES)
    assert (plan.images, plan.missing_images, plan.missing_patches) == (3, 3, 6)
    assert not store.exists()


def test_turned_images_count_in_the_sizes_and_are_named(dataset, toy_model, store):
    plan = plan_extraction(with_symmetries(dataset), toy_model, store, NATIVE)  # 1 test, 2 oblong ones to train on
    assert (plan.images, plan.views, plan.missing_patches) == (1 + 2 * 4, 6, 9 * 2)
    assert plan.missing_bytes == 9 * (FEATURE_BYTES + PIXEL_BYTES)
    assert "9 of toy (test 1, train 8)" in str(plan) and "6 of these images are views" in str(plan)
    assert "views" not in str(plan_extraction(dataset, toy_model, store, NATIVE))


@pytest.mark.parametrize(("layout", "cells"), [("grid", 64), ("image", 256)])
def test_the_sizes_follow_the_layout(dataset, toy_model, store, layout, cells):
    plan = plan_extraction(dataset, toy_model, store, ExtractConfig(layout=layout, dtype="float32"))
    assert plan.patch_bytes == {0: 4 * 8 * cells**2, 4: 4 * 4 * cells**2, 9: 4 * 2 * cells**2}


def test_the_sizes_follow_the_packing_and_say_that_they_are_estimates(dataset, toy_model, store):
    plain = plan_extraction(dataset, toy_model, store, NATIVE)
    rounded = plan_extraction(dataset, toy_model, store, ExtractConfig(layout="native", packing="rounded"))
    assert rounded.missing_bytes < plain.missing_bytes
    assert "about" in str(rounded) and "about" not in str(plain)


def test_the_sizes_of_bytes_are_exact_and_count_the_scales(dataset, toy_model, store):
    # 8, 4 and 2 channels: 3 images of 2 patches of a byte a value, and 4 bytes a channel of each image
    plan = plan_extraction(dataset, toy_model, store, ExtractConfig(layout="native", packing="int8"))
    assert plan.patch_bytes == {0: 8 * 8 * 8 + 16, 4: 4 * 16 * 16 + 8, 9: 2 * 64 * 64 + 4}
    assert plan.feature_bytes == 3 * (FEATURE_BYTES // 2 + 4 * (8 + 4 + 2))
    assert "each 9.8 kB in native int8" in str(plan) and "about" not in str(plan)
    extract(dataset, toy_model, store, ExtractConfig(layout="native", packing="int8"))
    chunks = [path for path in (store / "t50").rglob("*") if path.is_file() and path.name != "zarr.json"]
    assert sum(path.stat().st_size - 4 for path in chunks) == plan.feature_bytes  # each ends in its CRC-32C


@pytest.mark.parametrize(
    ("dtype", "packing", "images"),  # in 100 MiB, of 2 patches x 8 channels x 256 x 256 values; 64 at most
    [("float32", "none", 25), ("float16", "none", 50), ("float16", "rounded", 50), ("float16", "int8", 64)],
)
def test_a_shard_holds_as_many_images_as_their_stored_bytes_allow(toy_dataset, toy_model, dtype, packing, images):
    many = toy_dataset(*map(str, range(2001)))
    config = ExtractConfig(layout="image", dtype=dtype, packing=packing)
    assert contents_of(many, toy_model, config).images_per_unit == images


def test_the_table_names_images_model_blocks_and_free_space(dataset, toy_model, store, free):
    free(12_300_000)
    table = str(plan_extraction(dataset, toy_model, store, NATIVE))
    for words in ("3 of toy (test 1, train 2), 512x256 px", "UNTRAINED", "block 9 16.4 kB", "12.3 MB", str(store)):
        assert words in table
    assert "missing" not in table


def test_of_a_complete_store_nothing_is_missing(dataset, toy_model, store):
    extract(dataset, toy_model, store, NATIVE)
    plan = plan_extraction(dataset, toy_model, store, NATIVE)
    assert (plan.missing_bytes, plan.missing_images) == (0, 0)
    assert "0 B in 0 of 3 images" in str(plan)


@pytest.mark.parametrize(
    ("first", "second", "missing"),
    [
        ({"t": (10,)}, {"t": (10, 50)}, FEATURE_BYTES),  # neither the pixels nor t 10 again
        ({"blocks": (0, 4)}, {"blocks": (0, 4, 9)}, 2 * BLOCK_BYTES[9]),
        ({"t": (10,), "blocks": (4,)}, {"t": (10, 50), "blocks": (4, 9)}, 2 * BLOCK_BYTES[4] + 4 * BLOCK_BYTES[9]),
    ],
)
def test_of_a_store_that_grows_only_the_missing_bytes_count(dataset, toy_model, store, free, first, second, missing):
    extract(dataset, toy_model, store, ExtractConfig(layout="native", **first))
    config = ExtractConfig(layout="native", **second)
    assert plan_extraction(dataset, toy_model, store, config).missing_bytes == 3 * missing
    free(3 * missing)
    assert extract(dataset, toy_model, store, config).complete == 3


def test_an_image_that_was_set_aside_is_what_is_missing(toy_dataset, toy_model, store):
    dataset = toy_dataset("a", "unreadable", "c")
    extract(dataset, toy_model, store, NATIVE)
    plan = plan_extraction(dataset, toy_model, store, NATIVE)
    assert (plan.missing_images, plan.missing_bytes) == (1, FEATURE_BYTES + PIXEL_BYTES)


def test_a_new_store_that_does_not_fit_names_the_layouts_that_would(dataset, toy_model, store, free):
    free(3 * (FEATURE_BYTES + PIXEL_BYTES))
    with pytest.raises(StoreError, match=r"layout image, but .* are free; --layout native would fit"):
        extract(dataset, toy_model, store, ExtractConfig(layout="image"))
    assert not store.exists()


def test_a_new_store_that_fits_in_no_layout_names_fewer_blocks_or_timesteps(dataset, toy_model, store, free):
    free(3 * PIXEL_BYTES)
    with pytest.raises(StoreError, match="fewer --blocks or --t"):
        extract(dataset, toy_model, store, NATIVE)


def test_a_store_that_cannot_grow_names_what_can_be_done_with_its_layout(dataset, toy_model, store, free):
    grid = ExtractConfig(layout="grid")
    extract(dataset, toy_model, store, grid)
    before = sorted(store.rglob("*"))
    free(3 * FEATURE_BYTES)  # enough for another timestep in native layout, which the store does not have
    with pytest.raises(StoreError, match=r"fewer --blocks or --t, free space, or pass another --store") as caught:
        extract(dataset, toy_model, store, ExtractConfig(layout="grid", t=(50, 10)))
    assert "--layout" not in str(caught.value)
    assert sorted(store.rglob("*")) == before


def test_a_store_of_other_features_is_refused_before_a_run(dataset, toy_model, store):
    extract(dataset, toy_model, store, NATIVE)
    with pytest.raises(KeyMismatch, match="seed is 0"):
        plan_extraction(dataset, toy_model, store, ExtractConfig(layout="native", seed=1))


@pytest.mark.parametrize(
    ("config", "words"), [({"blocks": (3,)}, "has blocks 0,4,9, not 3"), ({"t": (1000,)}, "t 1000 is not within 0-999")]
)
def test_blocks_and_timesteps_that_the_model_lacks_are_named(dataset, toy_model, store, config, words):
    with pytest.raises(ValueError, match=words):
        plan_extraction(dataset, toy_model, store, ExtractConfig(**config))


def test_another_timestep_of_a_model_without_noise_is_refused_naming_the_stored_one(dataset, toy_model, store):
    extract(dataset, toy_model, store, NATIVE)
    toy_model.timesteps = None
    assert plan_extraction(dataset, toy_model, store, NATIVE).missing_bytes == 0
    for run in (extract, plan_extraction):
        with pytest.raises(ValueError, match=r"toy has no noise.* t 60 .*store\.zarr has at t 50; pass --t 50"):
            run(dataset, toy_model, store, ExtractConfig(layout="native", t=(60,)))


def test_layout_image_is_refused_for_maps_whose_values_heads_cannot_recover(dataset, toy_model, store):
    toy_model.blocks = {0: (8, 8), 4: (4, 18), 9: (2, 64)}
    with pytest.raises(ValueError, match=r"block 4 of model toy has maps of 18x18 .*divide 64.*--layout native"):
        plan_extraction(dataset, toy_model, store, ExtractConfig(layout="image"))
    assert plan_extraction(dataset, toy_model, store, ExtractConfig(layout="image", blocks=(0, 9))).missing_images == 3
    assert plan_extraction(dataset, toy_model, store, NATIVE).missing_images == 3


def test_sources_that_the_data_set_names_later_are_followed(toy_dataset, toy_model, tmp_path):
    dataset, config = toy_dataset("a", "b", "c"), ExtractConfig(t=(50,), blocks=(0,))
    extract(dataset, toy_model, tmp_path / "s.zarr", config)
    samples = tuple(dataclasses.replace(sample, source="p1") for sample in dataset.samples)
    named = dataclasses.replace(dataset, samples=samples)
    assert "other sources" in str(plan_extraction(named, toy_model, tmp_path / "s.zarr", config))
    store = extract(named, toy_model, tmp_path / "s.zarr", config).store
    assert {image.source for image in store.contents.images} == {"p1"}
