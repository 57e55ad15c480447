import numpy as np
import pytest

from pathseg.train.predict.tiles import TileWriter, empty_levels

FILL = 7


def half(finer):
    """One of every two pixels along each axis: the second for even positions, the first for odd ones."""
    for axis in (0, 1):
        length = finer.shape[axis]
        finer = np.take(finer, [min(2 * i + (i % 2 == 0), length - 1) for i in range((length + 1) // 2)], axis)
    return finer


def written(folder, values, window, *, leave_out=()):
    """The levels of a map that is written in windows from the top down, but for some."""
    levels = empty_levels(folder, values.shape, name="map", fill=FILL)
    writer, number = TileWriter(levels), 0
    for y in range(0, values.shape[0], window):
        for x in range(0, values.shape[1], window):
            writer.flush(y)
            part = values[y : y + window, x : x + window]
            if number not in leave_out:
                writer.write(slice(y, y + part.shape[0]), slice(x, x + part.shape[1]), part)
            number += 1
    writer.flush()
    return levels


@pytest.mark.parametrize("in_files", [True, False])
@pytest.mark.parametrize("window", [300, 512, 640, 1024])
def test_levels_hold_what_was_written_in_windows_of_any_size(tmp_path, window, in_files):
    expected = np.random.default_rng(0).integers(0, 256, (2307, 2050)).astype(np.uint8)
    levels = written(tmp_path / "new" if in_files else None, expected, window)
    assert len(levels) == 4
    for level in levels:
        np.testing.assert_array_equal(level[:, :], expected)
        np.testing.assert_array_equal(level[500:1100, 3:], expected[500:1100, 3:])
        expected = half(expected)


def test_tiles_that_were_not_written_are_the_fill_value_at_every_level_and_take_no_bytes(tmp_path):
    values = np.ones((2048, 2048), np.uint8)
    levels = written(tmp_path, values, 512, leave_out=range(1, 16))
    expected = np.full((2048, 2048), FILL, np.uint8)
    expected[:512, :512] = 1
    for level in levels:
        np.testing.assert_array_equal(level[:, :], expected)
        expected = half(expected)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3000  # three tiles of ones
    (tmp_path / "none").mkdir()
    written(tmp_path / "none", values, 512, leave_out=range(16))
    assert not any(path.stat().st_size for path in (tmp_path / "none").iterdir())


def test_files_of_an_interrupted_process_are_emptied(tmp_path):
    written(tmp_path, np.ones((600, 600), np.uint8), 512)
    levels = empty_levels(tmp_path, (600, 600), name="map", fill=FILL)
    assert (levels[0][:, :] == FILL).all()
    assert not any(path.stat().st_size for path in tmp_path.iterdir())
