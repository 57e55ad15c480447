import numpy as np
import pytest

from pathseg.extract.datasets.synthetic.painting import STAINS, StainField, draw_tissue


@pytest.fixture
def field_():
    return StainField(100, np.random.default_rng(0))


@pytest.mark.parametrize("laboratory", STAINS)
def test_a_stain_is_a_unit_vector_of_optical_density(laboratory):
    np.testing.assert_allclose(np.linalg.norm(laboratory, axis=1), 1, atol=2e-3)


@pytest.mark.parametrize("laboratory", STAINS)
def test_hematoxylin_takes_more_red_and_eosin_more_green(laboratory):
    hematoxylin, eosin = laboratory
    assert hematoxylin[0] > eosin[0] and eosin[1] > hematoxylin[1]


def test_an_oval_covers_the_area_of_its_axes(field_):
    field_.ovals(np.array([[50, 50]]), np.array([[1.0, 0.0]]), axes=np.array([[20.0, 10.0]]), shade=np.array([255.0]))
    assert (field_.read() > 0).sum() == pytest.approx(np.pi * 20 * 10, rel=0.25)


def test_the_first_axis_lies_along_the_direction(field_):
    field_.ovals(np.array([[50, 50]]), np.array([[1.0, 0.0]]), axes=np.array([[20.0, 5.0]]), shade=np.array([255.0]))
    rows, cols = np.nonzero(field_.read())
    assert np.ptp(rows) > 2 * np.ptp(cols)


def test_no_ovals_leave_the_sheet_empty(field_):
    field_.ovals(np.zeros((0, 2)), np.zeros((0, 2)), axes=np.zeros((0, 2)), shade=np.zeros(0))
    assert field_.read().max() == 0


def test_a_piece_has_the_side_asked_for():
    tissue = draw_tissue(np.random.default_rng(0), 200)
    assert (tissue.image.shape, tissue.glands.shape, tissue.lumen.shape) == ((200, 200, 3), (200, 200), (200, 200))


def test_the_same_generator_state_draws_the_same_piece():
    one, two = (draw_tissue(np.random.default_rng(7), 128).image for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_lumens_lie_in_glands():
    tissue = draw_tissue(np.random.default_rng(1), 256)
    assert (tissue.glands > 0)[tissue.lumen].all()


def test_tissue_absorbs_green_most_as_eosin_and_hematoxylin_do():
    red, green, blue = draw_tissue(np.random.default_rng(2), 256).image.reshape(-1, 3).mean(0)
    assert green < red and green < blue


@pytest.mark.parametrize("seed", range(12))
def test_small_pieces_of_any_seed_are_drawn(seed):
    assert draw_tissue(np.random.default_rng(seed), 64).image.std() > 5
