"""Pictures: which pixels get which colour, and that figures are real PNG files."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pathseg.train.report.figures import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    NEUTRAL,
    PALETTE,
    WRONG,
    Comparison,
    Legend,
    class_colours,
    comparison,
    error_shares,
    learning_curves,
    legend,
    panels,
    sheet,
)  # fmt: skip
from pathseg.train.report.image_encoding import jpeg

GLAND = ("background", "gland")
TISSUES = ("outside", "tumor", "stroma")


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def square(y: int, x: int, side: int = 20) -> np.ndarray:
    codes = np.zeros((64, 96), np.uint8)
    codes[y : y + side, x : x + side] = 1
    return codes


def pinkish() -> np.ndarray:
    return np.full((64, 96, 3), (220, 160, 200), np.uint8)


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        picture.load()
        return picture.size


HISTORY = [
    {"epoch": e, "train_loss": 1 / e, "val_loss": 1.1 / e, "val_dice": 0.2 * e, "val_miou": 0.1 * e} for e in (1, 2, 3)
]


def test_background_is_gray_and_classes_follow_the_palette():
    assert class_colours(("background", "a", "b")) == (NEUTRAL, PALETTE[0], PALETTE[1])


def test_an_ignored_class_takes_no_colour_of_the_palette():
    assert class_colours(TISSUES, ignore=0) == (NEUTRAL, PALETTE[0], PALETTE[1])


def test_a_ninth_class_begins_the_palette_again():
    assert class_colours(tuple("abcdefghi"))[8] == PALETTE[0]


def test_palette_colours_differ():
    assert len({*PALETTE, NEUTRAL}) == len(PALETTE) + 1


def test_there_are_four_panels_of_one_size():
    made = panels(pinkish(), square(5, 5), square(5, 5), classes=GLAND, ignore=None)
    assert [(one.shape, one.dtype) for one in made] == [((64, 96, 3), np.uint8)] * 4


def test_the_first_panel_is_the_tissue_itself():
    tissue = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    assert (panels(tissue, square(5, 5), square(5, 5), classes=GLAND, ignore=None)[0] == tissue).all()


def test_background_of_the_overlays_is_left_as_it_is():
    _, truth, _, _ = panels(pinkish(), square(5, 5), square(40, 60), classes=GLAND, ignore=None)
    assert (truth[45, 65] == (220, 160, 200)).all()


def test_the_outline_has_the_colour_of_the_class():
    _, truth, predicted, _ = panels(pinkish(), square(5, 5), square(40, 60), classes=GLAND, ignore=None)
    assert (truth[5, 15] == rgb(PALETTE[0])).all() and (predicted[40, 70] == rgb(PALETTE[0])).all()


def test_the_inside_of_a_class_is_tinted_but_the_tissue_stays_visible():
    light, dark = pinkish(), pinkish() // 2
    inside = [panels(one, square(5, 5), square(5, 5), classes=GLAND, ignore=None)[1][15, 15] for one in (light, dark)]
    assert (inside[0] != (220, 160, 200)).any() and (inside[0] > inside[1]).all()


def test_a_false_and_a_missed_gland_have_their_own_colours():
    errors = panels(pinkish(), square(5, 5), square(40, 60), classes=GLAND, ignore=None)[3].astype(int)
    for (y, x), colour in {(50, 70): FALSE_POSITIVE, (15, 15): FALSE_NEGATIVE}.items():
        assert np.abs(errors[y, x] - rgb(colour)).max() < 40


def test_right_pixels_of_the_error_map_are_gray():
    errors = panels(pinkish(), square(5, 5), square(5, 5), classes=GLAND, ignore=None)[3]
    assert (errors == errors[..., :1]).all()


def test_with_several_classes_wrong_pixels_have_one_colour():
    truth, predicted = square(5, 5) + 1, square(40, 60) + 1
    assert legend(TISSUES, 0).errors == (("wrong class", WRONG),)
    errors = panels(pinkish(), truth, predicted, classes=TISSUES, ignore=0)[3].astype(int)
    assert np.abs(errors[[15, 50], [15, 70]] - rgb(WRONG)).max() < 40


def test_ignored_pixels_are_never_errors():
    truth = np.zeros((64, 96), np.uint8)
    errors = panels(pinkish(), truth, square(5, 5) + 1, classes=TISSUES, ignore=0)[3]
    assert (errors == errors[0, 0]).all()


def test_the_legend_of_glands_names_both_errors():
    assert legend(GLAND, None).classes == (("gland", PALETTE[0]),)
    assert legend(GLAND, None).errors == (("false gland", FALSE_POSITIVE), ("missed gland", FALSE_NEGATIVE))


def test_the_legend_names_what_is_not_counted():
    assert legend(GLAND, 255).classes[-1] == ("not counted", NEUTRAL)


def test_error_shares_are_of_the_counted_pixels():
    truth = np.array([[0, 0, 1, 1, 255, 255]])
    predicted = np.array([[1, 0, 0, 0, 0, 1]])
    assert error_shares(truth, predicted, classes=GLAND, ignore=255) == (1 / 4, 2 / 4)


def test_error_shares_of_nothing_counted_are_zero():
    assert error_shares(np.full((2, 2), 255), np.zeros((2, 2)), classes=GLAND, ignore=255) == (0, 0)


def test_a_large_image_is_shrunk_and_keeps_its_shape():
    image, codes = np.zeros((800, 1600, 3), np.uint8), np.zeros((800, 1600), np.uint8)
    assert panels(image, codes, codes, classes=GLAND, ignore=None, longest_px=100)[0].shape == (50, 100, 3)


def test_a_prediction_of_another_size_raises():
    with pytest.raises(ValueError, match=r"must have one size; this prediction was made from another store"):
        panels(pinkish(), square(5, 5), np.zeros((32, 32), np.uint8), classes=GLAND, ignore=None)


def test_jpeg_is_a_jpeg_of_the_same_size():
    with Image.open(io.BytesIO(jpeg(pinkish()))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (96, 64))


def test_learning_curves_are_a_png():
    width, height = size_of(learning_curves(HISTORY, 2, "run"))
    assert width > 2 * height


def test_learning_curves_are_the_same_bytes_again():
    assert learning_curves(HISTORY, 2, "run") == learning_curves(HISTORY, 2, "run")


def test_learning_curves_move_with_the_best_epoch():
    assert learning_curves(HISTORY, 2, "run") != learning_curves(HISTORY, 3, "run")


def test_learning_curves_of_one_epoch_and_missing_values_can_be_drawn():
    line = {"epoch": 1, "train_loss": None, "val_loss": 0.5, "val_dice": None, "val_miou": None}
    assert size_of(learning_curves([line], 1, "run"))


def test_the_comparison_grows_with_the_runs():
    lines = [Comparison(f"run {i}", 0.5, (0.4, None)) for i in range(12)]
    classes = [("background", NEUTRAL), ("gland", PALETTE[0])]
    few, many = (
        size_of(comparison(some, classes, constant=0.3, cited=("paper", 0.9), title="Dice"))
        for some in (lines[:2], lines)
    )
    assert many[1] > few[1] and many[0] == few[0]


def test_the_comparison_needs_neither_constant_nor_cited_value():
    assert size_of(comparison([Comparison("a", None, (None,))], [("x", WRONG)], constant=None, cited=None, title="t"))


def test_the_sheet_is_a_png():
    made = panels(pinkish(), square(5, 5), square(5, 5), classes=GLAND, ignore=None)
    one, two = (size_of(sheet([("a", made)] * n, legend(GLAND, None), "title")) for n in (1, 2))
    assert two[1] > one[1]


def test_the_sheet_has_room_for_the_name_of_a_region():
    """In lines; in one it is longer than a row is high, and matplotlib warns (an error here) that nothing is left."""
    made = panels(pinkish(), square(5, 5), square(5, 5), classes=GLAND, ignore=None)
    name = "TCGA-OL-A5D6-DX1_xmin115108_ymin40554_MPP-0.2500_y0000_x0000_v0"
    assert size_of(sheet([(name, made[:3])], legend(GLAND, None), "title", ("image", "truth", "prediction")))


def test_importing_figures_loads_no_matplotlib_and_no_torch():
    code = "import sys, pathseg.train.report.figures as f; print(sorted({'matplotlib', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_drawing_does_not_use_pyplot():
    code = (
        "import sys; from pathseg.train.report.figures import learning_curves as l;"
        "l([{'epoch': 1, 'train_loss': 1.0, 'val_loss': 1.0, 'val_dice': .5, 'val_miou': .4}], 1, 'r');"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_sheet_takes_panels_of_two_sizes():
    rows = [("a", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)])]
    assert sheet(rows, Legend((), ()), "two stores", ("small", "large")).startswith(b"\x89PNG")
