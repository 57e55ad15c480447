"""Intervals and tests: against the definition, a hand-made case and scipy."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from pathseg.train.metrics.bootstrap import RESAMPLES, interval, paired, pooled_scores, resamples
from pathseg.train.metrics.object import ObjectSums
from pathseg.train.metrics.pixel import Scores, constant_answer
from pathseg.train.runs.split_scores import PartScores


def part(matrices, ids=None):
    ids = ids or [f"image_{i}" for i in range(len(matrices))]
    whole = sum(matrices)
    scores = Scores.of(whole)
    each = dict(zip(ids, matrices, strict=True))
    per_image = {name: Scores.of(matrix) for name, matrix in each.items()}
    return PartScores(len(ids), scores, "a", Scores.of(constant_answer(whole, 0)), per_image, each)


def drawn(count, seed=0, better=0):
    rng = np.random.default_rng(seed)
    return [np.array([[60 + better, 40 - better], [30 - better, 70 + better]]) + rng.integers(-9, 9, (2, 2))
            for _ in range(count)]  # fmt: skip


@pytest.mark.parametrize("ignore", [None, 0, 2])
def test_many_matrices_at_once_are_scored_as_each_alone(ignore):
    rng = np.random.default_rng(1)
    matrices = rng.integers(0, 5, (60, 4, 4)) * (rng.random((60, 4, 1)) < 0.6)
    matrices[0], matrices[1, :, 3], matrices[1, 3] = 0, 0, 0
    found = pooled_scores(matrices, ignore)
    for r, matrix in enumerate(matrices):
        expected = Scores.of(matrix, ignore)
        for name, values in found.items():
            value = getattr(expected, name)
            assert np.isnan(values[r]) if value is None else values[r] == pytest.approx(value)


def test_an_interval_of_a_mean_is_the_textbooks():
    """Accuracy over images of equal size is a mean over images: the interval is near the normal one."""
    rng = np.random.default_rng(2)
    hits = rng.integers(40, 90, 100)
    found = resamples(part([np.array([[hit, 100 - hit], [0, 0]]) for hit in hits]), None)["accuracy"]
    expected = stats.norm.interval(0.95, hits.mean() / 100, hits.std() / 100 / 10)
    assert len(found) == RESAMPLES and interval(found) == pytest.approx(expected, abs=0.003)


def test_equal_images_leave_no_doubt():
    assert interval(resamples(part([np.array([[6, 4], [3, 7]])] * 5), None)["dice"]) == pytest.approx(
        (Scores.of(np.array([[6, 4], [3, 7]])).dice,) * 2
    )


def test_the_same_part_gives_the_same_samples():
    assert np.array_equal(resamples(part(drawn(8)), None)["dice"], resamples(part(drawn(8)), None)["dice"])


def test_the_order_of_the_images_does_not_matter():
    matrices, ids = drawn(6), list("abcdef")
    turned = part(matrices[::-1], ids[::-1])
    assert np.array_equal(resamples(part(matrices, ids), None)["dice"], resamples(turned, None)["dice"])


def test_a_run_without_matrices_has_no_samples():
    assert resamples(dataclasses.replace(part(drawn(3)), matrices={}), None) == {}


def test_objects_are_pooled_over_the_drawn_images():
    """One image with a perfect object, one with a missed one: F1 is 1, 2/3 or 0."""
    sums = {"image_0": ObjectSums(tp=1, predicted_px=9, true_px=9), "image_1": ObjectSums(fn=1, true_px=9, left_out=1)}
    found = resamples(dataclasses.replace(part(drawn(2)), objects=sums), None)
    assert set(np.round(found["object f1"], 6)) == {0.0, 0.666667, 1.0}
    assert np.isnan(found["object hausdorff"]).mean() == pytest.approx(0.25, abs=0.05)  # both draws are the second


def test_values_that_are_not_there_are_left_out_of_an_interval():
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0) and interval(np.array([np.nan])) is None


def test_the_p_value_is_scipys_over_the_images():
    a, b = part(drawn(12)), part(drawn(12, seed=5, better=2))
    found = paired(a, b, resamples(a, None), resamples(b, None))
    expected = stats.wilcoxon([b.per_image[i].dice for i in a.per_image], [a.per_image[i].dice for i in a.per_image])
    assert found.p == pytest.approx(expected.pvalue) and found.units == 12


def test_a_difference_is_that_of_the_pooled_dice_and_lies_in_its_interval():
    a, b = part(drawn(12)), part(drawn(12, seed=5, better=8))
    found = paired(a, b, resamples(a, None), resamples(b, None))
    assert found.difference == b.scores.dice - a.scores.dice and 0 < found.low < found.difference < found.high


def test_a_run_does_not_differ_from_itself():
    one = part(drawn(5))
    found = paired(one, one, resamples(one, None), resamples(one, None))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_runs_on_other_images_are_not_compared():
    a, b = part(drawn(2)), part(drawn(2), ids=["x", "y"])
    assert paired(a, b, resamples(a, None), resamples(b, None)) is None


def test_patches_of_one_region_are_drawn_together():
    """Six patches of three regions give the samples of three images that hold the pixels of two patches each."""
    matrices = drawn(6)
    patches = dataclasses.replace(part(matrices, list("abcdef")), sources=dict(zip("abcdef", "zxyzxy", strict=True)))
    wholes = part([matrices[i] + matrices[i + 3] for i in range(3)], list("zxy"))
    found, expected = resamples(patches, None), resamples(wholes, None)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_objects_of_one_region_are_drawn_together():
    """A perfect object in one patch, a missed one in the other of the same region: every draw holds both."""
    sums = {"image_0": ObjectSums(tp=1, predicted_px=9, true_px=9), "image_1": ObjectSums(fn=1, true_px=9, left_out=1)}
    found = resamples(dataclasses.replace(part(drawn(2)), objects=sums, sources=dict.fromkeys(sums, "r")), None)
    assert found["object f1"] == pytest.approx(np.full(RESAMPLES, 2 / 3))


def test_the_p_value_over_regions_is_scipys_over_their_pooled_dice():
    names = [f"image_{i}" for i in range(24)]
    sources = {name: f"region {i // 2}" for i, name in enumerate(names)}
    both = [drawn(24), drawn(24, seed=5, better=2)]
    a, b = (dataclasses.replace(part(matrices), sources=sources) for matrices in both)
    dice = [[Scores.of(m[i] + m[i + 1]).dice for i in range(0, 24, 2)] for m in both]
    found = paired(a, b, resamples(a, None), resamples(b, None))
    assert found.p == pytest.approx(stats.wilcoxon(dice[1], dice[0]).pvalue) and found.units == 12


def test_a_run_that_knows_regions_is_not_paired_with_one_that_does_not():
    a = part(drawn(4))
    b = dataclasses.replace(a, sources=dict.fromkeys(a.per_image, "r"))
    assert paired(a, b, resamples(a, None), resamples(b, None)) is None
