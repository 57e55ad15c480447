"""Stores that an earlier release wrote (0.1.0, format 1) and every later one reads. They are never written anew."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from pathseg.store.features import FeatureStore
from pathseg.store.key import Preprocessing, StoreKey
from pathseg.store.verify import Verification

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ("store-v1", "store-v1-shards")  # the second: two images a unit, rounded and compressed
SIDES = {4: (5, 16), 9: (3, 64)}  # channels and side


@pytest.fixture(params=NAMES)
def path(request):
    return FIXTURES / request.param


def ramp(index, block):
    """What was stored: whole numbers below 64, which no packing changes."""
    channels, side = SIDES[block]
    c, y, x = np.ogrid[:channels, :side, :side]
    return ((31 * c + 7 * y + 3 * x + 11 * index) % 64)[None]  # (1, C, h, w)


@pytest.mark.parametrize("index", [0, 1])
def test_features_read_as_they_were_written(path, index):
    features = FeatureStore.open(path).read(index, t=50)
    assert list(features) == [4, 9]
    for block, maps in features.items():
        assert maps.dtype == np.float16
        assert np.array_equal(maps, ramp(index, block))


@pytest.mark.parametrize("index", [0, 1])
def test_a_timestep_that_joined_later_reads_as_it_was_written(path, index):
    store = FeatureStore.open(path)
    assert store.timesteps() == (50, 200)
    assert np.array_equal(store.read(index, t=200, blocks=(4,))[4], -ramp(index, 4))


@pytest.mark.parametrize("index", [0, 1])
def test_pixels_read_as_they_were_written(path, index):
    store, (y, x) = FeatureStore.open(path), np.ogrid[:256, :256]
    squares = x // 16 + 2 * (y // 16)
    assert np.array_equal(store.image(index), (squares[..., None] + 85 * np.arange(3) + index) % 256)
    assert np.array_equal(store.mask(index), x > y + index)
    expected = np.repeat(np.arange(5), 50) + index
    assert np.array_equal(store.instances(index), np.tile(expected, (200 + index, 1)))


def test_verify_finds_nothing(path):
    assert Verification(path).run() == []


def test_what_the_store_says_of_itself_is_understood(path):
    store = FeatureStore.open(path)
    contents, rounded = store.contents, path.name.endswith("shards")
    assert contents.key == StoreKey(
        dataset="fixture",
        preprocessing=Preprocessing(resized=True),
        size=(256, 256),
        mpp=0.5,
        model="ramp",
        model_digest="ab" * 32,
        first_stage="vq-f4",
        condition="ssl",
        seed=7,
        layout="native",
        dtype="float16",
        packing="rounded" if rounded else "none",
    )
    assert (store.ids, store.splits) == (("train_1", "testB_1"), ("train", "testB"))
    assert (contents.classes, contents.ignore, contents.test_split) == (("background", "gland"), None, "testB")
    assert contents.images_per_unit == (2 if rounded else 1)


def test_nothing_is_left_to_do(path):
    store = FeatureStore.open(path)
    assert store.unfinished(t=50, blocks=(4, 9)) == ()
    assert store.unfinished(t=200, blocks=(4,)) == ()


def test_plain_zarr_reads_it(path):
    group = zarr.open_group(str(path), mode="r")
    assert np.array_equal(group["t50/block09"][1], ramp(1, 9))
