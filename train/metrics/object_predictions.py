"""Object scores of predicted class codes: components at the images' original size against the store's instances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pathseg.store.classes import object_class
from pathseg.store.features import FeatureStore
from pathseg.train.config import Config
from pathseg.train.metrics.object import (
    ObjectRule,
    ObjectSums,
    components,
    mean_scores,
    object_sums,
    overlap_sums_by_size,
)
from pathseg.train.runs.record import ObjectSplitScores

RESIZED = "nearest"  # so that predictions/*.png give the same objects again


def scored_class(store: FeatureStore) -> int | None:
    """Return the code of the class whose components are the objects, None where the store has no object scores.

    A store has them when it holds instances and its classes are the background and one other (besides the ignored).
    """
    contents = store.contents
    if not contents.has_instances:
        return None
    return object_class(contents.classes, background=contents.background, ignore=contents.ignore)


def image_sums(
    store: FeatureStore, index: int, predicted: np.ndarray, config: Config, rule: ObjectRule | None = None
) -> ObjectSums:
    """Compute the object sums of one image from its predicted class codes, (H, W) uint8 at the working size.

    The codes are resized to the original size with nearest neighbour, so that no pixel gets a class that was not
    predicted; then the components of the scored class are numbered by the connectivity of `config`. rule: their
    post-processing, None for that of `config`. Raises ValueError where `scored_class` is None.
    """
    rule = rule or ObjectRule(config.min_object_px)
    mask, ground_truth = _original_size(store, index, predicted)
    connectivity = int(config.connectivity)
    objects = components(mask, connectivity=connectivity, min_px=rule.min_px, fill_holes=rule.fill_holes)
    return object_sums(ground_truth=ground_truth, predicted=objects)


def image_sums_by_rule(
    store: FeatureStore, index: int, predicted: np.ndarray, config: Config, rules: Sequence[ObjectRule]
) -> dict[ObjectRule, ObjectSums]:
    """Compute the sums of one image for object F1 and Dice (none for Hausdorff) under each rule; else as `image_sums`.

    The components are labelled once without and once with their holes filled, whatever the number of rules.
    """
    mask, ground_truth = _original_size(store, index, predicted)
    found: dict[ObjectRule, ObjectSums] = {}
    for filled in dict.fromkeys(rule.fill_holes for rule in rules):
        alike = [rule for rule in rules if rule.fill_holes == filled]
        objects = components(mask, connectivity=int(config.connectivity), fill_holes=filled)
        sums = overlap_sums_by_size(
            ground_truth=ground_truth, predicted=objects, min_px=[rule.min_px for rule in alike]
        )
        found |= dict(zip(alike, sums, strict=True))
    return found


def _original_size(store: FeatureStore, index: int, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask of the scored class, (h0, w0) bool, and the true instances, (h0, w0), at the original size."""
    code = scored_class(store)
    if code is None:
        raise ValueError(f"{store.location} has no single class of objects beside background, or no instances of it")
    ground_truth = store.instances(index)  # (h0, w0)
    height, width = ground_truth.shape
    filled = tuple(slice(side) for side in store.contents.content_px(index))  # without padding
    codes = np.asarray(Image.fromarray(predicted[filled]).resize((width, height), Image.Resampling.NEAREST))
    return codes == code, ground_truth


def object_split_scores(
    sums: Sequence[ObjectSums], config: Config, rule: ObjectRule | None = None
) -> ObjectSplitScores:
    """Return the object record of a test split for metrics.json from the sums of all its images, at least one.

    Pooled scores are the challenge's own definition; the mean is over each image's own scores. rule: the
    post-processing behind the sums, None for that of `config`.
    """
    rule = rule or ObjectRule(config.min_object_px)
    total = ObjectSums.total(sums)
    return ObjectSplitScores(
        connectivity=config.connectivity,
        min_object_px=rule.min_px,
        resized=RESIZED,
        pooled=total.scores()._asdict(),
        mean=mean_scores(sums)._asdict(),
        hausdorff_left_out=total.left_out,
        fill_holes=rule.fill_holes,
    )
