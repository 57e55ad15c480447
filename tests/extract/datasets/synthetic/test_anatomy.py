import numpy as np
import pytest
from scipy import ndimage

from pathseg.extract.datasets.synthetic.anatomy import GLAND_MIN_PX, GlandStyle, grow_glands, smooth_noise

CALM, WILD = GlandStyle(0.0, 0.8, 0.3, 0.2), GlandStyle(1.0, 0.0, 0.6, 0.8)


@pytest.fixture(scope="module", params=[CALM, WILD], ids=["calm", "wild"])
def anatomy(request):
    return grow_glands(np.random.default_rng(3), 400, style=request.param)


def test_noise_has_mean_0_and_deviation_1():
    noise = smooth_noise(np.random.default_rng(0), 200, scale=20)
    assert abs(noise.mean()) < 1e-3 and abs(noise.std() - 1) < 1e-3


def test_noise_of_a_larger_scale_is_smoother():
    fine, coarse = (smooth_noise(np.random.default_rng(0), 200, scale=scale) for scale in (5, 50))
    assert np.abs(np.diff(coarse)).mean() < 0.3 * np.abs(np.diff(fine)).mean()


def test_the_same_generator_state_grows_the_same_glands():
    one, two = (grow_glands(np.random.default_rng(5), 300, style=CALM) for _ in range(2))
    np.testing.assert_array_equal(one.glands, two.glands)


def test_every_gland_is_one_piece_without_holes(anatomy):
    for number in range(1, anatomy.glands.max() + 1):
        gland = anatomy.glands == number
        assert ndimage.label(gland)[1] == 1
        np.testing.assert_array_equal(ndimage.binary_fill_holes(gland), gland)


def test_no_gland_is_a_fleck(anatomy):
    assert np.bincount(anatomy.glands.ravel())[1:].min() >= GLAND_MIN_PX / 2


def test_depth_is_the_distance_to_the_nearest_stroma(anatomy):
    stroma = np.argwhere(anatomy.glands == 0)
    for y, x in np.argwhere(anatomy.glands > 0)[::5000]:
        expected = np.sqrt(((stroma - (y, x)) ** 2).sum(1).min())
        assert anatomy.depth[y, x] == pytest.approx(expected, rel=1e-5)


def test_epithelium_between_lumen_and_stroma_is_as_thick_as_the_wall(anatomy):
    assert (anatomy.depth > anatomy.wall)[anatomy.lumen].all()


def test_inward_points_where_it_gets_deeper(anatomy):
    middle = (anatomy.depth > 5) & (anatomy.depth < 12)
    middle[:20], middle[-20:], middle[:, :20], middle[:, -20:] = False, False, False, False
    places = np.argwhere(middle)
    ahead = np.rint(places + 4 * anatomy.inward[:, middle].T).astype(int)
    deeper = anatomy.depth[ahead[:, 0], ahead[:, 1]] > anatomy.depth[middle]
    assert deeper.mean() > 0.97


def test_mucin_is_lost_as_atypia_grows():
    styles = [GlandStyle.draw(np.random.default_rng(seed)) for seed in range(200)]
    assert all(style.goblets == 0 for style in styles if style.atypia > 0.63)
    assert any(style.goblets > 0.5 for style in styles)
