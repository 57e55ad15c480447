"""A trained head on a part of the store: one confusion matrix an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pathseg.train.batches import FeatureReader
from pathseg.train.heads import classify
from pathseg.train.metrics import confusion


def pixel_loss(
    scores: torch.Tensor, masks: torch.Tensor, *, weights: torch.Tensor | None, ignore: int | None
) -> torch.Tensor:
    """Pixel-wise cross-entropy, mean over the pixels that count: scores (N, K, H, W), masks (N, H, W) int64."""
    return F.cross_entropy(scores, masks, weight=weights, ignore_index=-100 if ignore is None else ignore)


@torch.inference_mode()
def evaluate(
    head: nn.Module,
    reader: FeatureReader,
    indices: Sequence[int],
    *,
    device: torch.device,
    weights: torch.Tensor | None = None,
    keep: Callable[[int, np.ndarray], None] = lambda index, codes: None,
) -> tuple[float, dict[int, np.ndarray]]:
    """Mean loss over the images and, per image index, its confusion matrix (K, K), rows truth.

    `keep` is called with each image's index and predicted classes (H, W) uint8.
    """
    store, losses, matrices = reader.store, [], {}
    grid = (store.contents.grid.rows, store.contents.grid.cols)
    head.eval()
    for batch in reader.batches(indices, 1):
        masks = batch.masks.to(device)
        scores = head({b: maps.to(device).float() for b, maps in batch.features.items()}, grid)
        losses.append(float(pixel_loss(scores, masks, weights=weights, ignore=store.ignore)))
        predicted = classify(scores, store.ignore)[0].cpu().numpy()
        index = batch.indices[0]
        matrices[index] = confusion(batch.masks[0].numpy(), predicted, classes=len(store.classes), ignore=store.ignore)
        keep(index, predicted)
    return float(np.mean(losses)), matrices
