"""Pixel metrics from one confusion matrix: accuracy, Dice, IoU, precision, recall and F1, per class and as means."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

DEFINITIONS: dict[str, str] = {
    "accuracy": (
        "share of all counted pixels whose predicted class is the true one (micro: every pixel of every test image "
        "weighs the same, background included; where test images are patches that overlap, a pixel counts once in each)"
    ),
    "dice": (
        "unweighted (macro) mean over the classes, background included, of 2 TP / (2 TP + FP + FN), "
        "each class's pixels pooled over all images of the test split before dividing"
    ),
    "miou": "unweighted (macro) mean over the classes, background included, of TP / (TP + FP + FN), pooled like Dice",
    "precision": "unweighted (macro) mean over the classes of TP / (TP + FP); 0 for a class that is never predicted",
    "recall": (
        "unweighted (macro) mean over the classes of TP / (TP + FN); 0 for a class that is predicted "
        "but not in the ground truth"
    ),
    "f1": (
        "macro F1 as scikit-learn defines it: unweighted mean over the classes of 2 P R / (P + R), the harmonic mean "
        "of the class's own precision and recall; F1 and Dice of one class are the same number, so this equals the "
        "mean Dice above (pathseg 0.1.0 printed the F1 of means under this name)"
    ),
    "f1_of_means": (
        "F1 of means: the harmonic mean of macro precision and macro recall, 2 P R / (P + R) of the two means above; "
        "never below the macro F1 where both are defined over the same classes, and not comparable with it"
    ),
    "constant": (
        "the score of predicting everywhere the class that is most frequent in the training pixels: "
        "the score of a model that has learned nothing from the image"
    ),
    "counted pixels": (
        "all pixels of the test images except those whose true code is the ignored one; a class that is in neither "
        "ground truth nor prediction has no value and is left out of the means, one that is predicted but absent "
        "scores 0 (scikit-learn's macro means with zero_division=0 over the labels that occur, its default)"
    ),
}


def confusion_matrix(
    ground_truth: np.ndarray, predicted: np.ndarray, *, classes: int, ignore: int | None = None
) -> np.ndarray:
    """Return the confusion matrix of all pixels, (K, K) int64, rows = ground truth, columns = prediction.

    ground_truth, predicted: integer arrays of one shape with codes 0..classes-1; pixels whose ground truth is
    `ignore` are left out. The matrices of several images add up to that of all their pixels. Raises ValueError on
    differing shapes and on a code out of range (`ignore` is the only exception, and only in the ground truth).
    """
    if ground_truth.shape != predicted.shape:
        raise ValueError(
            f"ground truth has shape {ground_truth.shape}, prediction {predicted.shape}; they must be the same"
        )
    true, found = ground_truth.ravel(), predicted.ravel()
    if ignore is not None:
        counted = true != ignore
        true, found = true[counted], found[counted]
    for name, codes in (("ground truth", true), ("prediction", found)):
        if codes.size and (codes.min() < 0 or codes.max() >= classes):
            wrong = codes[(codes < 0) | (codes >= classes)][0]
            raise ValueError(
                f"{name} holds class code {wrong}, but {classes} classes have the codes 0-{classes - 1}"
                f"{'' if ignore is None else f' (ignored: {ignore})'}; check the class table of the data set"
            )
    pairs = true.astype(np.int64) * classes + found
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)  # (K, K)


def constant_prediction(matrix: np.ndarray, code: int) -> np.ndarray:
    """Return the confusion matrix of predicting class `code` for every pixel of `matrix`, (K, K) int64."""
    constant = np.zeros_like(matrix)
    constant[:, code] = matrix.sum(axis=1)
    return constant


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class against the rest, None for a class in neither ground truth nor prediction.

    pixels = TP + FN, the class's pixels in the ground truth. dice = 2 TP / (2 TP + FP + FN), iou = TP / (TP + FP + FN),
    precision = TP / (TP + FP), recall = TP / (TP + FN), f1 = 2 P R / (P + R), which for one class equals dice;
    a quotient 0 / 0 of a class that is present on one side is 0.
    """

    pixels: int
    dice: float | None
    iou: float | None
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Scores:
    """The pixel scores of a prediction, in 0..1; `DEFINITIONS` defines each mean.

    accuracy is micro: trace / sum over all counted pixels. dice, miou, precision and recall are macro: unweighted
    means over the classes that have a value, background included, on pixels pooled over the images given. f1 is
    scikit-learn's macro F1, the mean of each class's F1, which equals the mean Dice; f1_of_means is the harmonic mean
    of macro precision and macro recall. None where nothing was counted.
    """

    pixels: int
    accuracy: float | None
    dice: float | None
    miou: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    classes: tuple[ClassScores, ...]
    f1_of_means: float | None = None

    @classmethod
    def of(cls, matrix: np.ndarray, ignore: int | None = None) -> Scores:
        """Compute the scores of a confusion matrix (K, K), rows = ground truth. Raises ValueError if it is not square.

        Where `ignore` is itself one of the codes 0..K-1, its true pixels do not count and it has no scores; a counted
        pixel that is predicted as the ignored class is still a missed pixel of its true class.
        """
        matrix = np.asarray(matrix, dtype=np.int64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"a confusion matrix is square, got shape {matrix.shape}; make it with confusion_matrix()")
        if ignore is not None and 0 <= ignore < len(matrix):
            matrix = matrix.copy()
            matrix[ignore] = 0
        classes = tuple(_class_scores(matrix, k, counted=k != ignore) for k in range(len(matrix)))
        dice, precision, recall = (_mean(classes, name) for name in ("dice", "precision", "recall"))
        total = int(matrix.sum())
        return cls(
            pixels=total,
            accuracy=float(np.trace(matrix) / total) if total else None,
            dice=dice,
            miou=_mean(classes, "iou"),
            precision=precision,
            recall=recall,
            f1=dice,  # F1 and Dice of each class are the same number
            classes=classes,
            f1_of_means=_harmonic(precision, recall),
        )

    def from_release_1(self) -> Scores:
        """Convert scores of pathseg 0.1.0, whose f1 was the F1 of means."""
        return dataclasses.replace(self, f1=self.dice, f1_of_means=self.f1)


def _class_scores(matrix: np.ndarray, k: int, *, counted: bool) -> ClassScores:
    hit, true, found = int(matrix[k, k]), int(matrix[k].sum()), int(matrix[:, k].sum())
    if not counted or true + found == 0:
        return ClassScores(true, None, None, None, None, None)
    precision, recall = (hit / found if found else 0.0), (hit / true if true else 0.0)
    dice, iou = 2 * hit / (true + found), hit / (true + found - hit)
    return ClassScores(true, dice, iou, precision, recall, _harmonic(precision, recall))


def _mean(classes: tuple[ClassScores, ...], name: str) -> float | None:
    values = [value for one in classes if (value := getattr(one, name)) is not None]
    return sum(values) / len(values) if values else None


def _harmonic(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b else 0.0
