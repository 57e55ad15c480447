"""The values that a store gives back, computed on the device of a tensor: for features that are not stored."""

from __future__ import annotations

import torch

from pathseg.store.format.packing import LARGEST, Packing, for_cells

MANTISSA_BITS = {torch.float16: (10, torch.int16), torch.float32: (23, torch.int32)}  # and integers of the same width


def as_stored(values: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Return the values (P, C, h, w) of one image as they are after they were stored: to the bit as `Packing.encode`.

    values: finite, float16 or float32. Where the packing is scaled, float32 is returned, as heads are trained on; where
    it is exact, `values`.
    """
    if packing.exact:
        return values
    if packing.scaled:
        values = values.float()
        largest = values.abs().amax(dim=(0, 2, 3))  # (C,)
        # by a tensor, as a GPU multiplies by the reciprocal of a Python number, which is rounded otherwise
        scales = (largest / torch.full_like(largest, LARGEST)).clamp(min=torch.finfo(torch.float32).tiny)
        beyond = (scales * LARGEST).isinf()
        scales = torch.where(beyond, scales.nextafter(torch.zeros_like(scales)), scales)
        return (values / for_cells(scales)).round() * for_cells(scales)
    assert packing.keep_bits is not None
    limit = packing.largest_rounded(torch.finfo(values.dtype).max)
    mantissa, integer = MANTISSA_BITS[values.dtype]
    dropped = mantissa - packing.keep_bits
    bits = values.clamp(-limit, limit).contiguous().view(integer)
    bits = bits + ((bits >> dropped) & 1) + ((1 << (dropped - 1)) - 1)  # ties to even
    return (bits & -(1 << dropped)).view(values.dtype)
