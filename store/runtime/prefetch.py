"""Work that waits for a disk or a network, several pieces of it at once, with a bound on the memory it holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")
HELD_BYTES = 2**28  # of what waits; one item may be larger and then goes alone


def ahead(
    call: Callable[[Item], Result], items: Iterable[Item], *, at_once: int, size_bytes: Callable[[Item], int]
) -> Iterator[Result]:
    """`map(call, items)`, in order, in up to `at_once` threads that run ahead of whoever takes the results.

    Items are taken one at a time, in the caller's thread, the next one only while those under way stay below HELD_BYTES
    by `size_bytes`. An error of a call is raised at its turn; calls that have begun are waited for.
    """
    waiting: deque[tuple[Future[Result], int]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        for item in items:
            size = size_bytes(item)
            while waiting and (len(waiting) >= at_once or sum(s for _, s in waiting) + size > HELD_BYTES):
                yield waiting.popleft()[0].result()
            waiting.append((pool.submit(call, item), size))
        while waiting:
            yield waiting.popleft()[0].result()
