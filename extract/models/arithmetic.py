"""The arithmetic of forward passes: what rounding depends on, the same in every process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pathseg.store.runtime.device import ieee_float32

CPU_THREADS = 2  # with another number PyTorch sums in another order; with two it agrees with the reference to 4e-6


@contextmanager
def fixed_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute in `ieee_float32` inside this context, on a CPU with CPU_THREADS threads.

    More cores are used by more worker processes (`--workers`).
    """
    with ieee_float32():
        before = torch.get_num_threads()
        if device.type != "cpu" or before == CPU_THREADS:
            yield
            return
        torch.set_num_threads(CPU_THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(before)
