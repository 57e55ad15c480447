"""The class table of BCSS: each of the 22 codes of its masks and its class among the paper's five."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pathseg.extract.datasets.bcss_regions import IGNORED

CLASSES = ("tumor", "stroma", "inflammatory", "necrosis", "other")
CODES: dict[int, tuple[str, str | None]] = {  # all of gtruth_codes.tsv: code -> name, class; None = ignored
    0: ("outside_roi", None),
    1: ("tumor", "tumor"),
    2: ("stroma", "stroma"),
    3: ("lymphocytic_infiltrate", "inflammatory"),
    4: ("necrosis_or_debris", "necrosis"),
    5: ("glandular_secretions", "other"),
    6: ("blood", "other"),
    7: ("exclude", "other"),
    8: ("metaplasia_NOS", "other"),
    9: ("fat", "other"),
    10: ("plasma_cells", "inflammatory"),
    11: ("other_immune_infiltrate", "inflammatory"),
    12: ("mucoid_material", "other"),
    13: ("normal_acinus_or_duct", "other"),
    14: ("lymphatics", "other"),
    15: ("undetermined", "other"),
    16: ("nerve", "other"),
    17: ("skin_adnexa", "other"),
    18: ("blood_vessel", "other"),
    19: ("angioinvasion", "tumor"),
    20: ("dcis", "tumor"),
    21: ("other", "other"),
}


def class_codes(raw: np.ndarray, *, path: Path) -> np.ndarray:
    """Map codes of gtruth_codes.tsv to indices of CLASSES, and ignored ones to IGNORED: (H, W) uint8.

    Raises ValueError, naming the file, for a code without a row in CODES.
    """
    if unknown := sorted(set(np.unique(raw).tolist()) - CODES.keys()):
        raise ValueError(
            f"{path}: code {unknown[0]} has no row in the class table, which knows the codes 0-{max(CODES)} of "
            "gtruth_codes.tsv; get the official mask"
        )
    table = np.array([IGNORED if name is None else CLASSES.index(name) for _, name in CODES.values()], np.uint8)
    return table[raw]
