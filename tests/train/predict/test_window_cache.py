import numpy as np
import pytest

from pathseg.train.predict.window_cache import Answers

SHAPE = (2, 16, 16)


def maps(count, seed=0):
    return np.random.default_rng(seed).random((count, *SHAPE), np.float32)


def answers(folder, about=None):
    return Answers(folder, windows=4, shape=SHAPE, about=about or {"run": "a"})


def test_in_memory_values_come_back_exactly():
    kept = answers(None)
    kept.write([0, 2], maps(2))
    np.testing.assert_array_equal(kept.read(2), maps(2)[1])


def test_on_disk_values_come_back_as_float16(tmp_path):
    kept = answers(tmp_path / "work")
    kept.write([1], maps(1))
    np.testing.assert_array_equal(kept.read(1), maps(1)[0].astype(np.float16))


def test_what_was_committed_is_not_lacking_after_opening_again(tmp_path):
    answers(tmp_path / "work").write([0, 1], maps(2))
    again = answers(tmp_path / "work")
    assert not again.lacking([0, 1])
    assert again.lacking([1, 2])
    np.testing.assert_array_equal(again.read(1), maps(2)[1].astype(np.float16))


def test_a_line_that_was_cut_off_does_not_count_nor_spoil_the_next(tmp_path):
    answers(tmp_path / "work").write([0], maps(1))
    with (tmp_path / "work" / "done.txt").open("a") as journal:
        journal.write("1")  # of a number that was to follow
    answers(tmp_path / "work").write([3], maps(1))
    again = answers(tmp_path / "work")
    assert [again.lacking([i]) for i in range(4)] == [False, True, True, False]


def test_answers_of_another_make_are_thrown_away(tmp_path):
    answers(tmp_path / "work").write([0], maps(1))
    assert answers(tmp_path / "work", {"run": "b"}).lacking([0])


def test_a_damaged_window_is_named(tmp_path):
    answers(tmp_path / "work").write([0], maps(1))
    (chunk,) = (path for path in (tmp_path / "work").rglob("*") if path.is_file() and "/c/" in path.as_posix())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match=r"window 0 .*delete"):
        answers(tmp_path / "work").read(0)


def test_a_window_that_has_gone_is_not_read_as_empty(tmp_path):
    answers(tmp_path / "work").write([0], maps(1))
    (chunk,) = (path for path in (tmp_path / "work").rglob("*") if path.is_file() and "/c/" in path.as_posix())
    chunk.unlink()
    with pytest.raises(ValueError, match=r"window 0 .*has gone"):
        answers(tmp_path / "work").read(0)


def test_removing_leaves_nothing(tmp_path):
    kept = answers(tmp_path / "work")
    kept.remove()
    assert not (tmp_path / "work").exists()
