import hashlib

import numpy as np
import pytest
import torch

from pathseg.extract.models.digest import weights_digest

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2)}


def test_the_digest_by_hand():
    parts = [
        b'{"scale": 1.0}',
        b"\na (2,)\n",
        np.ones(2, "<f4").tobytes(),
        b"\nb (2, 3)\n",
        np.arange(6, dtype="<f4").tobytes(),
    ]
    assert weights_digest(TENSORS, {"scale": 1.0}) == hashlib.sha256(b"".join(parts)).hexdigest()


def test_order_precision_on_disk_and_strides_do_not_enter():
    other = {"a": torch.ones(2).half(), "b": torch.arange(6.0).reshape(2, 3).T.contiguous().T}
    assert weights_digest(other, {}) == weights_digest(TENSORS, {})


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.ones(2), "c": TENSORS["b"]},
        {"a": torch.ones(2), "b": TENSORS["b"].reshape(3, 2)},
        {"a": torch.tensor([1.0, 1.0001]), "b": TENSORS["b"]},
    ],
    ids=["name", "shape", "value"],
)
def test_names_shapes_and_values_enter(other):
    assert weights_digest(other, {}) != weights_digest(TENSORS, {})


def test_settings_enter():
    assert weights_digest(TENSORS, {"scale": 1.0}) != weights_digest(TENSORS, {"scale": 0.5})
