"""The scores that the PathSegDiff paper reports (its Tables 2 to 5), for comparison with the runs.

Its F1 and Dice follow no single definition: F1 lies below Dice in some rows and above it in others, and VGG16-FCN8 in
Table 2 has a Dice below its mIoU, which no mean over the same classes and pixels gives.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "PathSegDiff (Danisetty et al., April 2025)"
PAPER_LINK = "https://arxiv.org/abs/2504.06950"


@dataclass(frozen=True)
class PaperScores:
    """The scores of one method on the test images of a data set, 0..1; None where the paper has a dash.

    table: number in the paper. split: the test split of these images, None for the one that results are quoted on.
    images: of that split in the official release, None where the paper counts patches.
    """

    dataset: str
    table: int
    split: str | None
    images: int | None
    method: str
    accuracy: float | None
    dice: float | None
    miou: float | None
    f1: float | None


@dataclass(frozen=True)
class PaperIou:
    """The IoU of one method for four tissue classes, and their mean as printed."""

    dataset: str
    table: int
    method: str
    tumor: float
    stroma: float
    inflammatory: float
    necrosis: float
    mean: float


@dataclass(frozen=True)
class PaperRate:
    """The validation scores of PathSegDiff at one learning rate."""

    dataset: str
    table: int
    lr: float
    accuracy: float
    miou: float
    dice: float


# Table 2: BCSS, the regions of the held-out institutes. Table 4: GlaS, testB.
SCORES = (
    PaperScores("bcss", 2, None, None, "HIPT", 0.619, 0.353, 0.321, 0.170),
    PaperScores("bcss", 2, None, None, "Res-UNet", 0.751, 0.529, 0.524, 0.658),
    PaperScores("bcss", 2, None, None, "VGG16-FCN8", 0.786, 0.567, 0.577, 0.724),
    PaperScores("bcss", 2, None, None, "PathSegDiff-uncond", 0.815, 0.757, 0.616, 0.757),
    PaperScores("bcss", 2, None, None, "PathSegDiff", 0.826, 0.781, 0.647, 0.780),
    PaperScores("glas", 4, "testB", 20, "HIPT", 0.745, 0.742, 0.591, 0.374),
    PaperScores("glas", 4, "testB", 20, "Res-UNet", 0.778, 0.771, 0.630, 0.765),
    PaperScores("glas", 4, "testB", 20, "CUMedVision2", None, 0.868, None, 0.887),
    PaperScores("glas", 4, "testB", 20, "DDPMSeg", None, None, 0.654, 0.759),
    PaperScores("glas", 4, "testB", 20, "CIMD", None, None, 0.569, 0.692),
    PaperScores("glas", 4, "testB", 20, "MedSegDiff", None, None, 0.778, 0.852),
    PaperScores("glas", 4, "testB", 20, "PathSegDiff-uncond", 0.896, 0.893, 0.807, 0.890),
    PaperScores("glas", 4, "testB", 20, "PathSegDiff", 0.900, 0.896, 0.812, 0.894),
)

# Table 3: BCSS; the paper's TUM, STR, LYM, NEC.
IOUS = (
    PaperIou("bcss", 3, "HistoSegNet", 0.3314, 0.4646, 0.2905, 0.0191, 0.2764),
    PaperIou("bcss", 3, "SEAM", 0.7437, 0.6216, 0.5079, 0.4843, 0.5894),
    PaperIou("bcss", 3, "C-CAM", 0.7557, 0.6796, 0.3100, 0.4943, 0.5599),
    PaperIou("bcss", 3, "WSSS-Tissue", 0.7798, 0.7295, 0.6098, 0.6687, 0.6970),
    PaperIou("bcss", 3, "PistoSeg", 0.8110, 0.7504, 0.6184, 0.6422, 0.7055),
    PaperIou("bcss", 3, "PathSegDiff", 0.8220, 0.6998, 0.6205, 0.6976, 0.7100),
)

# Table 5: BCSS, the learning rate of the head, on validation images.
RATES = (
    PaperRate("bcss", 5, 1e-3, 0.819, 0.632, 0.769),
    PaperRate("bcss", 5, 1e-4, 0.826, 0.646, 0.780),
    PaperRate("bcss", 5, 1e-5, 0.821, 0.638, 0.774),
)


def paper_scores(dataset: str, split: str, *, quoted: str) -> tuple[PaperScores, ...]:
    """Return what the paper reports on a test split of a data set, in its order; nothing where it reports nothing.

    quoted: the test split that results are quoted on.
    """
    return tuple(row for row in SCORES if row.dataset == dataset and (row.split or quoted) == split)
