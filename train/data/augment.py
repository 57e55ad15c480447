"""Flips and quarter turns of a whole feature map and its mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pathseg.store.grid import PatchGrid
from pathseg.train.heads.stack import Features


def apply_symmetry(values: torch.Tensor, number: int) -> torch.Tensor:
    """Apply a symmetry of the square to the last two axes: number % 4 quarter turns, then a flip from 4 on."""
    turned = torch.rot90(values, number % 4, (-2, -1))
    return turned.flip(-1) if number >= 4 else turned


def apply_symmetry_to_features(features: Features, grid: PatchGrid, number: int) -> dict[Any, torch.Tensor]:
    """Apply the same symmetry to the stitched image, patch by patch: {layer: (N, P, C, h, w)}."""
    order = apply_symmetry(torch.arange(grid.patches).reshape(grid.rows, grid.cols), number).flatten()
    return {layer: apply_symmetry(maps[:, order.to(maps.device)], number) for layer, maps in features.items()}


def symmetry(grid: PatchGrid, *, seed: int, epoch: int, step: int) -> int:
    """Draw the `number` of a training step's symmetry; an oblong grid takes only the four that keep its shape."""
    allowed = range(8) if grid.rows == grid.cols else (0, 2, 4, 6)
    return int(np.random.default_rng([seed, epoch, step]).choice(list(allowed)))
