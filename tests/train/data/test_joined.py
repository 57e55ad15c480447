"""Joined stores: what must be equal in them, their order, and what is read of them."""

import shutil

import numpy as np
import pytest
import torch

from pathseg.store.features import FeatureStore
from pathseg.store.writer import StoreWriter
from pathseg.train.config import IMAGE, Layer
from pathseg.train.data.joined import JoinedStores, join_stores, open_joined
from pathseg.train.data.reader import FeatureReader, image_bytes


@pytest.fixture
def joined(toy_store, other_model_store):
    return join_stores({"A": toy_store, "B": other_model_store})


def layer_of(stores, name, block, t=50):
    return Layer(stores.names.index(name), t, block)


def test_the_order_does_not_depend_on_the_one_given(toy_store, other_model_store, joined):
    again = join_stores({"B": other_model_store, "A": toy_store})
    assert (again.names, again.digest) == (joined.names, joined.digest)


def test_a_batch_holds_the_layers_of_every_store_as_stored(joined, toy_store, other_model_store):
    a, b = layer_of(joined, "A", 4), layer_of(joined, "B", 7)
    reader = FeatureReader(joined, [a, b, IMAGE], device=torch.device("cpu"))
    (batch,) = reader.batches([3, 0], 2)
    for layer, store in ((a, toy_store), (b, other_model_store)):
        maps = batch.features[layer].numpy()
        expected = np.stack([store.read(index, blocks=(layer.block,))[layer.block] for index in (3, 0)])
        assert maps.dtype == expected.dtype and np.array_equal(maps, expected)
    assert np.array_equal(batch.features[IMAGE][1, 1].permute(1, 2, 0).numpy(), toy_store.image(0)[:, 256:])


def test_the_bytes_of_an_image_are_those_of_all_its_layers(joined):
    # A's block 4: 2 patches of 6 x 16 x 16 values of 2 bytes; B's 7: 2 x 2 x 64 x 64 of 4 bytes; a mask of 256 x 512
    layers = [layer_of(joined, "A", 4), layer_of(joined, "B", 7)]
    assert image_bytes(joined, layers) == 2 * 6 * 16 * 16 * 2 + 2 * 2 * 64 * 64 * 4 + 256 * 512


def test_stores_are_opened_again_in_the_same_order(joined):
    again = joined.opener()()
    assert (again.names, again.digest) == (joined.names, joined.digest)


@pytest.mark.parametrize(
    ("changes", "seed", "words"),
    [
        ({"splits": ("train", "train", "train", "test")}, 0, r"number of images: 5 in A, 4 in B"),
        ({"splits": ("train", "train", "val", "train", "test")}, 0, r"image 2 .* id: train_2 in A, val_2 in B"),
        ({"classes": ("background", "tumor")}, 0, r"classes: background, gland in A, background, tumor in B"),
        ({"ignore": 7}, 0, r"ignored code: None in A, 7 in B"),
        ({}, 1, r"the (images|masks) of train_0 differ .*: CRC-32C \d+ in A, \d+ in B"),
    ],
)
def test_stores_of_other_images_are_refused_with_both_values(
    toy_store, tmp_path, toy_contents, fill_store, changes, seed, words
):
    other = fill_store(StoreWriter(tmp_path / "b.zarr", toy_contents(**changes)), seed=seed)
    with pytest.raises(ValueError, match=rf"{words}; join stores that were extracted from the same images$") as caught:
        join_stores({"A": toy_store, "B": other})
    assert "\n" not in str(caught.value)


def test_a_store_that_lacks_an_image_can_be_joined(toy_store, other_model_store):
    (other_model_store.location.root / "_done/pixels/000001.json").unlink()
    lacking = FeatureStore.open(other_model_store.location.root)
    assert len(join_stores({"A": toy_store, "B": lacking}).stores) == 2


def test_stores_are_named_after_their_folders_or_as_the_user_says(toy_store, other_model_store):
    paths = [str(store.location) for store in (toy_store, other_model_store)]
    assert sorted(open_joined(paths, open_store=FeatureStore.open).names) == ["other", "toy"]
    assert sorted(open_joined([f"x={paths[0]}", paths[1]], open_store=FeatureStore.open).names) == ["other", "x"]


def test_two_stores_of_one_name_are_refused_with_both_paths(toy_store):
    path = str(toy_store.location)
    with pytest.raises(ValueError, match=r"two stores are named toy: .*toy\.zarr and .*--store NAME=PATH"):
        open_joined([path, path], open_store=FeatureStore.open)


def test_an_existing_path_with_an_equals_sign_is_no_name(toy_store, tmp_path, monkeypatch):
    shutil.copytree(str(toy_store.location), tmp_path / "lr=1" / "x.zarr")
    monkeypatch.chdir(tmp_path)
    (store,) = open_joined(["lr=1/x.zarr"], open_store=FeatureStore.open).stores
    assert store.digest() == toy_store.digest()


def test_one_model_name_with_two_weights_is_refused_with_both_digests(toy_contents, toy_key, tmp_path):
    for name, digest in (("a", "ab" * 32), ("b", "cd" * 32)):
        StoreWriter(tmp_path / name, toy_contents(key=toy_key(model_digest=digest)))
    with pytest.raises(ValueError, match=r"a and b are both of a model .*abababab and cdcdcdcd.*different names"):
        open_joined([str(tmp_path / name) for name in "ab"], open_store=FeatureStore.open)


def test_a_single_store_is_joined_with_nothing(toy_store):
    stores = JoinedStores.of(toy_store)
    assert (stores.names, stores.digest) == (("toy",), toy_store.digest())


def test_a_value_of_an_unknown_store_or_of_none_is_refused(joined):
    assert joined.of_each((50,), flag="--t") == ((50,), (50,))
    by_name = dict(zip(joined.names, joined.of_each({"A": (1,), "B": (2,)}, flag="--t"), strict=True))
    assert by_name == {"A": (1,), "B": (2,)}
    with pytest.raises(ValueError, match=r"--blocks names the store C, but the stores are .*A.*; name one of these"):
        joined.of_each({"A": "all", "C": "last"}, flag="--blocks")
    with pytest.raises(ValueError, match="--blocks has no value for the store B, only for A; add B:"):
        joined.of_each({"A": "all"}, flag="--blocks")
