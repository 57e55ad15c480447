import threading

import pytest

from pathseg.store.runtime.prefetch import HELD_BYTES, ahead


def test_results_come_in_order():
    assert list(ahead(lambda x: x * x, range(20), at_once=4, size_bytes=lambda x: 1)) == [x * x for x in range(20)]


def test_calls_run_at_once():
    meeting = threading.Barrier(4, timeout=10)  # which nobody leaves before four are there
    assert len(list(ahead(lambda x: meeting.wait(), range(8), at_once=4, size_bytes=lambda x: 1))) == 8


@pytest.mark.parametrize(("size_bytes", "most"), [(1, 3), (HELD_BYTES // 2, 2), (2 * HELD_BYTES, 1)])
def test_no_more_is_taken_than_may_wait(size_bytes, most):
    taken = []
    results = ahead(lambda x: x, (taken.append(x) or x for x in range(9)), at_once=3, size_bytes=lambda x: size_bytes)
    for done, _ in enumerate(results):
        assert len(taken) <= done + most + 1  # and the one that waits to be taken in


def test_an_error_is_raised_at_its_turn():
    results = ahead(lambda x: 1 // x, [1, 1, 0, 1], at_once=2, size_bytes=lambda x: 1)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
