import hashlib

import numpy as np
import pytest
import torch

from pathseg.extract.models.weights import check_weights, weights_digest

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


SHAPES = {"a.weight": (2, 3), "a.bias": (2,)}
WEIGHTS = {name: torch.zeros(shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.bias": None}, r"file lacks tensor a\.bias; its tensors are a\.weight$"),
        ({"a.bias": None, "a.weight": None}, r"file lacks tensor a\.weight and 1 more; its tensors are none$"),
        ({"b": torch.zeros(1)}, r"file has the unexpected tensor b$"),
        ({"a.weight": torch.zeros(3, 2)}, r"file .* tensor a\.weight: \(3, 2\), not \(2, 3\)$"),
        ({"a.bias": torch.zeros(2, dtype=torch.int64)}, r"file has torch\.int64 in tensor a\.bias"),
        ({"a.bias": torch.zeros(2, dtype=torch.bool)}, r"file has torch\.bool in tensor a\.bias"),
        ({"a.bias": torch.zeros(2, dtype=torch.complex64)}, r"file has torch\.complex64 in tensor a\.bias"),
        ({"a.bias": torch.tensor([0, torch.nan])}, r"file has NaN or infinity in tensor a\.bias"),
        ({"a.weight": torch.full((2, 3), torch.inf).half()}, r"file has NaN or infinity in tensor a\.weight"),
    ],
)
def test_weights_that_are_not_those_of_the_network_are_refused_by_name(change, message):
    tensors = {name: tensor for name, tensor in (WEIGHTS | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        check_weights(tensors, SHAPES, "file")
