"""A fixed number of CPU threads for forward passes, because rounding depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU_THREADS = 2  # with another number PyTorch sums in another order; with two it agrees with the reference to 4e-6


@contextmanager
def fixed_threads(device: torch.device) -> Iterator[None]:
    """Set PyTorch to CPU_THREADS threads inside this context, and back afterwards; does nothing for a GPU.

    More cores are used by more worker processes (`--workers`).
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or before == CPU_THREADS:
        yield
        return
    torch.set_num_threads(CPU_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
