"""The heads: from cached features of an image to per-pixel class scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from pathseg.store.grid import HEAD_CELLS, PATCH_PX, PatchGrid
from pathseg.train.native import Features, native_convolution, native_pointwise, require_fitting
from pathseg.train.pixels import PixelEnsemble


class FCNHead(nn.Module):
    """The paper's fully convolutional head (Table 1: 17,470,150 parameters for 7,296 channels and six classes).

    A 3x3 convolution to 256 channels, two transposed convolutions that double the grid, a 3x3 convolution to the
    classes; batch normalisation and ReLU between them. The shapes were derived from the parameter count. The first
    layer is computed at native resolution (see `native`); its parameters are those of the plain convolution, so a
    head trained on one layout runs on the others.
    """

    def __init__(self, channels: Mapping[int, int], classes: int) -> None:
        super().__init__()
        self.channels = dict(sorted(channels.items()))
        self.first = nn.Conv2d(sum(channels.values()), 256, 3, padding=1)
        self.tail = nn.Sequential(
            nn.BatchNorm2d(256),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(256, 128, 4, stride=2, padding=1),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, classes, 3, padding=1),
        ).to(memory_format=torch.channels_last)  # faster on a CPU, and what tensor cores want

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """{block: (N, P, C, h, w)} in any layout -> (N, K, 256*rows, 256*cols) scores before the softmax."""
        require_fitting(features, self.channels, PatchGrid(*patch_grid))
        x = native_convolution(features, self.first.weight, self.first.bias, PatchGrid(*patch_grid))
        return self.tail(x.contiguous(memory_format=torch.channels_last))  # x is (N, 256, 64*rows, 64*cols)


class LinearHead(nn.Module):
    """A linear probe: one 1x1 convolution on the head's grid, scores brought bilinearly to pixels."""

    def __init__(self, channels: Mapping[int, int], classes: int) -> None:
        super().__init__()
        self.channels = dict(sorted(channels.items()))
        self.scores = nn.Conv2d(sum(channels.values()), classes, 1)

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """{block: (N, P, C, h, w)} in any layout -> (N, K, 256*rows, 256*cols) scores before the softmax."""
        require_fitting(features, self.channels, PatchGrid(*patch_grid))
        coarse = native_pointwise(features, self.scores.weight, self.scores.bias, PatchGrid(*patch_grid))
        scale = PATCH_PX // HEAD_CELLS
        return F.interpolate(coarse, scale_factor=scale, mode="bilinear", align_corners=False)


HEADS = {"fcn": FCNHead, "linear": LinearHead, "pixel-ensemble": PixelEnsemble}


def classify(scores: torch.Tensor, ignore: int | None) -> torch.Tensor:
    """(N, K, H, W) scores -> (N, H, W) uint8 class codes; a class that is ignored in training is never answered."""
    if ignore is not None and ignore < scores.shape[1]:
        scores = scores.clone()
        scores[:, ignore] = -torch.inf
    return scores.argmax(dim=1).to(torch.uint8)
