"""A forward pass on a CPU takes the same number of threads everywhere, because rounding depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU_THREADS = 2  # PyTorch sums in another order with another number; this one agrees with the reference to 4e-6


@contextmanager
def fixed_threads(device: torch.device) -> Iterator[None]:
    """Run what is inside on CPU_THREADS threads of PyTorch; on a GPU nothing changes. More cores: `--workers`."""
    before = torch.get_num_threads()
    if device.type != "cpu" or before == CPU_THREADS:
        yield
        return
    torch.set_num_threads(CPU_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
