import io

import numpy as np
import pytest
from PIL import Image

from pathseg.train.colours import NEUTRAL, PALETTE, class_colours, jpeg_bytes, overlay, png_bytes, rgb, to_uint8

GLAND = {"classes": ("stroma", "gland"), "background": 0, "ignore": None}
TISSUES = {"classes": ("outside", "tumor", "stroma"), "background": None, "ignore": 0}


def test_background_is_gray_and_classes_follow_the_palette():
    assert class_colours(("a", "rest", "b"), background=1, ignore=None) == (PALETTE[0], NEUTRAL, PALETTE[1])


def test_an_ignored_class_takes_no_colour_of_the_palette():
    assert class_colours(**TISSUES) == (NEUTRAL, PALETTE[0], PALETTE[1])


def test_a_class_called_background_without_being_it_has_a_colour():
    assert class_colours(("background", "gland"), background=None, ignore=None) == PALETTE[:2]


def test_a_ninth_class_begins_the_palette_again():
    assert class_colours(tuple("abcdefghi"), background=None, ignore=None)[8] == PALETTE[0]


def test_palette_colours_differ():
    assert len({*PALETTE, NEUTRAL}) == len(PALETTE) + 1


@pytest.mark.parametrize("settings", [GLAND, TISSUES], ids=["one class", "several classes"])
def test_classes_are_outlined_in_their_colour_and_tinted_inside(settings):
    tissue = np.full((40, 60, 3), (220, 160, 200), np.uint8)
    codes = np.zeros((40, 60), np.uint8)
    codes[10:30, 10:30] = 1
    painted = to_uint8(overlay(tissue, codes, **settings))
    assert tuple(painted[10, 20]) == rgb(PALETTE[0])  # outline
    assert (painted[20, 20] != (220, 160, 200)).any() and tuple(painted[20, 20]) != rgb(PALETTE[0])
    assert (painted[codes == 0] == (220, 160, 200)).all()


def test_a_code_without_a_class_is_left_as_it_is():
    tissue = np.full((8, 8, 3), 100, np.uint8)
    assert (overlay(tissue, np.full((8, 8), 255, np.uint8), **GLAND) == 100).all()


def test_a_png_file_holds_the_pixels_exactly_and_a_jpeg_file_nearly():
    pixels = np.full((16, 24, 3), (220, 160, 200), np.uint8)
    with Image.open(io.BytesIO(png_bytes(pixels))) as picture:
        np.testing.assert_array_equal(picture, pixels)
    with Image.open(io.BytesIO(jpeg_bytes(pixels, quality=90))) as picture:
        assert picture.format == "JPEG"
        assert np.abs(np.asarray(picture).astype(int) - pixels).max() <= 3


def test_a_class_keeps_the_colour_that_it_has_already():
    assert class_colours(**TISSUES, own=(None, "#123456", None)) == (NEUTRAL, "#123456", PALETTE[1])
