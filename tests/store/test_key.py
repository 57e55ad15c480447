import dataclasses
import json

import pytest

from pathseg.store.errors import KeyMismatch, StoreError
from pathseg.store.key import StoreKey

OTHER = {
    "dataset": "glas",
    "preprocessing": "resized",
    "size": (512, 512),
    "mpp": None,
    "model": "other",
    "model_digest": "cd" * 32,
    "first_stage": "kl-f8",
    "condition": "none",
    "seed": 1,
    "layout": "grid",
    "dtype": "float32",
    "patch_px": 512,
    "noise": "other rule",
    "precision": "bfloat16",
    "packing": "rounded",
}


def test_every_field_is_in_this_test(toy_key):
    assert set(OTHER) == {field.name for field in dataclasses.fields(StoreKey)}


def test_a_key_comes_back_equal_through_json(toy_key):
    assert StoreKey.from_dict(json.loads(json.dumps(toy_key().to_dict()))) == toy_key()


@pytest.mark.parametrize("name", list(OTHER))
def test_a_differing_field_is_refused_with_both_values(toy_key, name):
    other = toy_key(**{name: OTHER[name]})
    here, there = toy_key().to_dict()[name], other.to_dict()[name]
    with pytest.raises(KeyMismatch) as caught:
        toy_key().require(other, store="a.zarr")
    assert f"{name} is {here!r} there, {there!r} asked for" in str(caught.value)
    assert toy_key().digest != other.digest


def test_an_unknown_field_is_refused(toy_key):
    with pytest.raises(StoreError, match="stain"):
        StoreKey.from_dict(toy_key().to_dict() | {"stain": "macenko"})


def test_a_field_that_an_older_release_did_not_know_takes_its_default(toy_key):
    values = toy_key().to_dict()
    del values["packing"]
    assert StoreKey.from_dict(values) == toy_key(packing="none")
