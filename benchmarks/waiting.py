"""Which share of a run is not computation, measured within the run itself, so that it lies between 0 and 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch

from pathseg.extract.unit import ComputedUnit, Extraction, LoadedUnit
from pathseg.train.data.reader import Batch, FeatureReader


@contextmanager
def timed_computation() -> Iterator[Callable[[], float]]:
    """Give a function that returns the seconds in which features of units were computed within this context.

    On a GPU between two events on the stream that computes, which do not wait for it: kernels of a unit run after
    `Extraction.compute` has returned.
    """
    spans: list[Callable[[], float]] = []
    compute = Extraction.compute

    def timed(extraction: Extraction, loaded: LoadedUnit) -> ComputedUnit:
        if extraction.model.device.type != "cuda":
            start = time.perf_counter()
            computed = compute(extraction, loaded)
            taken = time.perf_counter() - start
            spans.append(lambda: taken)
            return computed
        stream = torch.cuda.current_stream(extraction.model.device)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record(stream)
        computed = compute(extraction, loaded)
        last.record(stream)
        spans.append(lambda: _between(first, last))
        return computed

    with patch.object(Extraction, "compute", timed):
        yield lambda: sum(span() for span in spans)


def _between(first: torch.cuda.Event, last: torch.cuda.Event) -> float:
    last.synchronize()
    return first.elapsed_time(last) / 1000


@dataclass
class BatchTimes:
    """Seconds of each pass over images: until its batches were there, and in which they were used."""

    waited: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)

    def share(self, first: int = 0) -> float:
        """Return the share of waiting in the passes from `first` on."""
        waited, used = sum(self.waited[first:]), sum(self.used[first:])
        return waited / (waited + used)


@contextmanager
def timed_batches() -> Iterator[BatchTimes]:
    """Give the times of the batches of all readers in this context; a GPU has finished a batch before the next."""
    times, batches = BatchTimes(), FeatureReader.batches

    def timed(reader: FeatureReader, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        own, waited, used = batches(reader, indices, batch_size), 0.0, 0.0
        try:
            while True:
                start = time.perf_counter()
                batch = next(own, None)
                there = time.perf_counter()
                waited += there - start
                if batch is None:
                    return
                yield batch
                if reader.device.type == "cuda":
                    torch.cuda.synchronize(reader.device)
                used += time.perf_counter() - there
        finally:
            own.close()
            times.waited.append(waited)
            times.used.append(used)

    with patch.object(FeatureReader, "batches", timed):
        yield times
