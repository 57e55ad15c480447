"""The features that every head reads, and their stack on the head's grid (eq. 4 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pathseg.store.format.layout import resample
from pathseg.store.grid import HEAD_CELLS, PatchGrid

Features = Mapping[int, torch.Tensor]  # block -> (N, P, C, h, w), patches row by row


def stack_blocks(features: Features, grid: PatchGrid) -> torch.Tensor:
    """Upsample every patch of every block, put patches side by side, concatenate the blocks in ascending order.

    {block: (N, P, C, h, w)} -> (N, sum C, 64 * rows, 64 * cols).
    """
    return torch.cat([stitch_upsampled(features[block], grid) for block in sorted(features)], dim=1)


def stitch_upsampled(maps: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """Upsample patches bilinearly, each by itself, and put them side by side.

    (N, P, C, h, w) -> (N, C, 64 * rows, 64 * cols).
    """
    fine = resample(maps.flatten(0, 1), HEAD_CELLS)  # (N P, C, 64, 64)
    return grid.stitch(fine.unflatten(0, maps.shape[:2]))


def require_fitting(features: Features, channels: Mapping[int, int], grid: PatchGrid) -> None:
    """Raise ValueError unless the features are of a head's blocks and channels, and of the grid's patches."""
    given = {block: maps.shape[2] for block, maps in sorted(features.items())}
    if given != channels:
        raise ValueError(f"this head takes blocks and channels {channels}, got {given}")
    for block, maps in features.items():
        if maps.shape[1] != grid.patches:
            raise ValueError(
                f"block {block} has {maps.shape[1]} patches, but a {grid.rows}x{grid.cols} grid has {grid.patches}"
            )
