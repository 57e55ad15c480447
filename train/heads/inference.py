"""Apply a head to features: class scores, class codes and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pathseg.store.grid import PatchGrid
from pathseg.train.heads.pixel_ensemble import PixelEnsemble
from pathseg.train.heads.stack import Features


@dataclass(frozen=True)
class Prediction:
    """A head's prediction for N images.

    labels: class codes (N, H, W) uint8. scores: (N, K, H, W), whose softmax is the probabilities. Of a pixel ensemble
    also: uncertainty (N, H, W) in nats, and shares (N, K, H, W) of its members that predict each class.
    """

    labels: torch.Tensor
    scores: torch.Tensor
    uncertainty: torch.Tensor | None = None
    shares: torch.Tensor | None = None


def score(
    head: nn.Module, features: Features, grid: PatchGrid, *, layers: Sequence[Any], precision: str = "float32"
) -> torch.Tensor:
    """Return a head's class scores before the softmax, (N, K, H, W) float32, H = 256 * rows.

    features: {layer: (N, P, C, h, w)} with at least the head's own `layers`. precision: `float32`, or `bfloat16` for
    mixed precision (autocast). Gradients flow unless the caller turns them off.
    """
    own = {layer: features[layer] for layer in layers}
    device = own[layers[0]].device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        return head(own, (grid.rows, grid.cols)).float()


def predict(
    head: nn.Module,
    features: Features,
    grid: PatchGrid,
    *,
    layers: Sequence[Any],
    precision: str = "float32",
    ignore: int | None = None,
) -> Prediction:
    """Return class codes and scores of {layer: (N, P, C, h, w)}; the class `ignore` is never predicted.

    A pixel ensemble votes, and its prediction carries its uncertainty and the shares of its votes as well; it computes
    in float32 whatever the precision.
    """
    if isinstance(head, PixelEnsemble):
        own = {layer: features[layer] for layer in layers}
        return Prediction(*head.predict(own, (grid.rows, grid.cols), ignore=ignore))
    scores = score(head, features, grid, layers=layers, precision=precision)
    return Prediction(class_codes(scores, ignore), scores)


def class_codes(scores: torch.Tensor, ignore: int | None) -> torch.Tensor:
    """Return the class of the largest score, (N, K, H, W) -> (N, H, W) uint8, never the class `ignore`."""
    return _without(scores, ignore).max(dim=1).indices.to(torch.uint8)  # argmax takes ten times as long on a CPU


def class_probabilities(scores: torch.Tensor, ignore: int | None) -> torch.Tensor:
    """Return the softmax over the classes, (N, K, H, W) -> (N, K, H, W) float32, 0 for the class `ignore`."""
    return _without(scores.float(), ignore).softmax(dim=1)


def _without(scores: torch.Tensor, ignore: int | None) -> torch.Tensor:
    """Scores (N, K, H, W) with -inf for the class `ignore`, which may lie outside 0..K-1 (then nothing changes)."""
    if ignore is None or ignore >= scores.shape[1]:
        return scores
    scores = scores.clone()
    scores[:, ignore] = -torch.inf
    return scores
