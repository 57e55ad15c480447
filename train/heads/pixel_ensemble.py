"""The pixel ensemble of DDPMSeg (Baranchuk et al. 2022): ten small networks that each see one pixel's features.

Its features are those of the other heads, brought bilinearly to pixels; here they are computed where they are needed
and never held for a whole image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pathseg.store.format.layout import resample
from pathseg.store.grid import PATCH_PX, PatchGrid
from pathseg.train.heads.native_conv import Features, require_fitting

MODELS = 10
MANY_CLASSES = 30  # from which DDPMSeg takes wider networks
TOP_SHARE = 0.1  # of an image's pixels, the most uncertain ones: their mean is the image's uncertainty


@dataclass(frozen=True)
class Prediction:
    """What a head answers for N images: classes, scores, and how far its members disagree (None for a single head).

    labels (N, H, W) uint8; scores (N, K, H, W), whose softmax gives probabilities; uncertainty (N, H, W) in nats;
    shares (N, K, H, W) of the members that name each class.
    """

    labels: torch.Tensor
    scores: torch.Tensor
    uncertainty: torch.Tensor | None = None
    shares: torch.Tensor | None = None


class PixelEnsemble(nn.Module):
    """Ten networks d -> 128 -> 32 -> K on the stacked features of a pixel, alike but for their random numbers.

    How far each has come with its stopping rule (`pool`) is part of the state, so that a run can be taken up again.
    """

    def __init__(self, channels: Mapping[int, int], classes: int) -> None:
        super().__init__()
        self.channels = dict(sorted(channels.items()))
        self.models = nn.ModuleList(_network(sum(channels.values()), classes) for _ in range(MODELS))
        self.register_buffer("best_loss", torch.full((MODELS,), torch.inf))
        self.register_buffer("stale_steps", torch.zeros(MODELS, dtype=torch.long))
        self.register_buffer("stopped", torch.zeros(MODELS, dtype=torch.bool))

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """{block: (N, P, C, h, w)} in any layout -> (N, K, 256*rows, 256*cols) log of the mean probability."""
        return self.predict(features, patch_grid).scores

    @torch.inference_mode()
    def predict(self, features: Features, patch_grid: tuple[int, int], *, ignore: int | None = None) -> Prediction:
        """Majority vote, mean probability and disagreement for {block: (N, P, C, h, w)} in any layout.

        One patch and one network at a time, so that no more than 128 channels are ever at the size of a patch in
        pixels. No network votes for the class `ignore`.
        """
        grid = PatchGrid(*patch_grid)
        require_fitting(features, self.channels, grid)
        images, patches = next(iter(features.values())).shape[:2]
        made = []
        for n in range(images):
            for p in range(patches):
                own = {block: maps[n, p].to(self.best_loss.dtype) for block, maps in features.items()}
                made.append(vote(torch.stack(list(self._patch_logits(own))), ignore))  # of (M, 256*256, K)
        square = (images, patches, -1, PATCH_PX, PATCH_PX)
        labels, scores, uncertainty, shares = (
            grid.stitch(torch.stack(parts).transpose(1, 2).reshape(square)) for parts in zip(*made, strict=True)
        )
        return Prediction(labels[:, 0], scores, uncertainty[:, 0], shares)

    def _patch_logits(self, maps: dict[int, torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each network (256*256, K): its first layer at native resolution, since that commutes with upsampling."""
        for model in self.models:
            sides: dict[int, torch.Tensor] = {}
            start = 0
            for block in sorted(maps):
                c, side = maps[block].shape[:2]
                part = F.conv2d(maps[block][None], model[0].weight[:, start : start + c, None, None])
                sides[side] = sides[side] + part if side in sides else part  # (1, 128, h, w)
                start += c
            hidden = sum(resample(part, PATCH_PX) for part in sides.values())
            yield model[1:](hidden[0].flatten(1).T + model[0].bias)


def _network(channels: int, classes: int) -> nn.Sequential:
    """DDPMSeg's `pixel_classifier`, weights from N(0, 0.02), biases 0."""
    first, second = (128, 32) if classes < MANY_CLASSES else (256, 128)
    network = nn.Sequential(
        nn.Linear(channels, first), nn.ReLU(), nn.BatchNorm1d(first),
        nn.Linear(first, second), nn.ReLU(), nn.BatchNorm1d(second),
        nn.Linear(second, classes),
    )  # fmt: skip
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            nn.init.zeros_(layer.bias)
    return network


def vote(logits: torch.Tensor, ignore: int | None = None) -> tuple[torch.Tensor, ...]:
    """(M, n, K) of M networks -> classes (n, 1) uint8, log mean probabilities, disagreement (n, 1) in nats, shares.

    The class that most networks name, the smallest of them in a tie; the Jensen-Shannon divergence H(mean p) - mean
    H(p). Probabilities and shares of the votes are (n, K). The class `ignore` gets no votes and no probability.
    """
    if ignore is not None and ignore < logits.shape[-1]:
        logits = logits.clone()
        logits[..., ignore] = -torch.inf
    each = logits.softmax(-1)
    mean = each.mean(0)
    votes = F.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)  # (n, K)
    divergence = torch.special.entr(mean).sum(-1) - torch.special.entr(each).sum(-1).mean(0)
    classes = votes.argmax(-1, keepdim=True).to(torch.uint8)
    return classes, mean.log(), divergence.clamp(min=0)[:, None], votes / len(logits)


def image_uncertainty(uncertainty: torch.Tensor) -> float:
    """The mean over the most uncertain tenth of an image's pixels, (H, W) -> nats."""
    count = max(1, math.floor(uncertainty.numel() * TOP_SHARE))
    return float(uncertainty.flatten().topk(count).values.mean())


def pixel_features(features: Features, pixels: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """The stacked features of chosen pixels, as if every block had been brought bilinearly to 256 px a patch.

    {block: (P, C, h, w)} of one image, pixels (n,) as row * width + column -> (n, sum C), blocks ascending, float32
    (float64 of float64 maps). Patches are upsampled separately.
    """
    rows, cols = pixels // grid.size[1], pixels % grid.size[1]
    patch = rows // PATCH_PX * grid.cols + cols // PATCH_PX
    parts = []
    for block in sorted(features):
        maps = features[block]
        _, c, h, w = maps.shape
        cells = maps.permute(0, 2, 3, 1).reshape(-1, c)  # (P h w, C)
        dtype = torch.promote_types(maps.dtype, torch.float32)
        part = torch.zeros(len(pixels), c, dtype=dtype, device=maps.device)
        for y, down in _neighbours(rows % PATCH_PX, h):
            for x, across in _neighbours(cols % PATCH_PX, w):
                values = cells.index_select(0, (patch * h + y) * w + x)
                part += values.to(dtype) * (down * across).to(dtype)[:, None]
        parts.append(part)
    return torch.cat(parts, dim=1)


def _neighbours(pixels: torch.Tensor, side: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """The two cells between whose centres a pixel's centre lies, along one axis of a patch, and their weights."""
    place = ((pixels + 0.5) * (side / PATCH_PX) - 0.5).clamp(min=0)  # exact: a side is a power of two
    low = place.floor()
    share = place - low
    return (low.long(), 1 - share), ((low + 1).clamp(max=side - 1).long(), share)
