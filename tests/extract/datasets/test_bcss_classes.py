import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathseg.extract.datasets.bcss_classes import CLASSES, CODES, class_codes
from pathseg.extract.datasets.image_files import read_mask

OFFICIAL = Path(__file__).parents[4] / "shared" / "data" / "bcss"
needs_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official BCSS masks (../shared/data) are absent")
GROUPS = {  # the paper's five classes, as sets of codes
    "tumor": {1, 19, 20},
    "stroma": {2},
    "inflammatory": {3, 10, 11},
    "necrosis": {4},
    "other": {5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 21},
}


@pytest.mark.parametrize("code", range(22))
def test_every_code_has_its_class(code):
    found = class_codes(np.full((1, 1), code, np.uint8), path=Path("m.png")).item()
    expected = next((name for name, codes in GROUPS.items() if code in codes), None)
    assert found == (255 if expected is None else CLASSES.index(expected))


def test_only_what_lies_outside_is_ignored():
    assert set(range(22)) - set().union(*GROUPS.values()) == {0}


@pytest.mark.parametrize("code", [22, 255])
def test_a_code_without_a_row_raises_and_names_the_file(code):
    with pytest.raises(ValueError, match=rf"m\.png: code {code} has no row"):
        class_codes(np.array([[1, code]], np.uint8), path=Path("m.png"))


@needs_official
def test_the_codes_are_those_of_the_official_table():
    with (OFFICIAL / "gtruth_codes.tsv").open() as file:
        official = {int(row["GT_code"]): row["label"] for row in csv.DictReader(file, delimiter="\t")}
    assert {code: name for code, (name, _) in CODES.items()} == official


@needs_official
def test_the_official_masks_have_the_shares_of_their_histograms():
    for path in sorted((OFFICIAL / "masks").glob("*.png")):
        with Image.open(path) as file:
            counted = file.histogram()
        codes = class_codes(read_mask(path), path=path)
        for name, members in GROUPS.items():
            assert np.count_nonzero(codes == CLASSES.index(name)) == sum(counted[code] for code in members)
        assert np.count_nonzero(codes == 255) == counted[0]


@needs_official
def test_the_readme_says_the_shares_of_the_classes_in_the_official_masks():
    counts = np.zeros(256, int)
    for path in sorted((OFFICIAL / "masks").glob("*.png")):
        with Image.open(path) as file:
            counts += file.histogram()
    said = " ".join((Path(__file__).parents[3] / "extract" / "README.md").read_text(encoding="utf-8").split())
    shares = {name: sum(counts[code] for code in members) / counts[1:].sum() for name, members in GROUPS.items()}
    assert ", ".join(f"{name} {share * 100:.1f} %" for name, share in shares.items()) in said
    assert f"{counts[1:].sum() / 1e6:.1f} megapixels, none of code 0" in said and counts[0] == 0
