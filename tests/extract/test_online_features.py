import dataclasses

import numpy as np
import pytest
import torch

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.models.load import load_model
from pathseg.extract.online_features import online_features
from pathseg.extract.pipeline import extract
from pathseg.extract.plan import contents_of
from pathseg.train.heads.registry import HEADS


@pytest.fixture(scope="module")
def model():
    return load_model("mini")


@pytest.fixture(scope="module")
def config():
    return ExtractConfig(blocks=(0, 1), layout="native", batch_size=4)


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("synthetic", DatasetOptions(resize=512, limit=1))


@pytest.fixture
def small_model(toy_model):
    """A model of a few operations whose channels differ by a factor."""
    equal = toy_model.denoise

    def denoise(*arguments):
        return {b: maps * torch.arange(1.0, maps.shape[1] + 1)[:, None, None] for b, maps in equal(*arguments).items()}

    toy_model.denoise = denoise
    return toy_model


def test_features_are_those_of_the_store_to_the_bit(model, config, dataset, tmp_path):
    store = extract(dataset, model, tmp_path / "store.zarr", config).store
    features = online_features(model, store.contents.key, 50, (0, 1), batch_size=4)
    found = features(store.contents.grid.cut(store.image(0)), range(4), store.ids[0])
    for block, maps in store.read(0, blocks=(0, 1)).items():
        np.testing.assert_array_equal(found[block], maps)


@pytest.mark.parametrize("layout", ["native", "image"])
@pytest.mark.parametrize("packing", ["int8", "rounded"])
def test_features_are_rounded_as_those_of_the_store_each_image_by_itself(small_model, tmp_path, packing, layout):
    dataset = open_dataset("synthetic", DatasetOptions(resize=256, limit=2))
    config = ExtractConfig(blocks=(0, 4), layout=layout, batch_size=1, dtype="float32", packing=packing)
    store = extract(dataset, small_model, tmp_path / "store.zarr", config).store
    features = online_features(small_model, store.contents.key, 50, (0, 4), batch_size=1)
    patches = np.concatenate([store.contents.grid.cut(store.image(index)) for index in (0, 1)])
    one, both = features(patches[:1], [0], store.ids[0]), features(patches, [0, 0], store.ids[0])
    for block, maps in store.read(0, blocks=(0, 4)).items():
        np.testing.assert_array_equal(one[block], maps)
        np.testing.assert_array_equal(both[block][:1], maps)


@pytest.mark.usefixtures("two_networks")
@pytest.mark.parametrize("layout", ["native", "grid", "image"])
def test_a_head_gets_the_same_from_the_store_and_online_in_every_layout(small_model, layout, tmp_path):
    blocks = (0, 4, 9)
    dataset = open_dataset("synthetic", DatasetOptions(resize=256, limit=1))
    config = ExtractConfig(blocks=blocks, layout=layout, dtype="float32", batch_size=4)
    store = extract(dataset, small_model, tmp_path / "store.zarr", config).store
    online = online_features(small_model, store.contents.key, 50, blocks, batch_size=4)(
        store.contents.grid.cut(store.image(0)), range(store.contents.grid.patches), store.ids[0]
    )
    stored = {block: torch.from_numpy(maps)[None] for block, maps in store.read(0, blocks=blocks).items()}
    channels = {block: maps.shape[2] for block, maps in stored.items()}
    torch.manual_seed(0)
    for head in (kind(channels, 3).eval() for kind in HEADS.values()):
        with torch.no_grad():
            expected, found = (head(maps, (1, 1)) for maps in (stored, {b: m[None] for b, m in online.items()}))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_noise_goes_by_the_number_of_a_patch(model, config, dataset):
    key = contents_of(dataset, model, config).key
    features = online_features(model, key, 500, (0,), batch_size=4)
    patch = np.full((1, 256, 256, 3), 200, np.uint8)
    one, other, again = (features(patch, [number], "slide")[0] for number in (3, 4, 3))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_other_weights_than_those_of_the_training_are_refused_with_both_digests(model, config, dataset):
    key = dataclasses.replace(contents_of(dataset, model, config).key, model_digest="ab" * 32)
    with pytest.raises(ValueError, match=rf"{'ab' * 32}.*{model.digest}.*--model"):
        online_features(model, key, 50, (0,), batch_size=4)


def test_blocks_that_the_model_lacks_are_named(model, config, dataset):
    with pytest.raises(ValueError, match="has blocks 0-12, not 13"):
        online_features(model, contents_of(dataset, model, config).key, 50, (0, 13), batch_size=4)


@pytest.mark.parametrize(("dtype", "way_out"), [("float16", "--dtype float32"), ("float32", "weights")])
def test_features_that_the_stored_type_cannot_hold_are_named(toy_model, toy_dataset, monkeypatch, dtype, way_out):
    key = contents_of(toy_dataset("a", "b"), toy_model, ExtractConfig(layout="native", dtype=dtype)).key
    value = 1e6 if dtype == "float16" else float("inf")
    monkeypatch.setattr(toy_model, "denoise", lambda *_: {4: torch.full((1, 4, 16, 16), value)})
    features = online_features(toy_model, key, 50, (4,), batch_size=1)
    with pytest.raises(ValueError, match=f"block 4 of slide.*{dtype}.*{way_out}"):
        features(np.zeros((1, 256, 256, 3), np.uint8), [0], "slide")
