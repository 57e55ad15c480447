"""Object scores against the challenge's definition: hand-made cases, and a literal implementation on random images."""

import functools
import time

import numpy as np
import pytest
from scipy.spatial.distance import directed_hausdorff

from pathseg.train.metrics.object import (
    ObjectSums,
    components,
    mean_scores,
    object_scores,
    object_sums,
    overlap_sums_by_size,
)

A, RIGHT, WIDE = (5, 5, 10, 10), (5, 20, 10, 10), (5, 5, 10, 25)
# predicted boxes, true boxes (y, x, h, w) in a 40x40 image; TP, FP, FN; F1, Dice, Hausdorff distance
CASES = {
    "equal": ([A, RIGHT], [A, RIGHT], (2, 0, 0), (1, 1, 0)),
    "merged": ([WIDE], [A, RIGHT], (1, 0, 1), (0.666667, 0.571429, 15)),
    "split in two": ([A, (5, 15, 10, 10)], [(5, 5, 10, 20)], (0, 2, 1), (0, 0.666667, 10)),
    "exactly half": ([(5, 5, 10, 5)], [A], (0, 1, 1), (0, 0.666667, 5)),
    "apart": ([(0, 0, 5, 5)], [(0, 20, 5, 5)], (0, 1, 1), (0, 0, 20)),
    "inside": ([(0, 0, 20, 20)], [(5, 5, 5, 5)], (1, 0, 0), (1, 0.117647, 14.142136)),
    "corner": ([(5, 1, 6, 6)], [A], (0, 1, 1), (0, 0.176471, 8.944272)),
    "one too many": ([A, (30, 30, 3, 3)], [A], (1, 1, 0), (0.666667, 0.958716, 1.459624)),
    "nothing found": ([], [A], (0, 0, 1), (0, 0, None)),
    "nothing there": ([A], [], (0, 1, 0), (0, 0, None)),
    "both empty": ([], [], (0, 0, 0), (1, 1, 0)),
}


def labels(boxes, ids=None):
    image = np.zeros((40, 40), np.uint16)
    for number, (y, x, h, w) in zip(ids or range(1, 41), boxes, strict=False):
        image[y : y + h, x : x + w] = number
    return image


def sums_of(predicted, truth):
    return object_sums(ground_truth=truth, predicted=predicted)


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_the_definition(name):
    predicted, truth, counts, _ = CASES[name]
    assert object_scores(labels(predicted), labels(truth))[:3] == counts


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_definition(name):
    predicted, truth, _, (f1, dice, hausdorff) = CASES[name]
    scores = object_scores(labels(predicted), labels(truth))
    assert (scores.f1, scores.dice) == pytest.approx((f1, dice), abs=1e-6)
    assert scores.hausdorff == (None if hausdorff is None else pytest.approx(hausdorff, abs=1e-6))


def test_scores_have_names():
    assert object_scores(labels([A]), labels([A]))._fields == ("tp", "fp", "fn", "f1", "dice", "hausdorff")


def partner(one, others):
    """The other object with the largest intersection, the smallest label of equals; None without any."""
    best = None
    for label in sorted(others):
        shared = len(one & others[label])
        if shared > 0 and (best is None or shared > len(one & others[best])):
            best = label
    return best


def hausdorff(one, other):
    one, other = np.array(sorted(one)), np.array(sorted(other))
    return max(directed_hausdorff(one, other)[0], directed_hausdorff(other, one)[0])


def literal(predicted, truth):
    """The definition as it is written: every object a set of pixels, every distance computed."""

    def objects(image):
        found = [int(label) for label in np.unique(image) if label]
        return {label: {tuple(at) for at in np.argwhere(image == label).tolist()} for label in found}

    s, g = objects(predicted), objects(truth)
    tp = 0
    for one in s.values():
        j = partner(one, g)
        tp += j is not None and len(one & g[j]) / len(g[j]) > 0.5
    fp, fn = len(s) - tp, len(g) - tp
    if not s and not g:
        return tp, fp, fn, 1.0, 1.0, 0.0
    if not s or not g:
        return tp, fp, fn, 0.0, 0.0, None
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall) if tp else 0.0
    dice = distance = 0.0
    for ours, theirs in ((s, g), (g, s)):
        area = sum(map(len, ours.values()))
        for one in ours.values():
            j, weight = partner(one, theirs), len(one) / area
            if j is not None:
                dice += weight * 2 * len(one & theirs[j]) / (len(one) + len(theirs[j])) / 2
                distance += weight * hausdorff(one, theirs[j]) / 2
            else:
                distance += weight * min(hausdorff(one, other) for other in theirs.values()) / 2
    return tp, fp, fn, f1, dice, distance


def drawn(rng):
    """A label image of 14x18 px: boxes over boxes, rings and scattered pixels, ids with gaps."""
    image = np.zeros((14, 18), np.uint16)
    for _ in range(rng.integers(0, 6)):
        y, x = rng.integers(0, 12), rng.integers(0, 16)
        h, w = rng.integers(1, 12, 2)
        number = rng.integers(1, 9)
        image[y : y + h, x : x + w] = number
        if rng.random() < 0.3:
            image[y + 1 : y + h - 1, x + 1 : x + w - 1] = 0
    if rng.random() < 0.3:
        image[rng.random(image.shape) < 0.1] = rng.integers(0, 9)
    return image


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_images_agree_with_a_literal_implementation(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        predicted, truth = drawn(rng), drawn(rng)
        ours, expected = object_scores(predicted, truth), literal(predicted, truth)
        assert (ours[5] is None) == (expected[5] is None)
        assert [v for v in ours if v is not None] == pytest.approx([v for v in expected if v is not None], abs=1e-9)


def test_a_tie_of_partners_goes_to_the_smallest_label():
    left, tall = A, (5, 20, 20, 10)  # each shares 100 px with the prediction, which covers half of the tall one
    assert object_scores(labels([WIDE]), labels([left, tall], ids=[3, 7])).tp == 1
    assert object_scores(labels([WIDE]), labels([left, tall], ids=[7, 3])).tp == 0


def test_the_farthest_pixel_may_be_surrounded():
    full, ring = labels([(5, 5, 21, 21)]), labels([(5, 5, 21, 21)])
    ring[6:25, 6:25] = 0
    assert object_scores(full, ring).hausdorff == 10  # from the centre of the full one


def test_components_of_one_label_are_one_object():
    assert object_scores(labels([A, RIGHT], ids=[4, 4]), labels([A, RIGHT], ids=[9, 9]))[:3] == (1, 0, 0)


def test_pooled_scores_weigh_all_objects_of_all_images_together():
    small, large = (labels([(0, 0, 5, 5)]), labels([(0, 20, 5, 5)])), (labels([A]), labels([A]))
    pooled = ObjectSums.total([sums_of(*small), sums_of(*large)]).scores()
    assert pooled[:3] == (1, 1, 1) and pooled.f1 == 0.5
    assert (pooled.dice, pooled.hausdorff) == pytest.approx((100 / 125, 20 * 25 / 125))


def test_mean_scores_weigh_every_image_the_same():
    images = [sums_of(labels([(0, 0, 5, 5)]), labels([(0, 20, 5, 5)])), sums_of(labels([A]), labels([A]))]
    assert mean_scores(images) == (0.5, 0.5, 0.5, 0.5, 0.5, 10)


def test_images_without_a_hausdorff_distance_are_left_out_and_counted():
    images = [sums_of(labels([]), labels([A])), sums_of(labels([(5, 5, 10, 5)]), labels([A]))]
    total = ObjectSums.total(images)
    assert (total.images, total.left_out) == (2, 1)
    assert total.scores().hausdorff == mean_scores(images).hausdorff == 5


def test_without_any_defined_distance_there_is_none():
    one = sums_of(labels([A]), labels([]))
    assert one.scores().hausdorff is None and mean_scores([one]).hausdorff is None


def test_an_image_empty_on_both_sides_adds_nothing_to_the_pooled_scores():
    one = sums_of(labels([WIDE]), labels([A, RIGHT]))
    assert ObjectSums.total([one, sums_of(labels([]), labels([]))]).scores() == one.scores()


def test_pixels_that_touch_at_a_corner_are_one_object_by_default():
    diagonal = np.eye(3, dtype=bool)
    assert components(diagonal).max() == 1 and components(diagonal, connectivity=4).max() == 3


def test_small_components_can_be_dropped():
    mask = labels([A, (30, 30, 3, 3)]) > 0
    assert np.array_equal(components(mask, min_px=10) > 0, labels([A]) > 0)
    assert np.array_equal(components(mask, min_px=9) > 0, mask)


def test_another_connectivity_is_refused():
    with pytest.raises(ValueError, match="4 or 8, got 6"):
        components(np.eye(3, dtype=bool), connectivity=6)


@pytest.mark.parametrize("wrong", [np.ones((4, 4), bool), np.ones((4, 4)), np.full((4, 4), -1)])
def test_an_array_that_is_no_label_image_is_refused(wrong):
    with pytest.raises(ValueError, match=r"label image of integers .*components\(\)"):
        object_scores(wrong, np.zeros((4, 4), int))


@pytest.mark.parametrize("function", [object_sums, functools.partial(overlap_sums_by_size, min_px=[0])])
def test_ground_truth_and_prediction_are_named_so_that_they_are_not_swapped(function):
    with pytest.raises(TypeError, match="positional"):
        function(labels([A]), labels([WIDE]))


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(4, 5\)"):
        object_scores(np.zeros((4, 4), int), np.zeros((4, 5), int))


def test_an_image_of_thirty_glands_takes_a_fifth_of_a_second():
    rows, columns = np.mgrid[:522, :775]
    truth, moved = np.zeros((522, 775), np.uint16), np.zeros((522, 775), np.uint16)
    for number in range(30):
        y, x = 50 + 100 * (number // 6), 60 + 125 * (number % 6)
        truth[((rows - y) / 45) ** 2 + ((columns - x) / 55) ** 2 < 1] = number + 1
        moved[((rows - y - 9) / 40) ** 2 + ((columns - x + 12) / 50) ** 2 < 1] = number + 1
    moved = components(moved > 0)
    took = []
    for _ in range(3):
        start = time.process_time()
        object_scores(moved, truth)
        took.append(time.process_time() - start)
    assert min(took) < 0.2


def test_holes_are_filled_where_the_border_is_out_of_reach():
    ring = labels([(5, 5, 10, 10)]) > 0
    ring[8:12, 8:12] = False  # 16 px inside
    ring[20, 3:9] = ring[21:25, 3] = True  # an angle, open
    assert np.bincount(components(ring, fill_holes=True).ravel())[1:].tolist() == [100, 10]
    assert np.bincount(components(ring).ravel())[1:].tolist() == [84, 10]
    assert components(ring, fill_holes=True, min_px=85).max() == 1  # sizes are those of the filled objects


def test_a_diagonal_ring_has_a_hole_where_corners_join():
    ring = np.zeros((40, 40), bool)
    ring[[9, 10, 10, 11], [10, 9, 11, 10]] = True
    assert components(ring, connectivity=8, fill_holes=True).astype(bool).sum() == 5
    assert components(ring, connectivity=4, fill_holes=True).astype(bool).sum() == 4
