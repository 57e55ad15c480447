"""The choice of minimum object size and hole filling on validation images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

from pathseg.train.metrics.object import ObjectRule, ObjectSums
from pathseg.train.runs.record import ObjectTuning

MIN_PX = (0, 100, 200, 500, 1000, 2000, 5000)  # of the original image
CANDIDATES = tuple(ObjectRule(least, filled) for least, filled in product(MIN_PX, (False, True)))
AS_PREDICTED = CANDIDATES[0]


def choose_rule(images: Iterable[Mapping[ObjectRule, ObjectSums]]) -> ObjectTuning | None:
    """Choose the rule with the highest mean of pooled object F1 and pooled object Dice over validation images.

    images: of each image its sums under every one of `CANDIDATES`. Of equals the smallest size is chosen, then holes
    that are kept. None without images or without any true object in them, where dropping everything would be best.
    """
    images = list(images)
    totals = {rule: ObjectSums.total(sums[rule] for sums in images) for rule in CANDIDATES}
    if not totals[AS_PREDICTED].true_px:
        return None
    scores = {rule: total.scores() for rule, total in totals.items()}
    best = max(CANDIDATES, key=lambda rule: scores[rule].f1 + scores[rule].dice)  # the first of equals
    return ObjectTuning(
        rule=best,
        images=len(images),
        f1=scores[best].f1,
        dice=scores[best].dice,
        f1_as_predicted=scores[AS_PREDICTED].f1,
        dice_as_predicted=scores[AS_PREDICTED].dice,
    )
