"""The paper's fully convolutional head: plain layers, and a faster way to compute the same scores."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from pathseg.store.grid import PatchGrid
from pathseg.train.config import IMAGE
from pathseg.train.heads.image_branch import ImageBranch
from pathseg.train.heads.native_conv import compute_dtype, native_convolution
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


def fast_tail(tail: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Apply the head's tail, (N, 256, H/4, W/4) -> (N, K, H, W), with a faster backward pass of its 4x4 layers.

    PyTorch's own backward pass takes up to a fifth of its time on a CPU to sum the gradient of their biases
    (`benchmarks.train.heads`, usual_tail).
    """
    for layer in tail:
        x = _transposed_convolution(x, layer) if isinstance(layer, nn.ConvTranspose2d) else layer(x)
    return x


def _transposed_convolution(x: torch.Tensor, layer: nn.ConvTranspose2d) -> torch.Tensor:
    assert layer.bias is not None
    dtype = compute_dtype(layer.weight)
    return _TransposedConvolution.apply(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


class _TransposedConvolution(torch.autograd.Function):
    """A 4x4 transposed convolution of stride 2 and padding 1, (N, C, h, w) -> (N, O, 2h, 2w)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wanted = [*ctx.needs_input_grad[:2], False]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, *ctx.saved_tensors, None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1, wanted
        )
        return of_x, of_weight, gradient.sum((0, 2, 3))
