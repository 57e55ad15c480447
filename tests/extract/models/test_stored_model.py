"""The model of a store, known from its description: labels can be followed, nothing can be computed."""

import dataclasses

import numpy as np
import pytest

from pathseg.extract.models.stored_model import StoredModel
from pathseg.store.key import Surroundings
from pathseg.store.writer import StoreWriter

METHODS = {
    "embed": (np.zeros((1, 256, 256, 3), np.uint8),),
    "encode": (np.zeros((1, 256, 256, 3), np.uint8),),
    "prepare": (np.zeros((1, 256, 256, 3), np.uint8),),
    "denoise": (None, None, 50, (4,), None),
    "features": (np.zeros((1, 256, 256, 3), np.uint8),),
}


def test_it_has_the_names_and_shapes_of_the_model_that_made_the_store(toy_store):
    model, key = StoredModel(toy_store), toy_store.contents.key
    assert (model.name, model.digest, model.first_stage) == ("toy-model", "ab" * 32, "vq-f4")
    assert model.blocks == {0: (8, 8), 4: (6, 16), 5: (4, 32), 9: (3, 64)}
    assert (model.condition, model.vit, model.diffusers) == (key.condition, None, None)


@pytest.mark.parametrize("method", METHODS)
def test_it_computes_nothing(toy_store, method):
    with pytest.raises(ValueError, match="load it with load_model"):
        getattr(StoredModel(toy_store), method)(*METHODS[method])


def test_a_store_of_wider_fields_is_refused(toy_contents, tmp_path):
    key = dataclasses.replace(toy_contents().key, surroundings=Surroundings(2, "mirrored"))
    store = StoreWriter(tmp_path / "wide.zarr", toy_contents(key=key)).store
    with pytest.raises(ValueError, match="load the model"):
        StoredModel(store)
