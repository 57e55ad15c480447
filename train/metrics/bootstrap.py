"""Bootstrap intervals of scores over the test images or regions, and paired comparisons of two runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pathseg.train.metrics.object import ObjectScores, ObjectSums
from pathseg.train.runs.record import SplitScores

RESAMPLES = 2000
LEVEL = 0.95
EXACT_UNITS, EXACT_UNITS_TIED = 50, 13  # of scipy.stats.wilcoxon
SEED = 0  # every run is resampled with the same draws, so differences are paired and reports repeat
Samples = dict[str, np.ndarray]  # score -> (R,) float64, its value in each resample, nan where it is not defined


@dataclass(frozen=True)
class PairedDifference:
    """A pooled score of run B minus that of run A on the same images, its bootstrap interval, and a p-value.

    p: two-sided Wilcoxon signed-rank test over the score of each of the `units` (regions or images) that have one in
    both runs; None without any.
    """

    difference: float
    low: float
    high: float
    p: float | None
    units: int


def describe_method(*, by_region: bool) -> str:
    """Return a note for readers of the report: resampling unit, number of resamples, seed and assumptions."""
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


def bootstrap_scores(split: SplitScores, *, ignore: int | None) -> Samples:
    """Compute the pooled scores of `RESAMPLES` draws with replacement: accuracy, dice, miou and f1.

    Resampling units are `split.groups`: images of one slide or region are drawn together. With objects in every image
    also `object f1` and so on, by the names of `ObjectScores`, and `tuned object f1` and so on where a post-processing
    was chosen. Empty for a split without images.
    """
    if not split.images:
        return {}
    matrices = _group_matrices(split)  # (n, K, K)
    counts = _draw_counts(len(matrices))  # (R, n)
    samples = pooled_scores(np.tensordot(counts, matrices, 1), ignore)
    for prefix, by_image in _sums_by_image(split).items():
        if len(by_image) == split.images:
            drawn = pooled_object_scores(counts @ _group_sums(split, by_image))
            samples |= {f"{prefix} {name}": values for name, values in drawn.items()}
    return samples


def pooled_score(split: SplitScores, score: str) -> float | None:
    """Return a score of a whole split by its name in `bootstrap_scores`; None where it is not defined."""
    prefix, _, name = score.rpartition(" ")
    scores = {"object": split.pooled_objects, "tuned object": split.pooled_tuned_objects, "": split.scores}
    value: float | None = getattr(scores[prefix], name, None)
    return value


def pooled_scores(matrices: np.ndarray, ignore: int | None) -> Samples:
    """Compute accuracy, dice, miou and f1 of R confusion matrices (R, K, K) at once, each as `Scores` defines it."""
    matrices = matrices.astype(float)
    counted = np.arange(matrices.shape[1]) != (-1 if ignore is None else ignore)  # (K,)
    matrices[:, ~counted] = 0
    hit, true, found = np.einsum("rkk->rk", matrices), matrices.sum(axis=2), matrices.sum(axis=1)  # (R, K) each
    present = counted & (true + found > 0)
    dice = _mean(_ratio(2 * hit, true + found), present)  # (R,)
    return {
        "accuracy": _ratio(hit.sum(axis=1), true.sum(axis=1), empty=np.nan),
        "dice": dice,
        "miou": _mean(_ratio(hit, true + found - hit), present),
        "f1": dice,  # of each class F1 is Dice
    }


def pooled_object_scores(rows: np.ndarray) -> Samples:
    """Compute `ObjectSums.scores` of R sums (R, 13) at once, columns in the order of its fields; nan for None."""
    fields = dict(zip(ObjectSums.__dataclass_fields__, rows.astype(float).T, strict=True))
    tp, fp, fn = (fields[name] for name in ("tp", "fp", "fn"))
    count = 2 * tp + fp + fn

    def halves(weighted: str, areas: str) -> np.ndarray:
        own, true = (
            fields[f"{which}_{weighted}"] / np.maximum(1, fields[areas.format(which)])
            for which in ("predicted", "true")
        )
        return (own + true) / 2

    f1 = _ratio(2 * tp, count, empty=1.0)
    dice, hausdorff = halves("dice", "{}_px"), halves("hausdorff", "measured_{}_px")
    dice = np.where(count == 0, 1.0, dice)
    hausdorff = np.where(fields["images"] > fields["left_out"], hausdorff, np.nan)
    return dict(zip(ObjectScores._fields, (tp, fp, fn, f1, dice, hausdorff), strict=True))


def interval(samples: np.ndarray) -> tuple[float, float] | None:
    """Return the percentile interval of level `LEVEL` of the defined samples (R,); None if none is defined."""
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def paired_difference(
    a: SplitScores,
    b: SplitScores,
    samples_a: Samples,
    samples_b: Samples,
    *,
    score: str = "dice",
    ignore: int | None = None,
) -> PairedDifference | None:
    """Compare a score of run B with that of run A on one test split; samples are those of `bootstrap_scores`.

    score: one of its names. None unless both runs have scores and samples of the same images in the same regions (a run
    that did not record the regions was resampled by image, so its samples are not paired with those of a run that did).
    """
    if a.groups != b.groups or score not in samples_a or score not in samples_b:
        return None
    bounds = interval(samples_b[score] - samples_a[score])
    before, after = pooled_score(a, score), pooled_score(b, score)
    if before is None or after is None or bounds is None:
        return None
    left, right = (_unit_scores(split, score, ignore) for split in (a, b))  # (n,)
    differences = (right - left)[~np.isnan(right - left)]
    return PairedDifference(after - before, *bounds, signed_rank_p(differences), len(differences))


def _unit_scores(split: SplitScores, score: str, ignore: int | None) -> np.ndarray:
    """Return a score of each region or image, (n,) in the order of `split.groups`; nan where it is not defined."""
    prefix, _, name = score.rpartition(" ")
    if not prefix:
        return pooled_scores(_group_matrices(split), ignore)[name]
    return pooled_object_scores(_group_sums(split, _sums_by_image(split)[prefix]))[name]


def _sums_by_image(split: SplitScores) -> dict[str, dict[str, ObjectSums]]:
    return {"object": split.object_sums, "tuned object": split.tuned_object_sums}


def _group_sums(split: SplitScores, by_image: dict[str, ObjectSums]) -> np.ndarray:
    """Return the object sums of each region or image, (n, 13), in the order of `split.groups`."""
    sums = (ObjectSums.total(by_image[name] for name in names) for names in split.groups)
    return np.array([one.values() for one in sums], float)


def _group_matrices(split: SplitScores) -> np.ndarray:
    """Return the confusion matrix of each region or image, (n, K, K), in the order of `split.groups`."""
    return np.array([np.sum([split.matrices[name] for name in names], axis=0) for names in split.groups])


def signed_rank_p(differences: np.ndarray) -> float | None:
    """Return the two-sided p of Wilcoxon's signed-rank test; 1 where all differences (n,) are 0, None without any.

    The p of `scipy.stats.wilcoxon` with its defaults: zeros are left out, tied ranks averaged; p is exact for up to
    `EXACT_UNITS` differences, `EXACT_UNITS_TIED` where some are tied or 0, and else that of the normal approximation.
    Written out because loading scipy.stats takes longer than the rest of a report, and a call of it 5 ms.
    """
    if not len(differences):
        return None
    kept = differences[differences != 0]
    if not len(kept):
        return 1.0
    _, place, ties = np.unique(np.abs(kept), return_inverse=True, return_counts=True)
    ranks = (2 * np.cumsum(ties) - ties + 1)[place]  # (n,) twice the mean of the tied ranks, so that they are integers
    positive, total = ranks[kept > 0].sum(), ranks.sum()
    distinct = len(ties) == len(differences)
    if len(differences) <= (EXACT_UNITS if distinct else EXACT_UNITS_TIED):
        chances = np.zeros(total + 1)  # of each sum of the positive ranks, where every sign is a toss of a coin
        chances[0] = 1.0
        for rank in ranks:
            chances = (chances + np.roll(chances, rank)) / 2
        return min(1.0, 2 * float(min(chances[: positive + 1].sum(), chances[positive:].sum())))
    from scipy.special import ndtr

    n = len(kept)
    deviation = math.sqrt((n * (n + 1) * (2 * n + 1) - (ties**3 - ties).sum() / 2) / 24)
    return 2 * float(ndtr(-abs(positive / 2 - n * (n + 1) / 4) / deviation))


def _draw_counts(units: int) -> np.ndarray:
    """Return how often each unit is drawn in each resample, (R, units)."""
    return np.random.default_rng(SEED).multinomial(units, np.full(units, 1 / units), size=RESAMPLES)


def _ratio(above: np.ndarray, below: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Divide element by element, `empty` where the divisor is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), empty), where=below > 0)


def _mean(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the means (R,) of values (R, K) over the classes that are present, nan where none is."""
    return _ratio((values * present).sum(axis=1), present.sum(axis=1), empty=np.nan)
