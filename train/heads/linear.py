"""A linear probe on the stacked features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pathseg.store.grid import HEAD_CELLS, PATCH_PX, PatchGrid
from pathseg.train.heads.native_conv import native_pointwise
from pathseg.train.heads.stack import Channels, Features, require_fitting


class LinearHead(nn.Module):
    """A 1x1 convolution of the stacked blocks on the head's grid, its scores upsampled bilinearly to pixels."""

    def __init__(self, channels: Channels, classes: int) -> None:
        super().__init__()
        self.channels = dict(sorted(channels.items()))
        self.scores = nn.Conv2d(sum(channels.values()), classes, 1)

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """Return class scores before the softmax: {block: (N, P, C, h, w)} in any layout -> (N, K, H, W)."""
        grid = PatchGrid(*patch_grid)
        require_fitting(features, self.channels, grid)
        assert self.scores.bias is not None
        # as self.scores(stack_blocks(features, grid)), with the convolution at native resolution
        x = native_pointwise(features, self.scores.weight, self.scores.bias, grid)  # (N, K, H/4, W/4)
        return F.interpolate(x, scale_factor=PATCH_PX // HEAD_CELLS, mode="bilinear", align_corners=False)
