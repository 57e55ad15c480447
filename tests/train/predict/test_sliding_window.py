import numpy as np
import pytest

from pathseg.train.predict.sliding_window import AdjacentAxis, SlidingWindow, WindowAxis

LENGTHS = (256, 257, 448, 449, 700, 1000, 4097)


def covering(axis):
    """Windows over each px, and the sum of their weights."""
    count, total = np.zeros(axis.length, int), np.zeros(axis.length)
    for index, start in enumerate(axis.starts):
        covered = slice(start, start + axis.window)
        count[covered] += 1
        total[covered] += axis.weights(index)[: axis.length - start]
    return count, total


@pytest.mark.parametrize("length", LENGTHS)
def test_weights_of_all_windows_add_up_to_one_everywhere(length):
    _, total = covering(WindowAxis(length, 256, 64))
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_windows_are_flush_with_both_ends(length):
    starts = WindowAxis(length, 256, 64).starts
    assert starts[0] == 0
    assert starts[-1] + 256 == length


@pytest.mark.parametrize("length", LENGTHS)
def test_neighbours_share_at_least_the_overlap(length):
    steps = np.diff(WindowAxis(length, 256, 64).starts)
    assert (steps <= 256 - 64).all()


@pytest.mark.parametrize("length", LENGTHS)
def test_no_window_has_weight_outside_its_extent(length):
    axis = WindowAxis(length, 256, 64)
    for index, start in enumerate(axis.starts):
        first, last = axis.extent(index)
        weights = np.zeros(length)
        weights[start : start + 256] = axis.weights(index)
        assert not weights[:first].any()
        assert not weights[last:].any()


def test_a_weight_never_jumps_by_more_than_a_share_of_the_overlap():
    axis = WindowAxis(1000, 256, 64)
    for index in range(len(axis.starts)):
        assert np.abs(np.diff(axis.weights(index))).max() <= 1 / 64 + 1e-6


def test_a_short_image_has_one_window_of_full_weight():
    axis = WindowAxis(100, 256, 64)
    assert axis.starts == (0,)
    assert (axis.weights(0) == 1).all()


@pytest.mark.parametrize("overlap", [0, 86])
def test_an_overlap_beyond_a_third_is_refused_with_both_numbers(overlap):
    with pytest.raises(ValueError, match=rf"1 to 85 px.*{overlap}.*--overlap"):
        WindowAxis(1000, 256, overlap)


def test_windows_are_numbered_row_by_row():
    windows = SlidingWindow.over((448, 640), window=(256, 256), overlap=64)
    assert windows.selected == tuple(range(6))
    assert [windows.corner(n) for n in (0, 1, 2, 3)] == [(0, 0), (0, 192), (0, 384), (192, 0)]


def test_only_windows_with_tissue_are_selected():
    tissue = np.zeros((100, 100), bool)
    tissue[99, 99] = True  # the last window alone
    windows = SlidingWindow.over((2560, 2560), window=(256, 256), overlap=64, tissue=tissue)
    assert windows.selected == (windows.total - 1,)


def test_every_pixel_of_tissue_has_full_weight_from_the_selected_windows():
    rng = np.random.default_rng(0)
    tissue = rng.random((90, 120)) < 0.02
    windows = SlidingWindow.over((900, 1200), window=(256, 256), overlap=64, tissue=tissue)
    total = np.zeros((900, 1200))
    for number in windows.selected:
        (r, c), (y, x) = windows.row_col(number), windows.corner(number)
        total[y : y + 256, x : x + 256] += windows.rows.weights(r)[:, None] * windows.cols.weights(c)
    fine = np.kron(tissue, np.ones((10, 10), bool))
    np.testing.assert_allclose(total[fine], 1, atol=1e-5)


def test_the_windows_within_a_range_are_those_with_weight_in_it():
    axis = WindowAxis(1000, 256, 64)  # four windows or more, each 256 px
    assert axis.windows_within(0, 1) == [0]
    assert axis.windows_within(999, 1000) == [len(axis.starts) - 1]
    assert axis.windows_within(0, 1000) == list(range(len(axis.starts)))
    border = int(axis.borders[0])
    assert axis.windows_within(border, border + 1) == [0, 1]


def test_windows_without_overlap_lie_side_by_side_from_the_first_px():
    axis = AdjacentAxis(1100, 512)
    assert axis.starts == (0, 512, 1024)
    assert [axis.extent(index) for index in range(3)] == [(0, 512), (512, 1024), (1024, 1100)]
    assert all((axis.weights(index) == 1).all() for index in range(3))
    assert (axis.windows_within(500, 512), axis.windows_within(500, 513)) == ([0], [0, 1])
