"""The paper's fully convolutional head: plain layers, and a faster way to compute the same scores."""

from __future__ import annotations

import torch
from torch import nn

from pathseg.store.grid import PatchGrid
from pathseg.train.config import IMAGE
from pathseg.train.heads.fast_tail import fast_tail
from pathseg.train.heads.image_branch import ImageBranch
from pathseg.train.heads.native_conv import native_convolution
from pathseg.train.heads.stack import Channels, Features, require_fitting, stack_blocks, stored_layers

WIDTH = 256  # channels of the first layer


class FCNHead(nn.Module):
    """The FCN head of PathSegDiff (eq. 5; Table 1: 17,470,150 parameters for 7,296 channels and 6 classes).

    channels: {block: C}; with the layer IMAGE the last layer reads the image too. The paper gives the number of
    parameters but not the layers; over the usual layer shapes these are the only ones with that number. `plain_forward`
    applies them one after the other and defines the scores; `forward` computes the same scores faster.
    """

    def __init__(self, channels: Channels, classes: int) -> None:
        super().__init__()
        self.channels = dict(sorted(channels.items()))
        self.first = nn.Conv2d(sum(stored_layers(channels).values()), WIDTH, 3, padding=1)
        self.tail = head_tail(classes)
        self.image = ImageBranch(classes) if IMAGE in channels else None

    def plain_forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """Return class scores before the softmax: {block: (N, P, C, h, w)} in any layout -> (N, K, H, W)."""
        require_fitting(features, self.channels, PatchGrid(*patch_grid))
        x = stack_blocks(stored_layers(features), PatchGrid(*patch_grid))  # (N, sum C, H/4, W/4)
        x = self.first(x)  # (N, 256, H/4, W/4)
        x = self.tail(x)  # (N, K, H, W)
        return x if self.image is None else x + self.image(features[IMAGE], PatchGrid(*patch_grid))

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """Return the scores of `plain_forward` up to rounding, without the upsampled stack; features get no gradient.

        A training step on a CPU takes a fraction of the time of `plain_forward` (`benchmarks.train.heads`, step).
        """
        require_fitting(features, self.channels, PatchGrid(*patch_grid))
        assert self.first.bias is not None
        stored, grid = stored_layers(features), PatchGrid(*patch_grid)
        x = native_convolution(stored, self.first.weight, self.first.bias, grid)
        x = fast_tail(self.tail, x)
        return x if self.image is None else x + self.image(features[IMAGE], grid)


def head_tail(classes: int) -> nn.Sequential:
    """Build the layers after the first one, (N, 256, H/4, W/4) -> (N, K, H, W)."""
    return nn.Sequential(
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(WIDTH, 128, 4, stride=2, padding=1),
        nn.BatchNorm2d(128),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, classes, 3, padding=1),
    ).to(memory_format=torch.channels_last)  # the same numbers; faster on a CPU and on tensor cores
