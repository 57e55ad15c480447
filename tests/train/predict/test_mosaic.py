import numpy as np
import pytest
import zarr
from PIL import Image
from scipy import ndimage

from pathseg.train.predict.mosaic import MosaicSettings, blend_windows, join_windows, resize_nearest
from pathseg.train.predict.sliding_window import SlidingWindow
from pathseg.train.predict.window_cache import WindowCache

WINDOW, OVERLAP = (128, 128), 32


def blend(size, second_class, *, tissue=None, fill=255, **more):
    """A mosaic of two classes; second_class(y, x, h, w) gives its probability in the window at (y, x)."""
    windows = SlidingWindow.over(size, window=WINDOW, overlap=OVERLAP, tissue=tissue)
    cache = WindowCache.in_memory()
    for index, number in enumerate(windows.selected):
        second = np.broadcast_to(second_class(*windows.corner(number), *WINDOW), WINDOW).astype(np.float32)
        cache.write([index], np.stack([1 - second, second])[None])
    return blend_windows(cache, windows, MosaicSettings(classes=2, fill=fill, tissue=tissue, **more)), windows


def blended(tmp_path, size, second_class, **more):
    """The blended probabilities (2, H, W) and the windows."""
    mosaic, windows = blend(size, second_class, probabilities=tmp_path / "p.zarr", **more)
    values = zarr.open_group(mosaic.probabilities, mode="r")["probabilities"][:]
    return np.asarray(values).astype(np.float64), windows


def ramp(y, x, h, w):
    return (np.arange(y, y + h)[:, None] * 0.3 + np.arange(x, x + w) * 0.7) / 1000


def one_corner(side=8):
    tissue = np.zeros((side, side), bool)
    tissue[0, 0] = True
    return tissue


def test_windows_that_agree_are_blended_to_their_common_values(tmp_path):
    found, _ = blended(tmp_path, (350, 600), ramp)
    np.testing.assert_allclose(found[1], ramp(0, 0, 350, 600), atol=1e-3)  # stored in float16


def test_windows_that_disagree_leave_no_step_at_their_borders(tmp_path):
    def unequal(y, x, h, w):
        return 0.25 + 0.5 * ((y // 50 + x // 50) % 2)  # neighbours differ by half

    found, windows = blended(tmp_path, (350, 600), unequal)
    steps = max(np.abs(np.diff(found[1], axis=axis)).max() for axis in (0, 1))
    assert len({unequal(*windows.corner(n), 0, 0) for n in windows.selected}) == 2
    assert steps <= 0.5 / OVERLAP + 2e-3  # the difference spread over the overlap; hard borders would step by 0.5


def test_codes_are_the_more_probable_class():
    mosaic, _ = blend((150, 150), lambda y, x, h, w: np.arange(x, x + w)[None] >= 50.0)
    assert (mosaic.codes()[:, :50] == 0).all()
    assert (mosaic.codes()[:, 50:] == 1).all()
    assert mosaic.pixels.tolist() == [150 * 50, 150 * 100]


def test_a_tie_goes_to_the_smaller_code():
    mosaic, _ = blend((128, 128), lambda y, x, h, w: 0.5)
    assert not mosaic.codes().any()


def test_pixels_that_were_not_computed_have_their_own_code_and_are_not_counted():
    mosaic, windows = blend((600, 600), lambda y, x, h, w: 1.0, tissue=one_corner())
    codes = mosaic.codes()
    assert set(np.unique(codes)) == {1, 255}
    assert mosaic.pixels.tolist() == [0, (codes == 1).sum()]
    assert len(windows.selected) < windows.total


def test_background_without_tissue_in_a_computed_window_counts_as_not_computed():
    mosaic, _ = blend((128, 128), lambda y, x, h, w: 1.0, tissue=np.array([[True, False]]))
    assert mosaic.pixels.tolist() == [0, 128 * 64]
    assert (mosaic.codes()[:, :64] == 1).all()
    assert (mosaic.codes()[:, 64:] == 255).all()


def test_coarser_levels_take_one_of_every_two_pixels_alternately():
    mosaic, _ = blend((300, 1100), lambda y, x, h, w: np.arange(x, x + w)[None] % 300 < 100)
    first, second, third = (mosaic.codes(level) for level in range(3))
    rows, cols = (np.arange(side // 2) * 2 + (np.arange(side // 2) % 2 == 0) for side in (300, 1100))
    np.testing.assert_array_equal(second, first[np.ix_(rows, cols)])
    assert third.shape == (75, 275)


@pytest.mark.parametrize("size", [(2049, 2049), (2050, 2047)])
def test_objects_stay_where_they_are_at_every_level(size):
    rng = np.random.default_rng(0)
    codes, centres = np.zeros(size, np.uint8), []
    for y in range(0, size[0] - 150, 150):
        for x in range(0, size[1] - 150, 150):
            top, left, height, width = y + rng.integers(50), x + rng.integers(50), *rng.integers(40, 90, 2)
            codes[top : top + height, left : left + width] = 1
            centres.append((top + height / 2, left + width / 2))
    mosaic, _ = blend(size, lambda y, x, h, w: np.pad(codes, (0, 128))[y : y + h, x : x + w])
    assert len(mosaic.levels) == 4
    for level in range(4):
        labels, count = ndimage.label(mosaic.codes(level))
        found = (np.array(ndimage.center_of_mass(labels > 0, labels, range(1, count + 1))) + 0.5) * 2**level
        offsets = found[:, None] - np.array(centres)
        nearest = offsets[np.arange(count), np.abs(offsets).sum(axis=2).argmin(axis=1)]
        assert count == len(centres)
        assert np.abs(nearest.mean(axis=0)).max() < 0.5  # px at full resolution; the first of two gave 3.5 at level 3
        assert np.abs(nearest).max() < 2**level  # a coarse pixel


@pytest.mark.parametrize(("longest", "level"), [(5000, 0), (1100, 0), (1099, 1), (10, 2)])
def test_the_finest_level_that_fits_is_found(longest, level):
    mosaic, _ = blend((100, 1100), lambda y, x, h, w: 1.0)
    assert mosaic.level_within(longest) == level


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_mosaic_on_disk_holds_the_codes_of_one_in_memory(tmp_path, on_disk):
    folder = tmp_path if on_disk else None
    mosaic, _ = blend((150, 600), lambda y, x, h, w: np.arange(x, x + w)[None] % 300 < 100, folder=folder)
    np.testing.assert_array_equal(mosaic.codes(), np.broadcast_to(np.arange(600) % 300 < 100, (150, 600)))
    assert any(tmp_path.iterdir()) == on_disk


def test_probabilities_are_nan_where_nothing_was_computed(tmp_path):
    found, _ = blended(tmp_path, (600, 600), lambda y, x, h, w: 1.0, tissue=one_corner())
    assert np.isnan(found[:, -1, -1]).all()
    np.testing.assert_allclose(found[:, 0, 0], [0, 1])


def test_an_uncertainty_behind_the_classes_gets_an_array_of_its_own(tmp_path):
    windows = SlidingWindow.over(WINDOW, window=WINDOW, overlap=OVERLAP)
    cache = WindowCache.in_memory()
    cache.write([0], np.stack([np.full(WINDOW, v, np.float32) for v in (0.25, 0.75, 0.5)])[None])
    settings = MosaicSettings(classes=2, fill=0, probabilities=tmp_path / "p.zarr", uncertainty=True)
    blend_windows(cache, windows, settings)
    group = zarr.open_group(tmp_path / "p.zarr", mode="r")
    assert group["probabilities"].shape == (2, *WINDOW)
    assert (np.asarray(group["uncertainty"][:]) == 0.5).all()


@pytest.mark.parametrize("size", [(7, 9), (20, 33), (13, 11)])
def test_nearest_agrees_with_pillow(size):
    codes = np.random.default_rng(0).integers(0, 5, (13, 11)).astype(np.uint8)
    expected = Image.fromarray(codes).resize((size[1], size[0]), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_nearest(codes, size), expected)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_level_of_odd_sides_is_resized_by_what_its_px_cover(level):
    codes = np.random.default_rng(0).integers(0, 5, tuple(-(-side // 2**level) for side in (41, 33))).astype(np.uint8)
    expected = codes.repeat(2**level, axis=0).repeat(2**level, axis=1)[:41, :33]
    found = resize_nearest(codes, (41, 33), extent=(41 / 2**level, 33 / 2**level))
    np.testing.assert_array_equal(found, expected)


def test_rows_and_columns_of_a_resized_mask_are_those_of_the_whole():
    codes = np.random.default_rng(0).integers(0, 5, (13, 11)).astype(np.uint8)
    region = resize_nearest(codes, (40, 50), slice(10, 25), slice(30, 50))
    np.testing.assert_array_equal(region, resize_nearest(codes, (40, 50))[10:25, 30:50])


def of_level(one, level=0):
    """The values of a confidence map, NaN where not computed."""
    steps = one.levels[level][:, :]
    return np.where(steps == 255, np.nan, steps / 254 * one.maximum)


def test_the_confidence_is_that_of_the_blended_probabilities(tmp_path):
    mosaic, _ = blend((350, 600), ramp, confidence=True, probabilities=tmp_path / "p.zarr")
    second = ramp(0, 0, 350, 600)
    entropy = -(second * np.log(np.maximum(second, 1e-9)) + (1 - second) * np.log1p(-second))
    confidence = mosaic.confidence
    np.testing.assert_allclose(of_level(confidence.probability), np.maximum(second, 1 - second), atol=0.6 / 254)
    np.testing.assert_allclose(of_level(confidence.uncertainty), entropy, atol=0.6 / 254)
    assert not confidence.of_ensemble
    assert blend((350, 600), ramp)[0].confidence is None


def test_the_confidence_is_unknown_where_nothing_was_computed():
    tissue = one_corner()
    mosaic, _ = blend((600, 600), lambda y, x, h, w: 1.0, tissue=tissue, confidence=True)
    for one, value in ((mosaic.confidence.probability, 1.0), (mosaic.confidence.uncertainty, 0.0)):
        for level in range(2):
            np.testing.assert_array_equal(np.isnan(of_level(one, level)), mosaic.codes(level) == 255)
            assert set(np.unique(of_level(one, level)[mosaic.codes(level) != 255])) == {value}


def test_a_coarser_level_has_the_confidence_of_the_pixels_whose_codes_it_has():
    mosaic, _ = blend((600, 700), lambda y, x, h, w: np.arange(x, x + w)[None] / 700, confidence=True)
    column, sure = np.arange(700) / 700, of_level(mosaic.confidence.probability, 1)[0]
    codes = mosaic.codes(1)[0]
    near = np.maximum(column, 1 - column)
    assert np.abs(sure - (near[::2] + near[1::2]) / 2).max() <= 0.5 / 700 + 0.6 / 254
    np.testing.assert_array_equal(codes, np.where(np.arange(350) * 2 + (np.arange(350) % 2 == 0) > 350, 1, 0))


def test_an_ensembles_uncertainty_is_its_own():
    windows = SlidingWindow.over(WINDOW, window=WINDOW, overlap=OVERLAP)
    cache = WindowCache.in_memory()
    cache.write([0], np.stack([np.full(WINDOW, value, np.float32) for value in (0.75, 0.25, 0.125)])[None])
    mosaic = blend_windows(cache, windows, MosaicSettings(classes=2, fill=255, uncertainty=True, confidence=True))
    assert mosaic.confidence.of_ensemble
    np.testing.assert_allclose(of_level(mosaic.confidence.probability), 0.75, atol=0.6 / 254)
    np.testing.assert_allclose(of_level(mosaic.confidence.uncertainty), 0.125, atol=0.6 / 254)


@pytest.mark.parametrize(("window", "tissue"), [(384, None), (512, None), (640, None), (256, one_corner(4))])
def test_windows_of_any_size_give_the_codes_and_the_confidence_of_the_whole(tmp_path, window, tissue):
    size, fill = (1300, 1500), 255
    values = np.random.default_rng(0).random((3, 2560, 2560), np.float32)
    values[:, ::7] = 1  # ties
    values /= values.sum(axis=0)
    windows = SlidingWindow.over(size, window=(window, window), overlap=0, tissue=tissue)
    corners = [windows.corner(number) for number in windows.selected]
    parts = [values[:, y : y + window, x : x + window] for y, x in corners]
    settings = MosaicSettings(classes=3, fill=fill, tissue=tissue, folder=tmp_path, confidence=True)
    mosaic = join_windows(iter(parts), windows, settings)
    whole = values[:, : size[0], : size[1]].astype(np.float64)
    computed = np.ones(size, bool) if tissue is None else resize_nearest(tissue, size)
    np.testing.assert_array_equal(mosaic.codes(), np.where(computed, whole.argmax(axis=0), fill))
    assert mosaic.pixels.tolist() == np.bincount(whole.argmax(axis=0)[computed], minlength=3).tolist()
    entropy = -(whole * np.log(np.maximum(whole, 1e-30))).sum(axis=0)
    confidence = mosaic.confidence
    for one, expected in ((confidence.probability, whole.max(axis=0)), (confidence.uncertainty, entropy)):
        np.testing.assert_array_equal(np.isnan(of_level(one)), ~computed)
        np.testing.assert_allclose(of_level(one)[computed], expected[computed], atol=0.6 / 254 * one.maximum)


def test_windows_side_by_side_are_put_where_they_lie_and_cut_off_at_the_edges(tmp_path):
    windows = SlidingWindow.over((600, 700), window=(256, 256), overlap=0)
    windows = SlidingWindow(windows.rows, windows.cols, (0, 4, 8))  # the diagonal of 3x3
    maps = np.random.default_rng(0).random((3, 3, 256, 256), np.float32)  # two classes and an uncertainty
    path, tissue = tmp_path / "p.zarr", np.ones((60, 70), bool)
    tissue[:, :10] = False
    settings = MosaicSettings(classes=2, fill=9, tissue=tissue, probabilities=path, uncertainty=True)
    mosaic = join_windows(iter(maps), windows, settings)
    expected, unsure = np.full((600, 700), 9), np.full((600, 700), np.nan, np.float16)
    for (y, x), own in zip([(0, 0), (256, 256), (512, 512)], maps, strict=True):
        inside = own[:, : 600 - y, : 700 - x]
        expected[y : y + 256, x : x + 256] = inside[1] > inside[0]
        unsure[y : y + 256, x : x + 256] = inside[2]
    expected[:, :100], unsure[:, :100] = 9, np.nan
    np.testing.assert_array_equal(mosaic.codes(), expected)
    assert mosaic.pixels.tolist() == [(expected == 0).sum(), (expected == 1).sum()]
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["uncertainty"][:], unsure)
