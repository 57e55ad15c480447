"""Evaluation of heads on a split of the store: validation scores, and the records of a test split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pathseg.store.features import FeatureStore
from pathseg.train.data.reader import FeatureReader
from pathseg.train.heads.inference import predict
from pathseg.train.heads.pixel_ensemble import image_uncertainty
from pathseg.train.metrics.object import ObjectRule, ObjectSums
from pathseg.train.metrics.object_predictions import image_sums, image_sums_by_rule, object_split_scores, scored_class
from pathseg.train.metrics.object_tuning import CANDIDATES, choose_rule
from pathseg.train.metrics.pixel import Scores, confusion_matrix, constant_prediction
from pathseg.train.runs.record import Constant, ImageObjects, ImageScores, ObjectTuning, SplitScores
from pathseg.train.training.checkpoint import TrainingState


@dataclass(frozen=True)
class ImageResult:
    """The prediction of one head for one image, and how it compares with the ground truth.

    labels: (H, W) uint8. confusion: (K, K), rows = ground truth. uncertainty: (H, W) in nats, None for a single head.
    """

    state: TrainingState
    index: int
    loss: float
    labels: np.ndarray
    confusion: np.ndarray
    uncertainty: torch.Tensor | None


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


@torch.no_grad()
def image_losses(
    scores: torch.Tensor, masks: torch.Tensor, *, weights: torch.Tensor | None, ignore: int | None
) -> list[float]:
    """Return the `pixel_loss` of each image alone, of scores (N, K, H, W) and masks (N, H, W)."""
    found = [pixel_loss(scores[i : i + 1], masks[i : i + 1], weights=weights, ignore=ignore) for i in range(len(masks))]
    return torch.stack(found).tolist()


@torch.no_grad()
def evaluate(states: Sequence[TrainingState], reader: FeatureReader, indices: Sequence[int]) -> Iterator[ImageResult]:
    """Predict these images with every head: for each image one result per head, in the order of `states`."""
    store = reader.store
    for state in states:
        state.head.eval()
    for batch in reader.batches(indices, 1):
        truth = batch.masks[0].cpu().numpy()  # (H, W)
        for state in states:
            layers, precision = state.settings.layers, state.settings.precision
            found = predict(
                state.head, batch.features, store.contents.grid,
                layers=layers, precision=precision, ignore=store.ignore,
            )  # fmt: skip
            labels = found.labels[0].cpu().numpy()  # (H, W)
            # before the loss, as it names a code without a class
            matrix = confusion_matrix(truth, labels, classes=len(store.classes), ignore=store.ignore)  # (K, K)
            loss = pixel_loss(found.scores, batch.masks, weights=state.class_weights, ignore=store.ignore)
            uncertainty = None if found.uncertainty is None else found.uncertainty[0]
            yield ImageResult(state, batch.indices[0], float(loss), labels, matrix, uncertainty)


def validate(
    states: Sequence[TrainingState], reader: FeatureReader, indices: Sequence[int]
) -> list[tuple[float, Scores]]:
    """Return for each head its mean loss, NaN without images, and its scores over all pixels of these images."""
    losses: list[list[float]] = [[] for _ in states]
    matrices = [np.zeros((len(reader.store.classes),) * 2, np.int64) for _ in states]
    for number, result in enumerate(evaluate(states, reader, indices)):
        losses[number % len(states)].append(result.loss)
        matrices[number % len(states)] += result.confusion
    return [
        (float(np.mean(own)) if own else math.nan, Scores.of(matrix, reader.store.ignore))
        for own, matrix in zip(losses, matrices, strict=True)
    ]


def tune_objects(
    states: Sequence[TrainingState], reader: FeatureReader, indices: Sequence[int]
) -> list[ObjectTuning | None]:
    """Choose for each head the post-processing of its objects on validation images; None where none is chosen.

    None where the store has no object scores, where the images hold no true object, and for heads whose settings give
    the least size of objects.
    """
    store = reader.store
    tuned = [state for state in states if not state.settings.min_object_px and scored_class(store) is not None]
    images: list[list[dict[ObjectRule, ObjectSums]]] = [[] for _ in tuned]
    for number, result in enumerate(evaluate(tuned, reader, indices) if tuned else ()):
        sums = image_sums_by_rule(store, result.index, result.labels, result.state.settings, CANDIDATES)
        images[number % len(tuned)].append(sums)
    chosen = {state.run.name: choose_rule(own) for state, own in zip(tuned, images, strict=True)}
    return [chosen.get(state.run.name) for state in states]


def score_split(
    states: Sequence[TrainingState],
    reader: FeatureReader,
    indices: Sequence[int],
    *,
    constant: int,
    rules: Sequence[ObjectRule | None],
) -> list[SplitScores]:
    """Predict a test split with each head, write the predictions to the run folders and return the scores.

    Objects are scored where the store has instances of a single class. constant: code of the class that the constant
    prediction gives everywhere. rules: of each head the post-processing that its objects are scored with too, None for
    none; written predictions are never post-processed.
    """
    images: list[list[ImageScores]] = [[] for _ in states]
    for number, result in enumerate(evaluate(states, reader, indices)):
        head = number % len(states)
        images[head].append(_record_image(reader.store, result, rules[head]))
    return [
        _record_split(reader.store, state, own, constant, rule)
        for state, own, rule in zip(states, images, rules, strict=True)
    ]


def _record_image(store: FeatureStore, result: ImageResult, rule: ObjectRule | None) -> ImageScores:
    """Write the prediction (and the uncertainty) of a test image to the run folder; return its scores."""
    run, entry = result.state.run, store.contents.images[result.index]
    height, width = store.contents.content_px(result.index)
    run.write_prediction(entry.id, result.labels)
    if result.uncertainty is not None:
        most = math.log(max(2, len(store.classes)))  # nats, when the members of an ensemble disagree entirely
        run.write_uncertainty(entry.id, (result.uncertainty / most).cpu().numpy())
    objects = tuned_objects = None
    if scored_class(store) is not None:
        settings = result.state.settings
        objects = ImageObjects.of(image_sums(store, result.index, result.labels, settings))
        if rule is not None:
            tuned_objects = ImageObjects.of(image_sums(store, result.index, result.labels, settings, rule))
    return ImageScores(
        id=entry.id,
        scores=Scores.of(result.confusion, store.ignore),
        confusion=_rows(result.confusion),
        source=entry.source,
        objects=objects,
        uncertainty=None if result.uncertainty is None else image_uncertainty(result.uncertainty[:height, :width]),
        tuned_objects=tuned_objects,
        loss=result.loss if math.isfinite(result.loss) else None,
    )


def _record_split(
    store: FeatureStore, state: TrainingState, images: Sequence[ImageScores], constant: int, rule: ObjectRule | None
) -> SplitScores:
    """Pool the scores of a test split's images."""
    matrix = np.sum([image.confusion for image in images], axis=0)  # (K, K)
    sums = [image.objects.sums for image in images if image.objects is not None]
    tuned = [image.tuned_objects.sums for image in images if image.tuned_objects is not None]
    return SplitScores(
        images=len(images),
        scores=Scores.of(matrix, store.ignore),
        confusion=_rows(matrix),
        constant=Constant(store.classes[constant], Scores.of(constant_prediction(matrix, constant), store.ignore)),
        per_image=tuple(images),
        objects=object_split_scores(sums, state.settings) if sums else None,
        tuned_objects=object_split_scores(tuned, state.settings, rule) if tuned else None,
    )


def _rows(matrix: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())
