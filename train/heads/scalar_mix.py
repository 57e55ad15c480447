"""A head that learns how much each layer counts: a scalar mix, as ELMo has it (Peters et al. 2018), before the tail."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pathseg.store.grid import PatchGrid
from pathseg.train.config import IMAGE
from pathseg.train.heads.fast_tail import fast_tail
from pathseg.train.heads.fcn import WIDTH, head_tail
from pathseg.train.heads.image_branch import ImageBranch
from pathseg.train.heads.native_conv import compute_dtype
from pathseg.train.heads.stack import Channels, Features, require_fitting, stitch_upsampled, stored_layers

MIX_RATE = 30.0  # Adam moves every parameter by about the learning rate a step: too little for a softmax over layers


class ScalarMixHead(nn.Module):
    """Every layer is projected to 256 channels and normalised; their sum, weighted by a softmax, goes into fcn's tail.

    Projections are normalised, at the resolution they are stored in, to variance 1 and without a scale of their own,
    since a scale would take the place of the weight. The weights start equal and are learned `MIX_RATE` times as fast
    as the other parameters.
    """

    def __init__(self, channels: Channels, classes: int) -> None:
        super().__init__()
        self.channels = dict(sorted(channels.items()))
        stored = stored_layers(self.channels)
        self.projections = nn.ModuleList(nn.Conv2d(c, WIDTH, 1, bias=False) for c in stored.values())
        self.norms = nn.ModuleList(nn.BatchNorm2d(WIDTH, affine=False) for _ in stored)
        self.mix = nn.Parameter(torch.zeros(len(stored)))
        self.tail = head_tail(classes)
        self.image = ImageBranch(classes) if IMAGE in self.channels else None

    def weights(self) -> torch.Tensor:
        """Return the weights of the layers in ascending order, which add up to 1."""
        return (MIX_RATE * self.mix).softmax(0)

    def layer_weights(self) -> dict[Any, float]:
        """Return the weight of each layer."""
        return dict(zip(stored_layers(self.channels), self.weights().tolist(), strict=True))

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """Return class scores before the softmax: {layer: (N, P, C, h, w)} in any layout -> (N, K, H, W).

        Layers are projected at their own resolution, and the sum of those of one side is upsampled once.
        """
        grid = PatchGrid(*patch_grid)
        require_fitting(features, self.channels, grid)
        by_side: dict[int, torch.Tensor] = {}
        weights = self.weights()
        for number, (layer, projection) in enumerate(zip(stored_layers(self.channels), self.projections, strict=True)):
            assert isinstance(projection, nn.Conv2d)
            maps = features[layer]
            x = projection(maps.flatten(0, 1).to(compute_dtype(projection.weight)))  # (N P, 256, h, w)
            x = weights[number] * self.norms[number](x)
            x = x.unflatten(0, maps.shape[:2])  # (N, P, 256, h, w)
            by_side[x.shape[-1]] = by_side[x.shape[-1]] + x if x.shape[-1] in by_side else x
        fine = [stitch_upsampled(x, grid) for x in by_side.values()]
        x = fast_tail(self.tail, sum(fine[1:], fine[0]))
        return x if self.image is None else x + self.image(features[IMAGE], grid)
