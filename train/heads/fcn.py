"""The heads: from cached features of an image to per-pixel class scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from pathseg.store.grid import HEAD_CELLS, PATCH_PX, PatchGrid
from pathseg.train.heads.native_conv import (
    Features,
    compute_dtype,
    native_convolution,
    native_pointwise,
    require_fitting,
)
from pathseg.train.heads.pixel_ensemble import PixelEnsemble


class _Doubled(torch.autograd.Function):
    """A transposed 4x4 convolution of stride 2, with the bias' gradient as a sum.

    PyTorch's own backward pass takes up to a fifth of its time on a CPU for that sum.
    """

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(maps, weight)
        return F.conv_transpose2d(maps, weight, bias, stride=2, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wanted = [*ctx.needs_input_grad[:2], False]
        maps, weight, _ = torch.ops.aten.convolution_backward(
            gradient, *ctx.saved_tensors, None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1, wanted
        )
        return maps, weight, gradient.sum((0, 2, 3))


class Doubling(nn.ConvTranspose2d):
    """A transposed convolution, 4x4 with stride 2, that doubles the grid: (N, C, H, W) -> (N, O, 2H, 2W)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs, 4, stride=2, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # its size is never asked for
        """As `nn.ConvTranspose2d`."""
        dtype = compute_dtype(self.weight)
        return _Doubled.apply(maps.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


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
            Doubling(256, 128),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            Doubling(128, 64),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, classes, 3, padding=1),
        ).to(memory_format=torch.channels_last)  # faster on a CPU, and what tensor cores want

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """{block: (N, P, C, h, w)} in any layout -> (N, K, 256*rows, 256*cols) scores before the softmax."""
        require_fitting(features, self.channels, PatchGrid(*patch_grid))
        x = native_convolution(features, self.first.weight, self.first.bias, PatchGrid(*patch_grid))
        return self.tail(x)  # x is (N, 256, 64*rows, 64*cols)


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
