import numpy as np
import pytest
import zarr
from PIL import Image

from pathseg.train.predict.mosaic import Canvas, assemble, nearest, probability_arrays
from pathseg.train.predict.sliding_window import Plan
from pathseg.train.predict.window_cache import Answers

WINDOW, OVERLAP = (256, 256), 64


def put_together(size, each, *, tissue=None, group=None, empty=255, folder=None):
    """A canvas of two classes; each(y, x, h, w) gives the probability of the second in the window at (y, x)."""
    plan = Plan.of(size, WINDOW, OVERLAP, tissue)
    answers = Answers(None, windows=len(plan.kept), shape=(2, *WINDOW))
    for index, number in enumerate(plan.kept):
        second = np.broadcast_to(each(*plan.corner(number), *WINDOW), WINDOW).astype(np.float32)
        answers.write([index], np.stack([1 - second, second])[None])
    canvas = Canvas(folder, size, empty=empty)
    return canvas, assemble(answers, plan, canvas, classes=2, probabilities=group), plan


def blended(tmp_path, size, each, **more):
    group = probability_arrays(tmp_path / "p.zarr", size, classes=2, uncertain=False, about={})
    _, _, plan = put_together(size, each, group=group, **more)
    return np.asarray(group["probabilities"][:]).astype(np.float64), plan


def ramp(y, x, h, w):
    return (np.arange(y, y + h)[:, None] * 0.3 + np.arange(x, x + w) * 0.7) / 1000


def test_windows_that_agree_are_blended_to_what_they_say(tmp_path):
    found, _ = blended(tmp_path, (700, 900), ramp)
    np.testing.assert_allclose(found[1], ramp(0, 0, 700, 900), atol=1e-3)  # stored in float16


def test_windows_that_disagree_leave_no_step_at_their_borders(tmp_path):
    def unequal(y, x, h, w):
        return 0.25 + 0.5 * ((y // 100 + x // 100) % 2)  # neighbours differ by half

    found, plan = blended(tmp_path, (700, 900), unequal)
    steps = max(np.abs(np.diff(found[1], axis=axis)).max() for axis in (0, 1))
    assert len({unequal(*plan.corner(n), 0, 0) for n in plan.kept}) == 2
    assert steps <= 0.5 / OVERLAP + 2e-3  # the difference spread over the overlap; hard borders would step by 0.5


def test_codes_are_the_more_probable_class():
    canvas, counts, _ = put_together((300, 300), lambda y, x, h, w: np.arange(x, x + w)[None] >= 100.0)
    codes = np.asarray(canvas.codes[0][:])
    assert (codes[:, :100] == 0).all()
    assert (codes[:, 100:] == 1).all()
    assert counts.tolist() == [300 * 100, 300 * 200]


def test_a_tie_goes_to_the_smaller_code():
    canvas, _, _ = put_together((256, 256), lambda y, x, h, w: 0.5)
    assert not np.asarray(canvas.codes[0][:]).any()


def test_what_was_not_computed_has_its_own_code_and_is_not_counted():
    tissue = np.zeros((8, 8), bool)
    tissue[0, 0] = True
    canvas, counts, plan = put_together((2048, 2048), lambda y, x, h, w: 1.0, tissue=tissue)
    codes = np.asarray(canvas.codes[0][:])
    assert set(np.unique(codes)) == {1, 255}
    assert counts.sum() == (codes == 1).sum() == counts[1]
    assert len(plan.kept) < len(plan.rows.starts) * len(plan.cols.starts)


def test_coarser_levels_take_the_first_of_every_two_pixels():
    canvas, _, _ = put_together((1300, 1100), lambda y, x, h, w: np.arange(x, x + w)[None] % 300 < 100)
    first, second, third = (np.asarray(codes[:]) for codes in canvas.codes[:3])
    np.testing.assert_array_equal(second, first[::2, ::2])
    np.testing.assert_array_equal(third, first[::4, ::4])


@pytest.mark.parametrize(("longest", "level"), [(5000, 0), (1300, 0), (1299, 1), (10, 2)])
def test_the_finest_level_that_fits_is_found(longest, level):
    assert Canvas(None, (1300, 1100), empty=0).within(longest) == level


def test_probabilities_are_nan_where_nothing_was_computed(tmp_path):
    tissue = np.zeros((8, 8), bool)
    tissue[0, 0] = True
    found, _ = blended(tmp_path, (2048, 2048), lambda y, x, h, w: 1.0, tissue=tissue)
    assert np.isnan(found[:, -1, -1]).all()
    np.testing.assert_allclose(found[:, 0, 0], [0, 1])


def test_an_uncertainty_behind_the_classes_gets_an_array_of_its_own(tmp_path):
    plan = Plan.of((256, 256), WINDOW, OVERLAP)
    answers = Answers(None, windows=1, shape=(3, *WINDOW))
    answers.write([0], np.stack([np.full(WINDOW, v, np.float32) for v in (0.25, 0.75, 0.5)])[None])
    group = probability_arrays(tmp_path / "p.zarr", (256, 256), classes=2, uncertain=True, about={"run": "a"})
    assemble(answers, plan, Canvas(None, (256, 256), empty=0), classes=2, probabilities=group)
    read = zarr.open_group(tmp_path / "p.zarr", mode="r")
    assert read["probabilities"].shape == (2, 256, 256)
    assert (np.asarray(read["uncertainty"][:]) == 0.5).all()
    assert read.attrs["run"] == "a"


@pytest.mark.parametrize("size", [(7, 9), (20, 33), (13, 11)])
def test_nearest_agrees_with_pillow(size):
    codes = np.random.default_rng(0).integers(0, 5, (13, 11)).astype(np.uint8)
    expected = Image.fromarray(codes).resize((size[1], size[0]), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(nearest(codes, size), expected)


def test_a_part_is_that_part_of_the_whole():
    codes = np.random.default_rng(0).integers(0, 5, (13, 11)).astype(np.uint8)
    part = nearest(codes, (40, 50), slice(10, 25), slice(30, 50))
    np.testing.assert_array_equal(part, nearest(codes, (40, 50))[10:25, 30:50])


def test_glass_in_a_computed_window_counts_as_not_computed():
    plan = Plan.of((256, 256), WINDOW, OVERLAP)
    answers = Answers(None, windows=1, shape=(2, *WINDOW))
    answers.write([0], np.stack([np.zeros(WINDOW), np.ones(WINDOW)])[None])
    canvas = Canvas(None, (256, 256), empty=255)
    counts = assemble(answers, plan, canvas, classes=2, tissue=np.array([[True, False]]))
    assert counts.tolist() == [0, 256 * 128]
    assert (canvas.codes[0][:, :128] == 1).all()
    assert (canvas.codes[0][:, 128:] == 255).all()
