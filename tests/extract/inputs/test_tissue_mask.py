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


def test_the_threshold_separates_two_groups():
    values = np.repeat(np.array([10, 12, 100, 104], np.uint8), 50)
    assert 12 <= otsu(values) < 100


def test_one_value_has_a_threshold_too():
    assert otsu(np.full(10, 7, np.uint8)) in range(256)
