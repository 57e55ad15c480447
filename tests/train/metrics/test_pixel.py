"""Pixel metrics against numbers worked out by hand, a loop over the pixels and another library."""

import msgspec
import numpy as np
import pytest
import torch
from segmentation_models_pytorch import metrics as smp_metrics

from pathseg.train.metrics.pixel import DEFINITIONS, Scores, confusion_matrix, constant_prediction

# ground truth rows, prediction columns: class 0: TP 50, FN 10, FP 20; class 1: TP 20, FN 20, FP 10
TWO = np.array([[50, 10], [20, 20]])
# class 0: TP 4, FN 1, FP 2; class 1: TP 2, FN 2, FP 1; class 2: TP 0, FN 1, FP 1
THREE = np.array([[4, 1, 0], [1, 2, 1], [1, 0, 0]])


def test_a_confusion_matrix_has_ground_truth_in_rows_and_prediction_in_columns():
    assert confusion_matrix(np.array([[0, 0, 1]]), np.array([[0, 1, 1]]), classes=2).tolist() == [[1, 1], [0, 1]]


def test_a_confusion_matrix_equals_a_loop_over_the_pixels_that_are_not_ignored():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, (20, 15), np.uint8), rng.integers(0, 4, (20, 15), np.uint8)
    truth[truth == 4] = 255
    expected = [[0] * 4 for _ in range(4)]
    for t, p in zip(truth.ravel(), predicted.ravel(), strict=True):
        if t != 255:
            expected[t][p] += 1
    assert confusion_matrix(truth, predicted, classes=4, ignore=255).tolist() == expected


def test_a_confusion_matrix_is_int64_even_for_small_codes():
    many = np.full((600, 600), 16, np.uint8)
    matrix = confusion_matrix(many, many, classes=17)
    assert matrix.dtype == np.int64 and matrix[16, 16] == 360_000


def test_the_confusion_matrix_of_ignored_pixels_alone_is_empty():
    truth = np.full((2, 2), 255, np.uint8)
    assert confusion_matrix(truth, np.zeros((2, 2), np.uint8), classes=3, ignore=255).tolist() == [[0] * 3] * 3


@pytest.mark.parametrize(
    ("truth", "predicted", "ignore", "named"),
    [
        ([0, 2], [0, 1], None, "ground truth .*class code 2.*2 classes.*0-1"),
        ([0, 255], [0, 1], None, "ground truth .*class code 255"),
        ([0, 1], [0, -1], None, "prediction .*class code -1"),
        ([0, 1], [0, 255], 255, "prediction .*class code 255"),  # to ignore a pixel is up to the ground truth
    ],
)
def test_a_code_without_a_class_is_refused(truth, predicted, ignore, named):
    with pytest.raises(ValueError, match=named):
        confusion_matrix(np.array(truth), np.array(predicted), classes=2, ignore=ignore)


def test_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"ground truth .*\(2, 2\).*prediction \(4,\)"):
        confusion_matrix(np.zeros((2, 2), int), np.zeros(4, int), classes=2)


def test_matrices_of_images_add_up_to_that_of_all_pixels():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 3, (2, 50)), rng.integers(0, 3, (2, 50))
    each = sum(confusion_matrix(t, p, classes=3) for t, p in zip(truth, predicted, strict=True))
    assert (each == confusion_matrix(truth, predicted, classes=3)).all()


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_segmentation_models_pytorch(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 4, (3, 20, 20)), rng.integers(0, 4, (3, 20, 20))
    truth[rng.random(truth.shape) < 0.1] = 255
    scores = Scores.of(confusion_matrix(truth, predicted, classes=4, ignore=255))
    stats = smp_metrics.get_stats(
        torch.from_numpy(predicted), torch.from_numpy(truth), mode="multiclass", num_classes=4, ignore_index=255
    )
    theirs = (
        smp_metrics.f1_score(*stats, reduction="macro"),
        smp_metrics.iou_score(*stats, reduction="macro"),
        smp_metrics.precision(*stats, reduction="macro"),
        smp_metrics.recall(*stats, reduction="macro"),
    )
    assert (scores.dice, scores.miou, scores.precision, scores.recall) == pytest.approx([float(one) for one in theirs])


def test_accuracy_is_micro():
    assert Scores.of(TWO).accuracy == pytest.approx(70 / 100)


def test_dice_of_each_class_by_hand():
    assert [one.dice for one in Scores.of(TWO).classes] == pytest.approx([100 / 130, 40 / 70])


def test_dice_is_the_unweighted_mean_over_classes_background_included():
    assert Scores.of(TWO).dice == pytest.approx((100 / 130 + 40 / 70) / 2)


def test_miou_by_hand():
    assert Scores.of(TWO).miou == pytest.approx((50 / 80 + 20 / 50) / 2)


def test_precision_and_recall_by_hand():
    scores = Scores.of(TWO)
    assert (scores.precision, scores.recall) == pytest.approx(((50 / 70 + 20 / 30) / 2, (50 / 60 + 20 / 40) / 2))


# confusion matrix -> scikit-learn 1.9.1: f1_score(y_true, y_pred, average="macro", zero_division=0)
SKLEARN_MACRO_F1 = [
    (TWO, 0.6703296703296704),
    (THREE, 0.432900432900433),
    (np.array([[218, 782], [18, 982]]), 0.5316576042413087),  # favours one class
    (np.array([[50, 10, 0], [20, 20, 0], [0, 0, 0]]), 0.6703296703296704),  # a class in neither is left out
    (np.array([[8, 2], [0, 0]]), 0.4444444444444444),  # predicted, but absent
]


@pytest.mark.parametrize(("matrix", "expected"), SKLEARN_MACRO_F1)
def test_f1_is_scikit_learns_macro_f1(matrix, expected):
    assert Scores.of(matrix).f1 == pytest.approx(expected, abs=1e-12)


def test_f1_is_that_of_scikit_learn_on_random_pixels_with_absent_classes():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    for _ in range(50):
        truth, predicted = (rng.choice(rng.integers(0, 6, 3), 40) for _ in range(2))
        expected = sklearn_metrics.f1_score(truth, predicted, average="macro", zero_division=0)
        assert Scores.of(confusion_matrix(truth, predicted, classes=6)).f1 == pytest.approx(expected)


def test_f1_of_means_is_the_harmonic_mean_of_macro_precision_and_macro_recall():
    p, r = (50 / 70 + 20 / 30) / 2, (50 / 60 + 20 / 40) / 2
    assert Scores.of(TWO).f1_of_means == pytest.approx(2 * p * r / (p + r))
    assert Scores.of(TWO).f1_of_means > Scores.of(TWO).f1 + 1e-3


def test_f1_of_one_class_is_its_dice():
    assert [one.f1 for one in Scores.of(TWO).classes] == pytest.approx([one.dice for one in Scores.of(TWO).classes])


def test_three_classes_by_hand():
    scores = Scores.of(THREE)
    assert scores.accuracy == pytest.approx(6 / 10)
    assert scores.dice == pytest.approx((8 / 11 + 4 / 7 + 0) / 3)
    assert scores.miou == pytest.approx((4 / 7 + 2 / 5 + 0) / 3)
    p, r = (4 / 6 + 2 / 3) / 3, (4 / 5 + 2 / 4) / 3
    assert scores.f1_of_means == pytest.approx(2 * p * r / (p + r))


def test_pixels_are_the_true_ones():
    assert [one.pixels for one in Scores.of(TWO).classes] == [60, 40] and Scores.of(TWO).pixels == 100


def test_a_class_in_neither_ground_truth_nor_prediction_has_no_value_and_is_left_out_of_the_means():
    scores = Scores.of(np.array([[50, 10, 0], [20, 20, 0], [0, 0, 0]]))
    assert scores.classes[2].dice is None and scores.dice == pytest.approx(Scores.of(TWO).dice)


def test_a_class_that_is_predicted_but_absent_scores_zero():
    scores = Scores.of(np.array([[8, 2], [0, 0]]))
    absent = scores.classes[1]
    assert (absent.dice, absent.iou, absent.precision, absent.recall, absent.f1) == (0, 0, 0, 0, 0)
    assert scores.dice == pytest.approx((16 / 18 + 0) / 2)


def test_a_class_that_is_never_predicted_has_precision_zero():
    assert Scores.of(np.array([[8, 0], [2, 0]])).classes[1].precision == 0


def test_an_ignored_code_among_the_classes_counts_nowhere():
    with_ignored = np.array([[70, 3, 9], [0, 50, 10], [0, 20, 20]])
    scores, plain = Scores.of(with_ignored, ignore=0), Scores.of(TWO)
    assert scores.classes[0].dice is None
    assert (scores.accuracy, scores.dice, scores.miou, scores.f1) == (plain.accuracy, plain.dice, plain.miou, plain.f1)


def test_a_counted_pixel_given_the_ignored_code_is_a_miss_of_its_class():
    scores = Scores.of(np.array([[0, 0, 0], [5, 50, 10], [0, 20, 20]]), ignore=0)
    assert scores.classes[1].recall == pytest.approx(50 / 65) and scores.accuracy == pytest.approx(70 / 105)


def test_nothing_counted_gives_no_values():
    scores = Scores.of(np.zeros((2, 2)))
    assert (scores.accuracy, scores.dice, scores.miou, scores.f1, scores.pixels) == (None, None, None, None, 0)


def test_everything_right_is_one_everywhere():
    scores = Scores.of(np.diag([5, 7]))
    assert (scores.accuracy, scores.dice, scores.miou, scores.f1) == (1, 1, 1, 1)


def test_everything_wrong_is_zero_everywhere():
    scores = Scores.of(np.array([[0, 5], [7, 0]]))
    assert (scores.accuracy, scores.dice, scores.miou, scores.f1) == (0, 0, 0, 0)


def test_constant_prediction_puts_every_true_pixel_in_one_column():
    assert constant_prediction(TWO, 0).tolist() == [[60, 0], [40, 0]]


def test_constant_prediction_of_the_larger_half_by_hand():
    scores = Scores.of(constant_prediction(TWO, 0))
    assert scores.accuracy == pytest.approx(0.6) and scores.dice == pytest.approx((120 / 160 + 0) / 2)


def test_scores_come_back_equal_from_json():
    scores = Scores.of(np.array([[50, 10, 0], [20, 20, 0], [0, 0, 0]]))
    assert msgspec.json.decode(msgspec.json.encode(scores), type=Scores) == scores


def test_a_matrix_that_is_not_square_raises():
    with pytest.raises(ValueError, match=r"square, got shape \(2, 3\)"):
        Scores.of(np.zeros((2, 3)))


@pytest.mark.parametrize("name", ["accuracy", "dice", "miou", "precision", "recall", "f1", "f1_of_means"])
def test_every_mean_has_a_definition(name):
    assert name in DEFINITIONS and isinstance(getattr(Scores.of(TWO), name), float)
