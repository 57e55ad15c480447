"""Resampling of feature maps to a stored layout (eq. 4 of the paper), patch by patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pathseg.store.format.size import CELLS


def resample(maps: torch.Tensor, cells: int) -> torch.Tensor:
    """Resample maps (N, C, h, w) to (N, C, cells, cells); the same tensor if they have that size.

    Bilinear with half-cell centres and no antialias: `torch.nn.functional.interpolate(mode="bilinear",
    align_corners=False)`. Each patch is resampled by itself.
    """
    if maps.shape[-2:] == (cells, cells):
        return maps
    return F.interpolate(maps, size=(cells, cells), mode="bilinear", align_corners=False)


def to_layout(maps: torch.Tensor, layout: str) -> torch.Tensor:
    """Resample maps (N, C, h, w) of one block to those that `layout` stores, in the same dtype."""
    return resample(maps, CELLS[layout]) if layout in CELLS else maps
