import threading

import pytest

from pathseg.store.runtime.prefetch import PREFETCH_BYTES, prefetch_map


def test_results_come_in_order():
    assert list(prefetch_map(lambda x: x * x, range(20), threads=4, size_bytes=lambda x: 1)) == [
        x * x for x in range(20)
    ]


def test_calls_run_at_once():
    meeting = threading.Barrier(4, timeout=10)  # which nobody leaves before four are there
    assert len(list(prefetch_map(lambda x: meeting.wait(), range(8), threads=4, size_bytes=lambda x: 1))) == 8


@pytest.mark.parametrize(("size_bytes", "most"), [(1, 3), (PREFETCH_BYTES // 2, 2), (2 * PREFETCH_BYTES, 1)])
def test_no_more_is_taken_than_may_wait(size_bytes, most):
    taken = []
    results = prefetch_map(
        lambda x: x, (taken.append(x) or x for x in range(9)), threads=3, size_bytes=lambda x: size_bytes
    )
    for done, _ in enumerate(results):
        assert len(taken) <= done + most + 1  # and the one that waits to be taken in


def test_an_error_is_raised_at_its_turn():
    results = prefetch_map(lambda x: 1 // x, [1, 1, 0, 1], threads=2, size_bytes=lambda x: 1)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
