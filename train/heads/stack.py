"""The features that every head reads, and their stack on the head's grid (eq. 4 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from pathseg.store.format.layout import resample
from pathseg.store.grid import HEAD_CELLS, PATCH_PX, PatchGrid
from pathseg.train.config import IMAGE

# Key of a map -> (N, P, C, h, w), patches row by row. Heads need keys that can be ordered, and stack maps in ascending
# order: numbers of blocks, or `train.config.Layer` where timesteps and stores matter too.
Features = Mapping[Any, torch.Tensor]
Value = TypeVar("Value")
Channels = Mapping[Any, int]  # the same keys -> C


def stored_layers(values: Mapping[Any, Value]) -> dict[Any, Value]:
    """Return the values of all layers but the image itself."""
    return {layer: value for layer, value in values.items() if layer != IMAGE}


def stack_blocks(features: Features, grid: PatchGrid) -> torch.Tensor:
    """Upsample every patch of every block, put patches side by side, concatenate the blocks in ascending order.

    {block: (N, P, C, h, w)} -> (N, sum C, 64 * rows, 64 * cols).
    """
    return torch.cat([stitch_upsampled(features[block], grid) for block in sorted(features)], dim=1)


def stitch_upsampled(maps: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """Upsample patches bilinearly, each by itself, and put them side by side.

    (N, P, C, h, w) -> (N, C, 64 * rows, 64 * cols).
    """
    fine = to_head_grid(maps.flatten(0, 1))  # (N P, C, 64, 64)
    return grid.stitch(fine.unflatten(0, maps.shape[:2]))


def to_head_grid(maps: torch.Tensor) -> torch.Tensor:
    """Resample maps (N, C, h, w) bilinearly to the head's grid, (N, C, 64, 64).

    Maps of pixel size are those of layout `image`: a native map of at most 64 cells, upsampled to 256. Their values on
    the head's grid are those of the native map upsampled to 64, not a second interpolation, which would blur it. Along
    an axis, cell k of the grid covers pixels 4k to 4k + 3 and its centre is the boundary of the middle two. The
    upsampled map is linear between the centres of native cells, which lie at such boundaries: at the centre of a grid
    cell (64 native cells) or between two grid cells (fewer). So pixels 4k, 4k + 1 lie on one line, which gives
    (3 p1 - p0) / 2 at the centre, and 4k + 2, 4k + 3 on another, which gives (3 p2 - p3) / 2; their mean is taken.
    """
    if maps.shape[-2:] != (PATCH_PX, PATCH_PX):
        return resample(maps, HEAD_CELLS)
    for axis in (-2, -1):
        p0, p1, p2, p3 = maps.unflatten(axis, (HEAD_CELLS, PATCH_PX // HEAD_CELLS)).unbind(axis)
        maps = 0.75 * (p1 + p2) - 0.25 * (p0 + p3)
    return maps


def require_fitting(features: Features, channels: Channels, grid: PatchGrid) -> None:
    """Raise ValueError unless the features are of a head's blocks and channels, and of the grid's patches."""
    given = {block: maps.shape[2] for block, maps in sorted(features.items())}
    if given != channels:
        raise ValueError(f"this head takes blocks and channels {channels}, got {given}")
    for block, maps in features.items():
        if maps.shape[1] != grid.patches:
            raise ValueError(
                f"block {block} has {maps.shape[1]} patches, but a {grid.rows}x{grid.cols} grid has {grid.patches}"
            )
