"""Resampling of feature maps to a stored layout (eq. 4 of the paper), patch by patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pathseg.store.format.size import CELLS
from pathseg.store.grid import HEAD_CELLS

CHANNELS = 64  # a multiple of what a vector instruction takes, so that pieces have the bits of the whole


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
        return _resample_in_pieces(maps, cells, dtype)
    return resample(maps, cells).to(dtype)


def _resample_in_pieces(maps: torch.Tensor, cells: int, dtype: torch.dtype) -> torch.Tensor:
    """Resample maps on the CPU, a patch and CHANNELS at a time, which stay in a core's cache: (N, C, cells, cells).

    PyTorch computes outputs of up to 64 x 64 cells channels last, whatever the order of its input, and takes five times
    as long to bring them into that order.
    """
    stored = torch.empty((*maps.shape[:2], cells, cells), dtype=dtype)
    for patch, stored_patch in zip(maps.split(1), stored.split(1), strict=True):
        for piece, stored_piece in zip(patch.split(CHANNELS, 1), stored_patch.split(CHANNELS, 1), strict=True):
            stored_piece.copy_(resample(piece.contiguous(memory_format=torch.channels_last), cells))
    return stored
