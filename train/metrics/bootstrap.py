"""How sure a score is: bootstrap intervals over the test images or regions, and whether two runs differ."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from pathseg.train.metrics.object import ObjectScores, ObjectSums
from pathseg.train.runs.split_scores import PartScores

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0  # every run is resampled with the same draws, so differences are paired and reports repeat
Samples = dict[str, np.ndarray]  # score -> (R,) its value in each resample, nan where it has none


@dataclass(frozen=True)
class Paired:
    """Run B against run A on the same images: difference of the pooled Dice (B - A), its interval, and a p-value.

    p: two-sided Wilcoxon signed-rank test over the Dice of each of the `units`, regions or images; None where none
    has two of them.
    """

    difference: float
    low: float
    high: float
    p: float | None
    units: int


def method(*, by_region: bool) -> str:
    """How the intervals are made, for a note: what is drawn and what they show."""
    units = "regions" if by_region else "images"
    why = (
        "The images of one slide or region are drawn together, because they are not independent."
        if by_region
        else "Images are taken as independent: where several are of one slide or patient, intervals are too small."
    )
    return (
        f"{LEVEL:.0%} intervals: percentile bootstrap over the test {units}, {RESAMPLES:,} resamples, seed {SEED}; the "
        f"pixels or objects of the drawn {units} are pooled before the score is taken. {why} They show how far the "
        f"choice of test {units} matters, not the seed or the training images."
    )


def resamples(part: PartScores, ignore: int | None) -> Samples:
    """Pooled scores of `RESAMPLES` draws of as many regions or images, with replacement: accuracy, dice, miou, f1.

    What is drawn are `part.groups`: patches of one region stay together. Where there are objects also `object f1`
    and so on, as `ObjectScores` names them. Empty where the run did not record the confusion matrix of each image.
    """
    matrices = _by_group(part)  # (n, K, K)
    if matrices is None:
        return {}
    counts = _draws(len(matrices))  # (R, n)
    found = pooled_scores(np.tensordot(counts, matrices, 1), ignore)
    if len(part.objects) == part.images:
        sums = (ObjectSums.total(part.objects[name] for name in names) for names in part.groups)
        rows = np.array([dataclasses.astuple(one) for one in sums], float)  # (n, 13)
        scores = np.array([ObjectSums(*row).scores() for row in counts @ rows], float)  # None becomes nan
        found |= {f"object {name}": scores[:, i] for i, name in enumerate(ObjectScores._fields)}
    return found


def pooled_scores(matrices: np.ndarray, ignore: int | None) -> Samples:
    """accuracy, dice, miou, f1 of many confusion matrices (R, K, K) at once, each as `metrics.Scores` defines it."""
    matrices = matrices.astype(float)
    counted = np.arange(matrices.shape[1]) != (-1 if ignore is None else ignore)
    matrices[:, ~counted] = 0
    hit, true, found = np.einsum("rkk->rk", matrices), matrices.sum(axis=2), matrices.sum(axis=1)
    there = counted & (true + found > 0)
    precision, recall = (_mean(_ratio(hit, side), there) for side in (found, true))
    return {
        "accuracy": _ratio(hit.sum(axis=1), true.sum(axis=1), empty=np.nan),
        "dice": _mean(_ratio(2 * hit, true + found), there),
        "miou": _mean(_ratio(hit, true + found - hit), there),
        "f1": np.where(np.isnan(precision), np.nan, _ratio(2 * precision * recall, precision + recall)),
    }


def interval(samples: np.ndarray) -> tuple[float, float] | None:
    """The middle `LEVEL` of the values that are there; None without any."""
    there = samples[~np.isnan(samples)]
    if not len(there):
        return None
    low, high = np.percentile(there, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def paired(
    a: PartScores, b: PartScores, samples_a: Samples, samples_b: Samples, *, ignore: int | None = None
) -> Paired | None:
    """Compare two runs on one test part; None unless both have scores and samples of the very same images.

    None also where one knows the images' regions and the other does not: they were then not drawn alike.
    """
    if a.groups != b.groups or not samples_a or not samples_b:
        return None
    apart = interval(samples_b["dice"] - samples_a["dice"])
    if a.scores.dice is None or b.scores.dice is None or apart is None:
        return None
    left, right = (pooled_scores(_by_group(part), ignore)["dice"] for part in (a, b))  # (n,)
    differences = (right - left)[~np.isnan(right - left)]
    return Paired(b.scores.dice - a.scores.dice, *apart, _signed_rank(differences), len(differences))


def _by_group(part: PartScores) -> np.ndarray | None:
    """(n, K, K) the confusion matrix of each region or image; None where the run did not record them."""
    if not part.matrices or len(part.matrices) != part.images:
        return None
    return np.stack([sum(part.matrices[name] for name in names) for names in part.groups])


def _signed_rank(differences: np.ndarray) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where all differences are 0, None where there are none."""
    if not len(differences):
        return None
    if not differences.any():
        return 1.0
    from scipy.stats import wilcoxon  # half a second to import

    return float(wilcoxon(differences).pvalue)


def _draws(images: int) -> np.ndarray:
    """(R, images) how often each image is drawn."""
    return np.random.default_rng(SEED).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)


def _ratio(above: np.ndarray, below: np.ndarray, empty: float = 0.0) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), empty), where=below > 0)


def _mean(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(R, K) -> (R,) means over the classes that are there, nan where none is."""
    return _ratio((values * there).sum(axis=1), there.sum(axis=1), empty=np.nan)
