"""Prefetching: map a function over items in several threads, with a bound on the bytes that are held in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
PREFETCH_BYTES = 2**28  # of items in flight; a larger item is processed alone


def prefetch_map(
    call: Callable[[Item], Result], items: Iterable[Item], *, threads: int, size_bytes: Callable[[Item], int]
) -> Generator[Result, None, None]:
    """Yield `call(item)` for each item, in order, computed in up to `threads` threads before it is requested.

    Items are taken from the iterable one at a time, in the caller's thread, while the total `size_bytes` of items in
    flight stays below PREFETCH_BYTES. An exception of a call is raised when its result is due; running calls are
    waited for.
    """
    pending: deque[tuple[Future[Result], int]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            size = size_bytes(item)
            while pending and (len(pending) >= threads or sum(s for _, s in pending) + size > PREFETCH_BYTES):
                yield pending.popleft()[0].result()
            pending.append((pool.submit(call, item), size))
        while pending:
            yield pending.popleft()[0].result()
