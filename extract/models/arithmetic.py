"""The arithmetic of forward passes: what rounding depends on, the same in every process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from pathseg.store.runtime.device import ieee_float32

Network = TypeVar("Network", bound=nn.Module)
FACTORS = ("output_scale_factor", "rescale_output_factor")  # diffusers' names for what a layer's sum is divided by
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


class _One:
    """The number one as a divisor of tensors: `x / _One()` is x itself, where `x / 1.0` copies every value."""

    def __rtruediv__(self, x: torch.Tensor) -> torch.Tensor:
        return x


def skip_divisions_by_one(network: Network) -> Network:
    """Let residual and attention layers of diffusers leave out their last division where its factor is one.

    The values stay the same to the bit. Other factors are kept.
    """
    for module in network.modules():
        for factor in FACTORS:
            if getattr(module, factor, None) == 1:
                setattr(module, factor, _One())
    return network
