"""Trained heads on a part of the store: one confusion matrix a head and image, each image read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from pathseg.train.data.reader import Batch, FeatureReader
from pathseg.train.heads.pixel_ensemble import Prediction
from pathseg.train.metrics.pixel import confusion
from pathseg.train.training.checkpoint import Trainee, predict

Matrices = dict[int, np.ndarray]  # image index -> (K, K), rows truth


def pixel_loss(
    scores: torch.Tensor, masks: torch.Tensor, *, weights: torch.Tensor | None, ignore: int | None
) -> torch.Tensor:
    """Pixel-wise cross-entropy, mean over the pixels that count: scores (N, K, H, W), masks (N, H, W) class codes.

    With weights (K,) the mean is weighted. 0, with a gradient of 0, where no pixel counts or all weigh nothing.
    """
    masks = masks.long()
    counted = masks if ignore is None else masks[masks != ignore]
    if counted.numel() == 0 or (weights is not None and not weights[counted].any()):
        return scores.sum() * 0.0
    return F.cross_entropy(scores.float(), masks, weight=weights, ignore_index=-100 if ignore is None else ignore)


@torch.inference_mode()
def evaluate(
    trainees: Sequence[Trainee],
    reader: FeatureReader,
    indices: Sequence[int],
    *,
    keep: Callable[[Trainee, int, np.ndarray], None] = lambda trainee, index, codes: None,
    keep_uncertainty: Callable[[Trainee, int, torch.Tensor], None] = lambda trainee, index, uncertainty: None,
) -> list[tuple[float, Matrices]]:
    """For each head its mean loss over the images and a confusion matrix an image.

    `keep` is called with each head, image index and predicted classes (H, W) uint8; `keep_uncertainty`, for a head
    that says how unsure it is, with (H, W) in nats.
    """
    losses: list[list[float]] = [[] for _ in trainees]
    matrices: list[Matrices] = [{} for _ in trainees]
    for batch in reader.batches(indices, 1):
        for number, trainee in enumerate(trainees):
            loss, predicted, matrix = _judge(trainee, batch, reader)
            losses[number].append(loss)
            matrices[number][batch.indices[0]] = matrix
            keep(trainee, batch.indices[0], predicted.labels[0].cpu().numpy())
            if predicted.uncertainty is not None:
                keep_uncertainty(trainee, batch.indices[0], predicted.uncertainty[0])
    return [(float(np.mean(own)), found) for own, found in zip(losses, matrices, strict=True)]


def _judge(trainee: Trainee, batch: Batch, reader: FeatureReader) -> tuple[float, Prediction, np.ndarray]:
    store = reader.store
    trainee.head.eval()
    predicted = predict(trainee, batch.features[trainee.config.t], store.contents.grid, ignore=store.ignore)
    loss = pixel_loss(predicted.scores, batch.masks, weights=trainee.weights, ignore=store.ignore)
    truth, codes = batch.masks[0].cpu().numpy(), predicted.labels[0].cpu().numpy()
    return float(loss), predicted, confusion(truth, codes, classes=len(store.classes), ignore=store.ignore)
