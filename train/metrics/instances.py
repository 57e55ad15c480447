"""Predictions as objects: cut into components at the images' original size and scored against the store's objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pathseg.store.features import FeatureStore
from pathseg.train.config import HeadConfig
from pathseg.train.metrics.object import ObjectSums, components, mean_scores, object_sums
from pathseg.train.report.figures import foreground

RESIZED = "nearest"  # so that predictions/*.png give the same objects again


def scored_class(store: FeatureStore) -> int | None:
    """The class whose components are objects: the one beside background. None where there is no such question.

    That is: the store has no instances, or its classes are not background and one other.
    """
    return foreground(store.classes, store.ignore) if store.contents.has_instances else None


def image_sums(store: FeatureStore, index: int, predicted: np.ndarray, config: HeadConfig) -> ObjectSums:
    """What an image adds to the object scores; predicted: its class codes (H, W) uint8 at the working size.

    The codes are brought to the original size with nearest neighbour, so no pixel gets a class that was not
    predicted; then the components of the scored class are numbered as the configuration says.
    """
    truth = store.instances(index)  # (h0, w0)
    height, width = truth.shape
    codes = np.asarray(Image.fromarray(predicted).resize((width, height), Image.Resampling.NEAREST))
    mask = codes == scored_class(store)
    found = components(mask, connectivity=int(config.connectivity), min_px=config.min_object_px)
    return object_sums(found, truth)


def add_objects(part: dict[str, Any], several: Sequence[ObjectSums], config: HeadConfig) -> None:
    """Add object scores to a test part of metrics.json, `several` in the order of its images.

    The part gets the rules, its scores pooled (as the challenge does) and as a mean over images; each image gets its
    own scores and the sums that scores of several images follow from.
    """
    total = ObjectSums.total(several)
    part["objects"] = {
        "connectivity": config.connectivity,
        "min_object_px": config.min_object_px,
        "resized": RESIZED,
        "pooled": total.scores()._asdict(),
        "mean": mean_scores(several)._asdict(),
        "hausdorff_left_out": total.left_out,
    }
    for image, sums in zip(part["per_image"], several, strict=True):
        image["objects"] = {**sums.scores()._asdict(), "sums": dataclasses.asdict(sums)}
