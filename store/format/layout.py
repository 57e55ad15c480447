"""Resampling of feature maps to a stored layout (eq. 4 of the paper), patch by patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pathseg.store.format.size import CELLS
from pathseg.store.grid import HEAD_CELLS


def resample(maps: torch.Tensor, cells: int) -> torch.Tensor:
    """Resample maps (N, C, h, w) to (N, C, cells, cells); the same tensor if they have that size.

    Bilinear with half-cell centres and no antialias: `torch.nn.functional.interpolate(mode="bilinear",
    align_corners=False)`. Each patch is resampled by itself.
    """
    if maps.shape[-2:] == (cells, cells):
        return maps
    return F.interpolate(maps, size=(cells, cells), mode="bilinear", align_corners=False)


def to_layout(maps: torch.Tensor, layout: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Resample maps (N, C, h, w) of one block to those that `layout` stores, then convert them to `dtype` if given.

    The values are those of `resample` to the bit.
    """
    dtype, cells = dtype or maps.dtype, CELLS.get(layout)
    if cells is None or maps.shape[-2:] == (cells, cells):
        return maps.to(dtype)
    if maps.device.type == "cpu" and cells <= HEAD_CELLS:
        # PyTorch computes outputs of this size channels last in any case; it is slow to bring them into the order of
        # its input (benchmarks/README.md, "Extraction"), which costs less in the smaller dtype
        maps = maps.contiguous(memory_format=torch.channels_last)
        return resample(maps, cells).to(dtype).contiguous()
    return resample(maps, cells).to(dtype)
