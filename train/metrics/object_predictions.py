"""Object scores of predicted class codes: components at the images' original size against the store's instances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pathseg.store.classes import object_class
from pathseg.store.features import FeatureStore
from pathseg.train.config import Config
from pathseg.train.metrics.object import ObjectSums, components, mean_scores, object_sums
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


def image_sums(store: FeatureStore, index: int, predicted: np.ndarray, config: Config) -> ObjectSums:
    """Compute the object sums of one image from its predicted class codes, (H, W) uint8 at the working size.

    The codes are resized to the original size with nearest neighbour, so that no pixel gets a class that was not
    predicted; then the components of the scored class are numbered by the connectivity and minimum size of `config`.
    Raises ValueError where `scored_class` is None.
    """
    code = scored_class(store)
    if code is None:
        raise ValueError(f"{store.location} has no single class of objects beside background, or no instances of it")
    ground_truth = store.instances(index)  # (h0, w0)
    height, width = ground_truth.shape
    codes = np.asarray(Image.fromarray(predicted).resize((width, height), Image.Resampling.NEAREST))
    objects = components(codes == code, connectivity=int(config.connectivity), min_px=config.min_object_px)
    return object_sums(objects, ground_truth)


def object_rules(several: Sequence[ObjectSums], config: Config) -> ObjectSplitScores:
    """Return the object record of a test split for metrics.json from the sums of all its images, at least one.

    Pooled scores are the challenge's own definition; the mean is over each image's own scores.
    """
    total = ObjectSums.total(several)
    return ObjectSplitScores(
        connectivity=config.connectivity,
        min_object_px=config.min_object_px,
        resized=RESIZED,
        pooled=total.scores()._asdict(),
        mean=mean_scores(several)._asdict(),
        hausdorff_left_out=total.left_out,
    )
