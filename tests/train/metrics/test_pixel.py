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


def random_case(rng):
    """Draw ground truth and prediction of up to 60 pixels, K, and the ignored code: None, 255, or one of the K."""
    classes, pixels = rng.integers(2, 21), rng.integers(0, 61)
    ignore = (None, 255, int(rng.integers(classes)))[rng.integers(3)]
    truth, predicted = (rng.choice(rng.integers(0, classes, rng.integers(1, classes + 1)), pixels) for _ in range(2))
    if rng.random() < 0.2:
        predicted = np.zeros(pixels, int)  # nothing but background
    if rng.random() < 0.5:
        predicted = np.where(rng.random(pixels) < 0.6, truth, predicted)
    if ignore is not None:
        truth = np.where(rng.random(pixels) < rng.choice([0.2, 1.0], p=[0.9, 0.1]), ignore, truth)
    return truth, predicted, int(classes), ignore


def by_definition(truth, predicted, classes, ignore):
    """Count TP, FP and FN pixel by pixel; scores of each class, None where it is in neither, and of all pixels."""
    pairs = [(t, p) for t, p in zip(truth.tolist(), predicted.tolist(), strict=True) if t != ignore]
    rows = []
    for k in range(classes):
        tp = sum(t == k and p == k for t, p in pairs)
        fp = sum(t != k and p == k for t, p in pairs)
        fn = sum(t == k and p != k for t, p in pairs)
        if k == ignore or tp + fp + fn == 0:
            rows.append(None)
            continue
        precision, recall = tp / (tp + fp) if tp + fp else 0, tp / (tp + fn) if tp + fn else 0
        rows.append((2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn), precision, recall))
    return rows, sum(t == p for t, p in pairs) / len(pairs) if pairs else None


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_score_of_random_cases_is_that_of_its_definition_and_of_scikit_learn(count):
    """Classes that occur in ground truth or prediction are scikit-learn's labels=, the ignored code is none of them.

    scikit-learn with labels=range(K) counts a class that occurs in neither as zero_division, pathseg leaves it out.
    """
    from sklearn.metrics import accuracy_score, jaccard_score, precision_recall_fscore_support

    rng = np.random.default_rng(3)
    empty = absent = 0
    for _ in range(count):
        truth, predicted, classes, ignore = random_case(rng)
        scores = Scores.of(confusion_matrix(truth, predicted, classes=classes, ignore=ignore), ignore)
        means = (scores.dice, scores.miou, scores.precision, scores.recall, scores.f1)
        rows, accuracy = by_definition(truth, predicted, classes, ignore)
        found = [one.dice if one.dice is None else (one.dice, one.iou, one.precision, one.recall)
                 for one in scores.classes]  # fmt: skip
        assert [row is None for row in found] == [row is None for row in rows]
        present = [k for k, row in enumerate(rows) if row is not None]
        values = np.array([rows[k] for k in present]).reshape(-1, 4)
        assert np.array([found[k] for k in present]).reshape(-1, 4) == pytest.approx(values, abs=1e-12)
        assert [scores.classes[k].f1 for k in present] == pytest.approx(values[:, 0].tolist(), abs=1e-12)
        if not present:
            empty += 1
            assert scores.accuracy is accuracy is None and means == (None,) * 5
            continue
        absent += len(present) < classes
        assert means == pytest.approx((*values.mean(axis=0), values[:, 0].mean()))
        assert scores.accuracy == pytest.approx(accuracy)
        pixels = (truth[truth != ignore], predicted[truth != ignore])
        theirs = precision_recall_fscore_support(*pixels, labels=present, average=None, zero_division=0)
        assert np.transpose(theirs[:3]) == pytest.approx(values[:, [2, 3, 0]], abs=1e-12)
        assert [scores.classes[k].pixels for k in present] == theirs[3].tolist()
        assert means[2:] == pytest.approx(
            precision_recall_fscore_support(*pixels, labels=present, average="macro", zero_division=0)[:3]
        )
        assert scores.miou == pytest.approx(jaccard_score(*pixels, labels=present, average="macro", zero_division=0))
        assert scores.accuracy == pytest.approx(accuracy_score(*pixels))
    assert empty > count / 40 and absent > count / 2


def test_scikit_learn_averages_over_absent_classes_only_where_they_are_listed():
    """With labels=None the means agree; with labels=range(K) only F1 does, and only by zero_division=nan."""
    from sklearn.metrics import precision_recall_fscore_support

    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])  # 3, 4 in neither; 2 predicted, not there
    scores = Scores.of(confusion_matrix(truth, predicted, classes=5))
    means = (scores.precision, scores.recall, scores.f1)
    assert means == pytest.approx((2 / 3, 1 / 2, 5 / 9))

    def theirs(**rules):
        return precision_recall_fscore_support(truth, predicted, average="macro", **rules)[:3]

    assert means == pytest.approx(theirs(zero_division=0))
    assert theirs(labels=range(5), zero_division=0) == pytest.approx((2 / 5, 3 / 10, 1 / 3))
    assert theirs(labels=range(5), zero_division=np.nan) == pytest.approx((2 / 3, 3 / 4, 5 / 9))


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
