"""The device that work is done on."""

from __future__ import annotations

import torch


def device(name: str) -> str:
    """`auto` -> cuda, mps or cpu, whichever is at hand in this order. Raises ValueError for one that is not."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device {name} is not there ({str(e).splitlines()[0]}); pass --device auto") from e
    return name
