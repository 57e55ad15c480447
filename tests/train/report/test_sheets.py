"""Sheets of test images are real JPEG files, the same bytes each time; panels lie where their columns say."""

import io

import numpy as np
import pytest
from PIL import Image

from pathseg.train.report.sheets import GAP, PANEL, sheet

LEGEND = [("gland", "#009E73"), ("false gland", "#E69F00")]


def panels(side: int = 32) -> list[np.ndarray]:
    return [np.full((side, 2 * side, 3), value, np.uint8) for value in (0, 120, 250)]


def decoded(jpeg: bytes) -> Image.Image:
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert picture.format == "JPEG"
        picture.load()
        return picture


def size_of(jpeg: bytes) -> tuple[int, int]:
    return decoded(jpeg).size


def test_panels_lie_beside_each_other_in_the_order_of_their_columns():
    picture = np.asarray(decoded(sheet([("a", panels())], "xyz", legend=LEGEND, title="t")).convert("L"))
    black = np.flatnonzero((picture < 10).sum(axis=0) > 100)  # columns of the first panel, 280 x 140 px
    assert len(black) == pytest.approx(PANEL, abs=2) and (np.diff(black) == 1).all()
    gray = np.flatnonzero((abs(picture.astype(int) - 120) < 5).sum(axis=0) > 100)
    assert len(gray) == pytest.approx(PANEL, abs=2) and gray[0] - black[-1] == pytest.approx(GAP, abs=2)


def test_the_legend_has_its_colours():
    picture = np.asarray(decoded(sheet([("a", panels())], "xyz", legend=LEGEND, title="t"))).astype(int)
    for colour in ((0, 158, 115), (230, 159, 0)):  # of LEGEND
        assert (abs(picture - colour).max(axis=2) < 8).sum() > 300


def test_it_is_the_same_bytes_again_and_another_with_another_pixel():
    changed = panels()
    changed[0][3, 4] = 255
    one, again, other = (
        sheet([("a", some)], "xyz", legend=LEGEND, title="t") for some in (panels(), panels(), changed)
    )
    assert one == again != other


def test_it_grows_with_its_rows():
    one, two = (size_of(sheet([("a", panels())] * n, "xyz", legend=LEGEND, title="t")) for n in (1, 2))
    assert two[1] > one[1] and two[0] == one[0]


def test_a_legend_that_is_too_long_for_a_line_takes_several():
    few, many = (size_of(sheet([("a", panels())], "xyz", legend=LEGEND * n, title="t")) for n in (1, 9))
    assert many[1] > few[1] and many[0] == few[0]


def test_panels_may_be_of_two_sizes_or_missing():
    rows = [("a", [None, panels(32)[0], panels(64)[0]])]
    assert size_of(sheet(rows, "xyz", legend=(), title="two stores"))


def test_the_name_of_a_region_fits_beside_its_row():
    """In lines; in one it is longer than a row is high."""
    name = "TCGA-OL-A5D6-DX1_xmin115108_ymin40554_MPP-0.2500_y0000_x0000_v0"
    rows = [(name, [np.zeros((64, 96, 3), np.uint8)] * 3)]
    columns = ("image", "ground truth", "prediction")
    picture = np.asarray(decoded(sheet(rows, columns, legend=LEGEND, title="title")).convert("L"))
    black = np.flatnonzero((picture < 10).sum(axis=1) > 600)  # rows of the panels
    beside = picture[:, : np.flatnonzero((picture < 10).sum(axis=0) > 100)[0] - 2]
    label = np.flatnonzero((beside[black[0] - 12 : black[-1] + 30] < 100).any(axis=1)) + black[0] - 12
    assert len(label) and black[0] <= label[0] and label[-1] <= black[-1]


@pytest.mark.parametrize("name", [r"$\frac{$", "a\x1b[2J\u202eb", "x" * 2000, "two\nlines", "腺", ""])
def test_any_name_can_be_drawn(name):
    assert size_of(sheet([(name, panels())], (name, "b", "c"), legend=[(name, "#009E73")], title=name))
