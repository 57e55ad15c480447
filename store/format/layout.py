"""Bringing feature maps to a stored layout (eq. 4 of the paper), patch by patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pathseg.store.format.size import CELLS


def resample(maps: torch.Tensor, cells: int) -> torch.Tensor:
    """(N, C, h, w) -> (N, C, cells, cells), bilinear with half-cell centres, no antialias; same tensor if already so.

    The same as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`. Patches never see each other.
    """
    if maps.shape[-2:] == (cells, cells):
        return maps
    return F.interpolate(maps, size=(cells, cells), mode="bilinear", align_corners=False)


def to_layout(maps: torch.Tensor, layout: str) -> torch.Tensor:
    """(N, C, h, w) of one block -> the maps that `layout` stores, in the same dtype."""
    return resample(maps, CELLS[layout]) if layout in CELLS else maps
