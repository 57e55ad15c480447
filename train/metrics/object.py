"""The object metrics of the GlaS challenge: object F1, Dice and Hausdorff distance of two label images.

Source: Sirinukunwattana et al., Gland segmentation in colon histology images: the GlaS challenge contest, 2017.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import scipy  # loads ndimage and spatial where they are used: a second that a report need not wait

STRUCTURES = {  # of scipy.ndimage, by connectivity
    4: np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool),
    8: np.ones((3, 3), bool),
}

OBJECT_DEFINITIONS: dict[str, str] = {
    "partner": (
        "of an object: the object of the other image (prediction or ground truth) that it shares most pixels with, "
        "ties to the smallest label; one object can be the partner of several"
    ),
    "object F1": (
        "2 TP / (2 TP + FP + FN): a predicted object is a true positive (TP) when it covers more than half of its "
        "partner's pixels, else a false positive (FP); FN is the number of true objects less TP"
    ),
    "object Dice": (
        "half the mean over predicted objects plus half the mean over true ones, weighted by area, of Dice with the "
        "partner, 0 without one"
    ),
    "object Hausdorff": (
        "the same mean of the largest distance (in px of the original image) from any pixel of one object to the "
        "other, both ways, with the partner or, without one, with the nearest object; lower is better"
    ),
    "size of the image": (
        "objects are compared at the original size of the image: the predicted classes are resized to it with "
        "nearest neighbour and their connected components are the objects"
    ),
}


class ObjectScores(NamedTuple):
    """Counts of true positives, false positives and false negatives; F1 and Dice in 0..1; Hausdorff distance in px.

    tp, fp, fn are means, not whole numbers, where this is the mean over images. hausdorff is None where it is not
    defined: objects in the prediction only, or in the ground truth only.
    """

    tp: float
    fp: float
    fn: float
    f1: float
    dice: float
    hausdorff: float | None


@dataclass(frozen=True)
class ObjectSums:
    """Sums over the objects of one or more images; they add up over images, and pooled scores follow from them.

    predicted_px, true_px: areas of all predicted and all true objects. `*_dice`: sum of area times Dice with the
    partner, `*_hausdorff`: sum of area times Hausdorff distance in px, `measured_*_px`: the areas in that sum.
    left_out: images with objects in the prediction only or in the ground truth only, which have no Hausdorff distance.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    predicted_px: int = 0
    true_px: int = 0
    predicted_dice: float = 0.0
    true_dice: float = 0.0
    measured_predicted_px: int = 0
    measured_true_px: int = 0
    predicted_hausdorff: float = 0.0
    true_hausdorff: float = 0.0
    images: int = 1
    left_out: int = 0

    @classmethod
    def total(cls, several: Iterable[ObjectSums]) -> ObjectSums:
        """Add up the sums of several images."""
        rows = [one.values() for one in several]
        return cls(*map(sum, zip(*rows, strict=True))) if rows else cls(images=0)

    def values(self) -> tuple[float, ...]:
        """Return the sums in the order of the fields, as `dataclasses.astuple` does, without its copies."""
        return tuple(self.__dict__.values())

    def scores(self) -> ObjectScores:
        """Return the pooled scores, counts and area weights over all objects of all images, as the challenge does."""
        count = 2 * self.tp + self.fp + self.fn
        empty = count == 0
        f1 = 1.0 if empty else 2 * self.tp / count
        dice = 1.0 if empty else _halves(self.predicted_dice, self.predicted_px, self.true_dice, self.true_px)
        hausdorff = _halves(
            self.predicted_hausdorff, self.measured_predicted_px, self.true_hausdorff, self.measured_true_px
        )
        return ObjectScores(self.tp, self.fp, self.fn, f1, dice, hausdorff if self.images > self.left_out else None)


@dataclass(frozen=True)
class ObjectRule:
    """Post-processing of a predicted mask before its objects are scored.

    min_px: objects under so many px of the original image are dropped; 0 keeps all. fill_holes: whether holes are
    filled before that.
    """

    min_px: int = 0
    fill_holes: bool = False

    def __str__(self) -> str:
        least = f"at least {self.min_px:,} px" if self.min_px else "any size"
        return f"{least}, holes filled" if self.fill_holes else least


def object_scores(predicted: np.ndarray, truth: np.ndarray) -> ObjectScores:
    """Compute the object scores of two label images (H, W) of integers; truth is the ground truth.

    Every value but 0 is one object, connected or not. An object's partner is the object of the other image with the
    largest intersection, ties to the smallest label. A predicted object is a true positive when it covers more than
    half of its partner. Dice and Hausdorff distance are means over the objects of each image, weighted by area, and
    then over the two images; an object without partner has Dice 0, and the Hausdorff distance to the nearest object
    of the other image. Two empty images have F1 and Dice 1 and distance 0; where only one is empty, F1 and Dice are 0
    and there is no Hausdorff distance (None). Raises ValueError on differing shapes and on arrays that are not label
    images.
    """
    return object_sums(ground_truth=truth, predicted=predicted).scores()


def object_sums(*, ground_truth: np.ndarray, predicted: np.ndarray) -> ObjectSums:
    """Compute the object sums of one image; label images and errors as in `object_scores`."""
    true, found = _both(ground_truth, predicted)
    shared = _intersections(found, true)  # (predicted objects, true objects) px
    sums = _overlap_sums(shared, found.areas, true.areas)
    if not found.objects or not true.objects:
        return sums
    # cached: the partner of a partner is mostly the object itself
    distance = cache(lambda i, j: _hausdorff(found.objects[i], true.objects[j]))
    return dataclasses.replace(
        sums, measured_predicted_px=sums.predicted_px, measured_true_px=sums.true_px,
        predicted_hausdorff=_weighted_hausdorff(found, true, shared, distance),
        true_hausdorff=_weighted_hausdorff(true, found, shared.T, lambda j, i: distance(i, j)),
    )  # fmt: skip


def overlap_sums_by_size(*, ground_truth: np.ndarray, predicted: np.ndarray, min_px: Sequence[int]) -> list[ObjectSums]:
    """Compute the sums that F1 and Dice need, for each minimum area of predicted objects in px; Hausdorff sums stay 0.

    Smaller predicted objects are dropped as `components` does. Label images and errors else as in `object_scores`.
    """
    true, found = _both(ground_truth, predicted)
    shared = _intersections(found, true)  # (predicted objects, true objects) px
    kept = [found.areas >= least for least in min_px]
    return [_overlap_sums(shared[one], found.areas[one], true.areas) for one in kept]


def mean_scores(several: Sequence[ObjectSums]) -> ObjectScores:
    """Return the mean of each image's own scores, the Hausdorff distance over the images where it is defined.

    Raises ValueError without any image.
    """
    if not several:
        raise ValueError("cannot take the mean over 0 images; pass the sums of at least one")
    scores = [one.scores() for one in several]
    distances = [one.hausdorff for one in scores if one.hausdorff is not None]
    return ObjectScores(
        tp=_mean([one.tp for one in scores]),
        fp=_mean([one.fp for one in scores]),
        fn=_mean([one.fn for one in scores]),
        f1=_mean([one.f1 for one in scores]),
        dice=_mean([one.dice for one in scores]),
        hausdorff=_mean(distances) if distances else None,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def components(mask: np.ndarray, *, connectivity: int = 8, min_px: int = 0, fill_holes: bool = False) -> np.ndarray:
    """Label the connected components of a mask (H, W) bool as 1, 2, ...; those under `min_px` pixels become 0.

    connectivity: 8 joins pixels that touch at a corner, 4 does not. fill_holes: before labelling, fill the background
    that does not reach the image's border, joined by the other connectivity. Returns (H, W) int32.
    """
    if connectivity not in STRUCTURES:
        raise ValueError(f"connectivity must be 4 or 8, got {connectivity}")
    if fill_holes:
        mask = scipy.ndimage.binary_fill_holes(mask, STRUCTURES[12 - connectivity])
    labels, _ = scipy.ndimage.label(mask, STRUCTURES[connectivity])
    small = np.bincount(labels.ravel()) < min_px
    small[0] = False
    labels[small[labels]] = 0
    return labels


def post_process(
    codes: np.ndarray, rule: ObjectRule, *, object_code: int, background: int, connectivity: int, scale: float = 1.0
) -> np.ndarray:
    """Apply a rule to the objects in class codes (H, W): dropped ones become background, filled holes the object.

    scale: px of the codes that have the area of one px of the original image, in which the rule's least size is.
    """
    least = math.ceil(rule.min_px * scale)
    labels = components(codes == object_code, connectivity=connectivity, min_px=least, fill_holes=rule.fill_holes)
    processed = np.where(codes == object_code, background, codes)
    processed[labels > 0] = object_code
    return processed.astype(codes.dtype, copy=False)


@dataclass(frozen=True)
class _Object:
    """One object: its mask (h, w) bool, cropped to its bounding box, and the box's first row and column."""

    mask: np.ndarray
    corner: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """The bounding box (top, left, bottom, right), last row and column included."""
        return np.concatenate([self.corner, self.corner + self.mask.shape - 1])

    @cached_property
    def boundary(self) -> np.ndarray:
        """(M, 2) pixels with a 4-neighbour that is not in the object."""
        return np.argwhere(self.mask & ~scipy.ndimage.binary_erosion(self.mask, STRUCTURES[4])) + self.corner

    @cached_property
    def tree(self) -> scipy.spatial.KDTree:
        """A tree of the boundary, which holds the object's nearest pixel to any pixel outside."""
        return scipy.spatial.KDTree(self.boundary)

    def within(self, box: np.ndarray) -> np.ndarray:
        """Return the pixels (M, 2) of the object that lie in a box."""
        first = np.maximum(box[:2] - self.corner, 0)
        last = np.maximum(box[2:] - self.corner + 1, 0)
        return np.argwhere(self.mask[first[0] : last[0], first[1] : last[1]]) + self.corner + first

    def contains(self, pixels: np.ndarray) -> np.ndarray:
        """Return for each pixel (M, 2) whether it belongs to the object, (M,) bool."""
        at = pixels - self.corner
        inside = np.all((at >= 0) & (at < self.mask.shape), axis=1)
        inside[inside] = self.mask[tuple(at[inside].T)]
        return inside


@dataclass(frozen=True)
class _Objects:
    """The n objects of an image by ascending label: the image with labels 1..n, areas (n,) and boxes (n, 4)."""

    labels: np.ndarray
    objects: tuple[_Object, ...]
    areas: np.ndarray
    boxes: np.ndarray


def _objects(labels: np.ndarray, name: str) -> _Objects:
    if not np.issubdtype(labels.dtype, np.integer) or labels.size == 0 or labels.min() < 0:
        raise ValueError(
            f"{name} must be a label image of integers from 0, got {labels.dtype} of shape {labels.shape}"
            "; label a mask with components()"
        )
    values = np.unique(labels)
    values = values[values > 0]
    dense = np.where(labels > 0, np.searchsorted(values, labels) + 1, 0)
    objects = tuple(
        _Object(dense[box] == number, np.array([side.start for side in box]))
        for number, box in enumerate(scipy.ndimage.find_objects(dense), 1)
    )
    boxes = np.array([one.box for one in objects]).reshape(-1, 4)
    areas = np.bincount(dense.ravel(), minlength=len(values) + 1)[1:]
    return _Objects(dense, objects, areas, boxes)


def _both(ground_truth: np.ndarray, predicted: np.ndarray) -> tuple[_Objects, _Objects]:
    """Return the objects of the ground truth and of the prediction."""
    if predicted.shape != ground_truth.shape or predicted.ndim != 2:
        raise ValueError(f"label images must have one shape (H, W), got {predicted.shape} and {ground_truth.shape}")
    found = _objects(predicted, "prediction")
    return _objects(ground_truth, "ground truth"), found


def _intersections(rows: _Objects, columns: _Objects) -> np.ndarray:
    """Count the pixels that each of n objects of one image shares with each of m of the other, (n, m)."""
    n, m = len(rows.objects) + 1, len(columns.objects) + 1
    pairs = np.bincount((rows.labels * m + columns.labels).ravel(), minlength=n * m)
    return pairs.reshape(n, m)[1:, 1:]


def _overlap_sums(shared: np.ndarray, predicted_areas: np.ndarray, true_areas: np.ndarray) -> ObjectSums:
    """Return all sums of one image but those of Hausdorff distances.

    shared: px that n predicted and m true objects have in common, (n, m). Areas in px, (n,) and (m,).
    """
    tp = sum(2 * shared[i, j] > true_areas[j] for i, j in enumerate(_partners(shared)) if j is not None)
    return ObjectSums(
        tp=int(tp), fp=len(predicted_areas) - int(tp), fn=len(true_areas) - int(tp),
        predicted_px=int(predicted_areas.sum()), true_px=int(true_areas.sum()),
        predicted_dice=_weighted_dice(predicted_areas, true_areas, shared),
        true_dice=_weighted_dice(true_areas, predicted_areas, shared.T),
        left_out=int(bool(len(predicted_areas)) != bool(len(true_areas))),
    )  # fmt: skip


def _partners(shared: np.ndarray) -> list[int | None]:
    """Return for each row the column with the most pixels, the first of equals; None for a row without any."""
    if not shared.size:
        return [None] * len(shared)
    return [int(row.argmax()) if row.any() else None for row in shared]


def _weighted_dice(rows: np.ndarray, columns: np.ndarray, shared: np.ndarray) -> float:
    """Sum area times Dice with the partner (0 without one) over the rows' objects; areas (n,) and (m,) px."""
    dice = (0.0 if j is None else 2 * shared[i, j] / (rows[i] + columns[j]) for i, j in enumerate(_partners(shared)))
    return float(sum(area * value for area, value in zip(rows, dice, strict=True)))


def _weighted_hausdorff(
    rows: _Objects, columns: _Objects, shared: np.ndarray, distance: Callable[[int, int], float]
) -> float:
    """Sum area times Hausdorff distance to the partner (without one: to the nearest object) over the rows' objects."""
    distances = (
        distance(i, j) if j is not None else _nearest(i, rows, columns, distance)
        for i, j in enumerate(_partners(shared))
    )
    return float(sum(area * value for area, value in zip(rows.areas, distances, strict=True)))


def _nearest(i: int, rows: _Objects, columns: _Objects, distance: Callable[[int, int], float]) -> float:
    """Return the least Hausdorff distance of object `i` of one image (rows) to any of the other (columns).

    If two boxes differ by d on a side, their objects' distance is at least d, so most of the others are skipped.
    """
    least, at_least = np.inf, np.abs(columns.boxes - rows.boxes[i]).max(axis=1)
    for j in np.argsort(at_least, kind="stable").tolist():
        if at_least[j] >= least:
            break
        least = min(least, distance(i, j))
    return least


def _hausdorff(a: _Object, b: _Object) -> float:
    """Return the Hausdorff distance of two objects in px, over all their pixels."""
    return max(_farthest(a, b), _farthest(b, a))


def _farthest(a: _Object, b: _Object) -> float:
    """Return the largest distance of any pixel of `a` to `b`, the directed Hausdorff distance.

    Outside the box of `b`, a step away from the box increases the distance to every pixel of `b`; so there the
    farthest pixel lies on the boundary of `a`. Inside the box it may be any pixel, also an inner one.
    """
    pixels = np.concatenate([a.boundary, a.within(b.box)])
    pixels = pixels[~b.contains(pixels)]
    return float(b.tree.query(pixels)[0].max()) if len(pixels) else 0.0


def _halves(predicted: float, predicted_px: int, true: float, true_px: int) -> float:
    """Return the mean of the two area-weighted means; an image without objects counts as 0."""
    return (predicted / max(1, predicted_px) + true / max(1, true_px)) / 2
