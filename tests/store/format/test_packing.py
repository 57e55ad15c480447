"""Packings against what is said of them, computed by hand or with numcodecs; what is read back is in test_int8."""

import numpy as np
import pytest
import torch
from numcodecs.bitround import BitRound

from pathseg.store.format.packing import PACKINGS
from pathseg.store.format.rounding import as_stored

INT8 = PACKINGS["int8"]


def normal(dtype="float32", shape=(2, 5, 3, 3)):
    spread = np.geomspace(1e-3, 1e3, shape[1])[:, None, None]
    return (np.random.default_rng(0).normal(0.2, 1, shape) * spread).astype(dtype)


def decoded(stored, dtype=np.float32):
    return INT8.decode(stored, np.empty(stored[0].shape, dtype))


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
