"""The object scores of the GlaS challenge: F1, Dice and Hausdorff distance of label images, exactly as defined there.

Source: Sirinukunwattana et al., Gland segmentation in colon histology images: the GlaS challenge contest, 2017.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

STRUCTURES = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}

OBJECT_DEFINITIONS: dict[str, str] = {
    "partner": (
        "of an object: the object of the other image (prediction or ground truth) that it shares most pixels with, "
        "ties to the smallest label; one object can be the partner of several"
    ),
    "object F1": (
        "2 TP / (2 TP + FP + FN): a predicted object is a true positive (TP) when it covers more than half of its "
        "partner's pixels, else a false positive (FP); true objects beyond the TP are missed (FN)"
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
        "objects are compared at the original size of the image: the predicted classes are brought there with "
        "nearest neighbour and cut into connected parts"
    ),
}


class ObjectScores(NamedTuple):
    """Counts of true positives, false positives and missed objects; F1 and Dice in 0..1; Hausdorff distance in px.

    tp, fp, fn are means, not whole numbers, where this is the mean over images. hausdorff is None where it is not
    defined: objects on one side only.
    """

    tp: float
    fp: float
    fn: float
    f1: float
    dice: float
    hausdorff: float | None


@dataclass(frozen=True)
class ObjectSums:
    """What images add to the object scores: these numbers add up over images, the scores follow from them.

    Areas are in px. `*_dice` sums area times Dice over the objects of one side, `*_hausdorff` area times Hausdorff
    distance; `measured_*_px` are the areas in the latter. An image with objects on one side only is `left_out` there.
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
        """Of all these images."""
        rows = [dataclasses.astuple(one) for one in several]
        return cls(*map(sum, zip(*rows, strict=True))) if rows else cls(images=0)

    def scores(self) -> ObjectScores:
        """Pooled: counts and area weights over all objects of all these images, the challenge's own definition."""
        found, present = self.tp + self.fp, self.tp + self.fn
        empty = found + present == 0
        f1 = 1.0 if empty else 2 * self.tp / (found + present)
        dice = 1.0 if empty else _halves(self.predicted_dice, self.predicted_px, self.true_dice, self.true_px)
        hausdorff = _halves(
            self.predicted_hausdorff, self.measured_predicted_px, self.true_hausdorff, self.measured_true_px
        )
        return ObjectScores(self.tp, self.fp, self.fn, f1, dice, hausdorff if self.images > self.left_out else None)


def object_scores(predicted: np.ndarray, truth: np.ndarray) -> ObjectScores:
    """Compare two label images (H, W) of integers: every value but 0 is one object, connected or not.

    An object's partner is the object of the other image with the largest intersection, ties to the smallest label.
    A predicted object is a true positive when it covers more than half of its partner. Dice and Hausdorff distance
    are means over the objects of both sides, weighted by area; an object without partner has Dice 0, and the
    Hausdorff distance to the nearest object of the other side. Raises ValueError on differing shapes and on arrays
    that hold no labels.
    """
    return object_sums(predicted, truth).scores()


def object_sums(predicted: np.ndarray, truth: np.ndarray) -> ObjectSums:
    """What one image adds to the scores of several; arguments and errors as `object_scores`."""
    if predicted.shape != truth.shape or predicted.ndim != 2:
        raise ValueError(f"label images must have one shape (H, W), got {predicted.shape} and {truth.shape}")
    found, present = _objects(predicted, "prediction"), _objects(truth, "truth")
    shared = _intersections(found, present)  # (found, present) px
    tp = sum(2 * shared[i, j] > present.areas[j] for i, j in enumerate(_partners(shared)) if j is not None)
    sums = ObjectSums(
        tp=int(tp), fp=len(found.all) - int(tp), fn=len(present.all) - int(tp),
        predicted_px=int(found.areas.sum()), true_px=int(present.areas.sum()),
        predicted_dice=_weighted_dice(found, present, shared), true_dice=_weighted_dice(present, found, shared.T),
        left_out=int(bool(found.all) != bool(present.all)),
    )  # fmt: skip
    if not found.all or not present.all:
        return sums
    apart = cache(lambda i, j: _hausdorff(found.all[i], present.all[j]))  # partners mostly are so on both sides
    return dataclasses.replace(
        sums, measured_predicted_px=sums.predicted_px, measured_true_px=sums.true_px,
        predicted_hausdorff=_weighted_hausdorff(found, present, shared, apart),
        true_hausdorff=_weighted_hausdorff(present, found, shared.T, lambda j, i: apart(i, j)),
    )  # fmt: skip


def mean_scores(several: Sequence[ObjectSums]) -> ObjectScores:
    """The mean of each image's own scores, the Hausdorff distance over the images where it is defined."""
    if not several:
        raise ValueError("there is no mean over no images; name at least one")
    columns = zip(*(one.scores() for one in several), strict=True)
    defined = ([value for value in column if value is not None] for column in columns)
    return ObjectScores(*(sum(values) / len(values) if values else None for values in defined))


def components(mask: np.ndarray, *, connectivity: int = 8, min_px: int = 0) -> np.ndarray:
    """Number the connected parts of a mask (H, W) bool as 1, 2, ...; parts under `min_px` pixels become 0.

    connectivity: 8 joins pixels that touch at a corner, 4 does not.
    """
    if connectivity not in STRUCTURES:
        raise ValueError(f"connectivity must be 4 or 8, got {connectivity}")
    labels, _ = ndimage.label(mask, STRUCTURES[connectivity])
    small = np.bincount(labels.ravel()) < min_px
    small[0] = False
    labels[small[labels]] = 0
    return labels


@dataclass(frozen=True)
class _Object:
    """One object: its mask, cropped to the box from `corner`."""

    mask: np.ndarray
    corner: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """First and last row and column: (top, left, bottom, right)."""
        return np.concatenate([self.corner, self.corner + self.mask.shape - 1])

    @cached_property
    def boundary(self) -> np.ndarray:
        """(M, 2) pixels with a 4-neighbour that is not in the object."""
        return np.argwhere(self.mask & ~ndimage.binary_erosion(self.mask, STRUCTURES[4])) + self.corner

    @cached_property
    def tree(self) -> KDTree:
        """For the distance of a pixel outside to the object: its nearest pixel is one of the boundary."""
        return KDTree(self.boundary)

    def within(self, box: np.ndarray) -> np.ndarray:
        """(M, 2) pixels of the object in a box."""
        first = np.maximum(box[:2] - self.corner, 0)
        last = np.maximum(box[2:] - self.corner + 1, 0)
        return np.argwhere(self.mask[first[0] : last[0], first[1] : last[1]]) + self.corner + first

    def holds(self, pixels: np.ndarray) -> np.ndarray:
        """(M,) whether each of (M, 2) pixels is in the object."""
        at = pixels - self.corner
        inside = np.all((at >= 0) & (at < self.mask.shape), axis=1)
        inside[inside] = self.mask[tuple(at[inside].T)]
        return inside


@dataclass(frozen=True)
class _Objects:
    """The objects of an image by ascending label: the image with labels 1..n, areas (n,) and boxes (n, 4)."""

    labels: np.ndarray
    all: tuple[_Object, ...]
    areas: np.ndarray
    boxes: np.ndarray


def _objects(labels: np.ndarray, name: str) -> _Objects:
    if not np.issubdtype(labels.dtype, np.integer) or labels.size == 0 or labels.min() < 0:
        raise ValueError(
            f"{name} must be a label image of integers from 0, got {labels.dtype} of shape {labels.shape}"
            "; number the parts of a mask with components()"
        )
    values = np.unique(labels)
    values = values[values > 0]
    dense = np.where(labels > 0, np.searchsorted(values, labels) + 1, 0)
    found = [
        _Object(dense[place] == number, np.array([one.start for one in place]))
        for number, place in enumerate(ndimage.find_objects(dense), 1)
    ]
    boxes = np.array([one.box for one in found]).reshape(-1, 4)
    areas = np.bincount(dense.ravel(), minlength=len(values) + 1)[1:]
    return _Objects(dense, tuple(found), areas, boxes)


def _intersections(found: _Objects, present: _Objects) -> np.ndarray:
    n, m = len(found.all) + 1, len(present.all) + 1
    pairs = np.bincount((found.labels * m + present.labels).ravel(), minlength=n * m)
    return pairs.reshape(n, m)[1:, 1:]


def _partners(shared: np.ndarray) -> list[int | None]:
    """For each row the column with most pixels, the first of equals; None for a row without any."""
    if not shared.size:
        return [None] * len(shared)
    return [int(row.argmax()) if row.any() else None for row in shared]


def _weighted_dice(ours: _Objects, theirs: _Objects, shared: np.ndarray) -> float:
    """Sum over our objects of area times Dice with the partner, 0 without one."""
    dice = (
        0.0 if j is None else 2 * shared[i, j] / (ours.areas[i] + theirs.areas[j])
        for i, j in enumerate(_partners(shared))
    )
    return float(sum(area * value for area, value in zip(ours.areas, dice, strict=True)))


def _weighted_hausdorff(
    ours: _Objects, theirs: _Objects, shared: np.ndarray, apart: Callable[[int, int], float]
) -> float:
    """Sum over our objects of area times distance to the partner, or to the nearest object without one."""
    distances = (
        apart(i, j) if j is not None else _nearest(i, ours, theirs, apart) for i, j in enumerate(_partners(shared))
    )
    return float(sum(area * distance for area, distance in zip(ours.areas, distances, strict=True)))


def _nearest(i: int, ours: _Objects, theirs: _Objects, apart: Callable[[int, int], float]) -> float:
    """The least Hausdorff distance of our object `i` to any of theirs.

    Two boxes that differ by d on a side are at least d apart, so most of the others need not be measured.
    """
    least, at_least = np.inf, np.abs(theirs.boxes - ours.boxes[i]).max(axis=1)
    for j in np.argsort(at_least, kind="stable").tolist():
        if at_least[j] >= least:
            break
        least = min(least, apart(i, j))
    return least


def _hausdorff(a: _Object, b: _Object) -> float:
    return max(_farthest(a, b), _farthest(b, a))


def _farthest(a: _Object, b: _Object) -> float:
    """The largest distance of any pixel of `a` to `b`.

    Outside the box of `b`, a step away from the box increases the distance to every pixel of `b`; so there the
    farthest pixel lies on the boundary of `a`. Inside the box it may be any, also one that `a` surrounds.
    """
    pixels = np.concatenate([a.boundary, a.within(b.box)])
    pixels = pixels[~b.holds(pixels)]
    return float(b.tree.query(pixels)[0].max()) if len(pixels) else 0.0


def _halves(predicted: float, predicted_px: int, true: float, true_px: int) -> float:
    """Half the mean over one side's area plus half that over the other's; a side without objects adds nothing."""
    return (predicted / max(1, predicted_px) + true / max(1, true_px)) / 2
