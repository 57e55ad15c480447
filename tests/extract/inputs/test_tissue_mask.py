import numpy as np
import pytest
from scipy import ndimage

from pathseg.extract.inputs.tissue_mask import find_ink, find_tissue, otsu

PINK, PALE, WHITE = (200, 120, 180), (235, 205, 225), (243, 243, 243)


def thumbnail(colour, noise=2.0):
    rng = np.random.default_rng(0)
    return np.clip(np.array(colour) + rng.normal(0, noise, (60, 80, 3)), 0, 255).astype(np.uint8)


def test_a_white_background_is_no_tissue():
    assert not find_tissue(thumbnail(WHITE), rim_px=1).any()


@pytest.mark.parametrize("colour", [PINK, PALE])
def test_a_thumbnail_that_is_all_tissue_is_all_found(colour):
    assert find_tissue(thumbnail(colour), rim_px=1).all()


def test_pale_tissue_beside_dark_tissue_is_found():
    both = thumbnail(PALE)
    both[:, 40:] = thumbnail((120, 40, 140))[:, 40:]
    assert find_tissue(both, rim_px=1).all()


def test_a_disc_of_tissue_is_found_with_a_rim_and_nothing_else():
    y, x = np.mgrid[:60, :80]
    distance = np.hypot(y - 30, x - 40)
    disc = thumbnail(WHITE)
    disc[distance < 15] = thumbnail(PINK)[distance < 15]
    found = find_tissue(disc, rim_px=5)
    assert found[distance < 19].all()
    assert not found[distance > 21].any()


def test_white_inside_of_tissue_belongs_to_it():
    y, x = np.mgrid[:60, :80]
    distance = np.hypot(y - 30, x - 40)
    ring = thumbnail(WHITE)
    ring[(distance < 25) & (distance > 10)] = thumbnail(PINK)[(distance < 25) & (distance > 10)]
    assert find_tissue(ring, rim_px=1)[distance < 25].all()


def test_a_single_speck_is_no_tissue():
    speck = thumbnail(WHITE, noise=0)
    speck[10, 10] = PINK
    assert not find_tissue(speck, rim_px=9).any()


@pytest.mark.parametrize("colour", [(0, 0, 0), (12, 8, 15), (25, 5, 20), (30, 30, 38)])
def test_near_black_with_noise_or_a_tint_is_no_tissue(colour):
    assert not find_tissue(thumbnail(colour, noise=6), rim_px=3).any()


def test_of_a_slide_in_a_black_frame_the_tissue_alone_is_found():
    y, x = np.mgrid[:60, :80]
    distance = np.hypot(y - 30, x - 40)
    framed = thumbnail((20, 8, 15), noise=6)
    framed[8:-8, 8:-8] = thumbnail(WHITE)[8:-8, 8:-8]
    framed[distance < 15] = thumbnail(PINK)[distance < 15]
    found = find_tissue(framed, rim_px=1)
    assert found[distance < 14].all() and not found[distance > 18].any()


def test_dust_is_no_tissue():
    y, x = np.mgrid[:60, :80]
    dusty = thumbnail(WHITE)
    for row, col in ((8, 8), (20, 60), (50, 70)):
        dusty[np.hypot(y - row, x - col) < 2.5] = (120, 80, 40)
    disc = np.hypot(y - 40, x - 25) < 10
    dusty[disc] = PINK
    found = find_tissue(dusty, rim_px=1, min_area_px=35)
    assert found[disc].mean() > 0.95 and found.sum() < 1.4 * disc.sum()


PENS = {
    "blue": (30, 70, 160),
    "light blue": (70, 130, 200),
    "green": (30, 110, 70),
    "light green": (110, 185, 120),
    "red": (200, 35, 45),
    "black": (60, 58, 62),
    "worn black": (88, 82, 80),
}


def strokes(colour, *, blur=2.0):
    """Glass with a disc of tissue inside a ring that a pen drew, and a thick stroke across glass; the disc's mask."""
    y, x = np.mgrid[:200, :300]
    from_disc = np.hypot(y - 100, x - 90)
    picture = np.full((200, 300, 3), WHITE, float)
    drawn = (np.abs(from_disc - 70) < 4) | ((np.abs(y - x + 130) < 8) & (x > 190))
    opacity = ndimage.gaussian_filter(drawn.astype(float), blur)[..., None]  # ink lies above the focus
    picture = opacity * np.array(colour) + (1 - opacity) * picture
    picture[from_disc < 45] = PINK
    noise = np.random.default_rng(0).normal(0, 2, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8), from_disc < 45


@pytest.mark.parametrize("blur", [0.7, 2.0])
@pytest.mark.parametrize("pen", PENS)
def test_pen_strokes_are_no_tissue_and_leave_no_islands(pen, blur):
    picture, disc = strokes(PENS[pen], blur=blur)
    found = find_tissue(picture, rim_px=1, min_area_px=60)
    assert found[disc].all()
    assert found.sum() < 1.12 * disc.sum()


def test_tissue_under_a_stroke_is_lost_only_there():
    picture, disc = strokes(PENS["blue"])
    across = np.zeros(disc.shape, bool)
    across[95:105] = True
    picture[across] = PENS["blue"]
    found = find_tissue(picture, rim_px=1, min_area_px=60)
    assert found[disc & ~ndimage.binary_dilation(across, iterations=4)].all()
    assert not found[across & (np.mgrid[:200, :300][1] > 250)].any()


STAINS = {  # optical density of red, green and blue, from Ruifrok and Johnston 2001
    "haematoxylin": (0.65, 0.70, 0.29),
    "eosin": (0.07, 0.99, 0.11),
    "DAB": (0.27, 0.57, 0.78),
}


@pytest.mark.parametrize("pair", [("haematoxylin", "eosin"), ("haematoxylin", "DAB")])
def test_no_amount_of_stain_is_taken_for_ink(pair):
    amounts = np.linspace(0, 1.2, 61)
    first, second = (np.array(STAINS[name]) for name in pair)
    density = amounts[:, None, None] * first + amounts[None, :, None] * second  # (61, 61, 3)
    stained = np.round(243 * 10.0**-density).astype(np.uint8)
    assert not find_ink(stained)[stained.max(axis=2) >= 50].any()  # darker ones are unlit


def test_the_threshold_separates_two_groups():
    values = np.repeat(np.array([10, 12, 100, 104], np.uint8), 50)
    assert 12 <= otsu(values) < 100


def test_one_value_has_a_threshold_too():
    assert otsu(np.full(10, 7, np.uint8)) in range(256)
