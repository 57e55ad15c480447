"""The image itself in a head: a few channels at full resolution that the last layer reads beside those of its tail."""

from __future__ import annotations

import torch
from torch import nn

from pathseg.store.grid import PatchGrid

IMAGE_CHANNELS = 8


class ImageBranch(nn.Module):
    """The share of the image in a head's scores, which are added to those of the head's last layer.

    A 3x3 convolution of a concatenation is the sum of the convolutions of its parts. So to add these scores is to
    concatenate eight channels of the image before the last layer, and the layers of a head without the image stay.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, IMAGE_CHANNELS, 3, padding=1)
        self.scores = nn.Conv2d(IMAGE_CHANNELS, classes, 3, padding=1, bias=False)  # the head's last layer has one

    def forward(self, patches: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
        """Return what the image adds to the scores: RGB 0..255 (N, P, 3, 256, 256) -> (N, K, H, W)."""
        x = grid.stitch(patches).to(self.first.weight.dtype) / 127.5 - 1  # (N, 3, H, W), -1..1
        return self.scores(self.first(x).relu())
