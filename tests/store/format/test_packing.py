"""Packings against what is said of them, computed by hand or with numcodecs; what is read back is in test_int8."""

import numpy as np
import pytest
import torch
from numcodecs.bitround import BitRound

from pathseg.store.format.packing import PACKINGS, unscaled
from pathseg.store.format.rounding import as_stored

INT8 = PACKINGS["int8"]


def normal(dtype="float32", shape=(2, 5, 3, 3)):
    spread = np.geomspace(1e-3, 1e3, shape[1])[:, None, None]
    return (np.random.default_rng(0).normal(0.2, 1, shape) * spread).astype(dtype)


def decoded(stored, dtype=np.float32):
    return unscaled(*stored, out=np.empty(stored[0].shape, dtype))


def test_numbers_and_scales_by_hand():
    # two patches of two channels of two cells: the largest magnitudes are 254 and 6.35, so scales are 2 and 0.05
    values = np.array([[[[254.0, -3.0]], [[1.0, -6.35]]], [[[0.9, 10.1]], [[0.12, 0.0]]]], np.float32)
    integers, scales = INT8.encode(values, "float32")
    assert scales.tolist() == pytest.approx([2, 0.05])
    assert integers.tolist() == [[[[127, -2]], [[20, -127]]], [[[0, 5]], [[2, 0]]]]
    expected = np.array([[[[254, -4]], [[1, -6.35]]], [[[0, 10]], [[0.1, 0]]]])
    np.testing.assert_allclose(decoded((integers, scales)), expected, rtol=1e-6)


def test_the_error_is_at_most_half_the_scale_of_each_channel():
    values = normal()
    integers, scales = INT8.encode(values, "float32")
    error = np.abs(decoded((integers, scales)).astype(float) - values).max(axis=(0, 2, 3))
    assert (error <= scales * 0.5 * (1 + 1e-4)).all() and (error > scales * 0.3).all()
    assert np.abs(integers).max(axis=(0, 2, 3)).tolist() == [127] * 5


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 3e-43, 3e38])
def test_a_channel_of_zeros_or_of_extreme_values_stays_finite(magnitude):
    values = normal()
    values[:, 2] = np.sign(values[:, 2]) * np.float32(magnitude)
    found = decoded(INT8.encode(values, "float32"))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 2], values[:, 2], rtol=1e-6, atol=2.0**-127)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_largest_values_of_a_dtype_stay_finite_as_bytes(dtype):
    values = normal(dtype)
    values[0, 3, 1, 1], values[1, 3, 0, 2] = np.finfo(dtype).max, -np.finfo(dtype).max
    found, largest = decoded(INT8.encode(values, dtype), dtype), float(np.finfo(dtype).max)
    error = np.abs(found[:, 3].astype(float) - values[:, 3].astype(float)).max()
    assert error <= largest * (1 / 254 + np.finfo(dtype).eps / 2)
    assert found[0, 3, 1, 1] == pytest.approx(largest, rel=1e-6)
    np.testing.assert_array_equal(as_stored(torch.from_numpy(values), INT8), decoded(INT8.encode(values, dtype)))


def test_values_that_rounding_would_make_infinite_become_the_largest_rounded_one():
    # in float16, 1.11111 (binary) * 2^15 = 64512 is the largest with 5 bits after the point; 65024 is half way to 2^16
    values = np.array([63000, 64512, 64992, 65024, 65504, -65024, -65504], np.float16).reshape(1, 7, 1, 1)
    (stored,) = PACKINGS["rounded"].encode(values, "float16")
    assert stored.ravel().tolist() == [63488, 64512, 64512, 64512, 64512, -64512, -64512]
    assert np.abs(stored.astype(float) / values.astype(float) - 1).max() < 1 / 64
    np.testing.assert_array_equal(as_stored(torch.from_numpy(values), PACKINGS["rounded"]), stored)
    largest = np.full((1, 1, 1, 2), np.finfo(np.float32).max) * np.array([1, -1], np.float32)
    (stored,) = PACKINGS["rounded"].encode(largest, "float32")
    assert stored.ravel().tolist() == [(2 - 2**-5) * 2.0**127, -(2 - 2**-5) * 2.0**127]
    np.testing.assert_array_equal(as_stored(torch.from_numpy(largest), PACKINGS["rounded"]), stored)


def test_every_finite_float16_is_rounded_as_numcodecs_rounds_it():
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)]
    (stored,) = PACKINGS["rounded"].encode(values.reshape(1, 1, 1, -1), "float16")
    rounded = BitRound(5).encode(np.clip(values, -64512, 64512))  # beyond these it would be infinite
    np.testing.assert_array_equal(stored.ravel().view(np.uint16), rounded.view(np.uint16))  # zeros keep their signs


@pytest.mark.parametrize("packing", ["int8", "rounded"])
@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan, 1e6])
def test_values_that_are_not_finite_in_the_dtype_are_refused(packing, wrong):
    values = normal()
    values[1, 4, 0, 2] = wrong
    with pytest.raises(OverflowError):
        PACKINGS[packing].encode(values, "float16")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_tensor_gets_the_values_that_a_store_gives_back(dtype):
    values = normal(dtype)
    np.testing.assert_array_equal(as_stored(torch.from_numpy(values), INT8), decoded(INT8.encode(values, dtype)))
    rounded = BitRound(5).encode(values.copy()).view(dtype).reshape(values.shape)
    np.testing.assert_array_equal(as_stored(torch.from_numpy(values), PACKINGS["rounded"]), rounded)
    assert as_stored(values, PACKINGS["none"]) is values
