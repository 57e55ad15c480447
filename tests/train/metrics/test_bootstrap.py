"""Bootstrap intervals and paired tests against the definition, hand-made cases and scipy."""

import numpy as np
import pytest
from scipy import stats

from pathseg.train.metrics.bootstrap import (
    RESAMPLES,
    bootstrap_scores,
    interval,
    paired_difference,
    pooled_object_scores,
    pooled_scores,
    signed_rank_p,
)
from pathseg.train.metrics.object import ObjectSums
from pathseg.train.metrics.pixel import Scores, constant_prediction
from pathseg.train.runs.record import Constant, ImageObjects, ImageScores, SplitScores


def split_of(matrices, ids=None, sources=None, sums=None):
    """The record of a test split: a confusion matrix, a region and object sums of each image."""
    ids = ids or [f"image_{i}" for i in range(len(matrices))]
    whole = sum(matrices)
    return SplitScores(
        images=len(ids),
        scores=Scores.of(whole),
        confusion=rows(whole),
        constant=Constant("a", Scores.of(constant_prediction(whole, 0))),
        per_image=tuple(
            ImageScores(
                id=name,
                scores=Scores.of(matrix),
                confusion=rows(matrix),
                source=sources and sources[i],
                objects=sums and ImageObjects.of(sums[i]),
            )
            for i, (name, matrix) in enumerate(zip(ids, matrices, strict=True))
        ),
    )


def rows(matrix):
    return tuple(map(tuple, matrix.tolist()))


def drawn_objects(count, seed=0):
    """Object sums of images; every fifth has objects on one side only, and so no Hausdorff distance."""
    rng, sums = np.random.default_rng(seed), []
    for number in range(count):
        tp, fp, fn = (int(n) for n in rng.integers(1, 9, 3))
        area, true = (int(n) for n in rng.integers(200, 900, 2))
        measured = number % 5 > 0
        sums.append(ObjectSums(
            tp=tp, fp=fp, fn=fn, predicted_px=area, true_px=true,
            predicted_dice=area * rng.random(), true_dice=true * rng.random(),
            measured_predicted_px=area * measured, measured_true_px=true * measured,
            predicted_hausdorff=area * 9 * rng.random() * measured, true_hausdorff=true * 9 * rng.random() * measured,
            left_out=int(not measured),
        ))  # fmt: skip
    return sums


def samples_of(*arguments, **named):
    return bootstrap_scores(split_of(*arguments, **named), ignore=None)


def compared(a, b, score="dice"):
    return paired_difference(a, b, bootstrap_scores(a, ignore=None), bootstrap_scores(b, ignore=None), score=score)


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
    hits = np.random.default_rng(2).integers(40, 90, 100)
    found = samples_of([np.array([[hit, 100 - hit], [0, 0]]) for hit in hits])["accuracy"]
    expected = stats.norm.interval(0.95, hits.mean() / 100, hits.std() / 100 / 10)
    assert len(found) == RESAMPLES and interval(found) == pytest.approx(expected, abs=0.003)


def test_the_interval_of_equal_images_has_no_width():
    matrix = np.array([[6, 4], [3, 7]])
    assert interval(samples_of([matrix] * 5)["dice"]) == pytest.approx((Scores.of(matrix).dice,) * 2)


def test_the_same_split_gives_the_same_samples():
    assert np.array_equal(samples_of(drawn(8))["dice"], samples_of(drawn(8))["dice"])


def test_the_order_of_the_images_does_not_matter():
    matrices, ids = drawn(6), list("abcdef")
    turned = samples_of(matrices[::-1], ids[::-1])
    assert np.array_equal(samples_of(matrices, ids)["dice"], turned["dice"])


# one image with a perfect object, one with a missed one
SUMS = [ObjectSums(tp=1, predicted_px=9, true_px=9), ObjectSums(fn=1, true_px=9, left_out=1)]


def test_objects_are_pooled_over_the_drawn_images():
    found = samples_of(drawn(2), sums=SUMS)
    assert set(np.round(found["object f1"], 6)) == {0.0, 0.666667, 1.0}
    assert np.isnan(found["object hausdorff"]).mean() == pytest.approx(0.25, abs=0.05)  # both draws are the second


def test_undefined_samples_are_left_out_of_an_interval():
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0) and interval(np.array([np.nan])) is None


def test_the_p_value_is_scipys_over_the_images():
    a, b = split_of(drawn(12)), split_of(drawn(12, seed=5, better=2))
    dice = [[image.scores.dice for image in split.per_image] for split in (a, b)]
    found = compared(a, b)
    assert found.p == pytest.approx(stats.wilcoxon(dice[1], dice[0]).pvalue) and found.units == 12


@pytest.mark.parametrize("digits", [0, 1, 16], ids=["many ties and zeros", "ties", "no ties"])
@pytest.mark.parametrize("units", [3, 4, 5, 7, 9, 13, 14, 50, 51, 300])
def test_the_signed_rank_test_is_scipys(units, digits):
    differences = np.random.default_rng(units).normal(0.3, 1, units).round(digits)
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-12)


def test_differences_of_zero_show_nothing():
    assert signed_rank_p(np.zeros(4)) == 1 and signed_rank_p(np.zeros(0)) is None


def test_a_difference_is_that_of_the_pooled_dice_and_lies_in_its_interval():
    a, b = split_of(drawn(12)), split_of(drawn(12, seed=5, better=8))
    found = compared(a, b)
    assert found.difference == b.scores.dice - a.scores.dice and 0 < found.low < found.difference < found.high


def test_a_run_does_not_differ_from_itself():
    found = compared(split_of(drawn(5)), split_of(drawn(5)))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_runs_on_other_images_are_not_compared():
    assert compared(split_of(drawn(2)), split_of(drawn(2), ids=["x", "y"])) is None


def test_patches_of_one_region_are_drawn_together():
    """Six patches of three regions give the samples of three images that hold the pixels of two patches each."""
    matrices = drawn(6)
    found = samples_of(matrices, list("abcdef"), sources="zxyzxy")
    expected = samples_of([matrices[i] + matrices[i + 3] for i in range(3)], list("zxy"))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_objects_of_one_region_are_drawn_together():
    found = samples_of(drawn(2), sources="rr", sums=SUMS)
    assert found["object f1"] == pytest.approx(np.full(RESAMPLES, 2 / 3))


def test_the_p_value_over_regions_is_scipys_over_their_pooled_dice():
    sources = [f"region {i // 2}" for i in range(24)]
    both = [drawn(24), drawn(24, seed=5, better=2)]
    dice = [[Scores.of(m[i] + m[i + 1]).dice for i in range(0, 24, 2)] for m in both]
    found = compared(*(split_of(matrices, sources=sources) for matrices in both))
    assert found.p == pytest.approx(stats.wilcoxon(dice[1], dice[0]).pvalue) and found.units == 12


@pytest.mark.parametrize("score", ["f1", "dice", "hausdorff"])
@pytest.mark.parametrize("size", [1, 2], ids=["images", "regions"])
def test_the_p_value_of_object_scores_is_scipys_over_images_or_regions(score, size):
    sums = [drawn_objects(24), drawn_objects(24, seed=5)]
    sources = [f"region {i // size:02}" for i in range(24)]
    matrices = drawn(24)
    a, b = (split_of(matrices, [f"{i:02}" for i in range(24)], sources, one) for one in sums)
    units = [[getattr(ObjectSums.total(one[i : i + size]).scores(), score) for i in range(0, 24, size)] for one in sums]
    pairs = [(before, after) for before, after in zip(*units, strict=True) if before is not None]
    found = compared(a, b, f"object {score}")
    assert found.p == pytest.approx(stats.wilcoxon(*np.transpose(pairs)).pvalue)
    assert found.units == len(pairs) == {1: 19 if score == "hausdorff" else 24, 2: 12}[size]
    pooled = [getattr(ObjectSums.total(one).scores(), score) for one in sums]
    assert found.difference == pytest.approx(pooled[1] - pooled[0]) and found.low < found.difference < found.high


def test_object_scores_that_one_run_lacks_are_not_compared():
    assert compared(split_of(drawn(2), sums=SUMS), split_of(drawn(2)), "object f1") is None


def test_a_run_that_records_regions_is_not_paired_with_one_that_does_not():
    assert compared(split_of(drawn(4)), split_of(drawn(4), sources="rrrr")) is None


def test_object_scores_of_many_resamples_are_those_of_each_alone():
    rng = np.random.default_rng(0)
    areas = rng.integers(0, 3, (400, 13)) * rng.integers(0, 500, (400, 13))  # many sums without objects of a kind
    found = pooled_object_scores(areas)
    for number, row in enumerate(areas.astype(float)):
        for name, expected in ObjectSums(*row).scores()._asdict().items():
            value = found[name][number]
            assert np.isnan(value) if expected is None else value == pytest.approx(expected, rel=1e-12), name
