import numpy as np
import pytest

from pathseg.extract.inputs.tissue_mask import find_tissue, otsu

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


def test_the_threshold_separates_two_groups():
    values = np.repeat(np.array([10, 12, 100, 104], np.uint8), 50)
    assert 12 <= otsu(values) < 100


def test_one_value_has_a_threshold_too():
    assert otsu(np.full(10, 7, np.uint8)) in range(256)
