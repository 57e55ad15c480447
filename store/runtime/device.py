"""The torch device to compute on."""

from __future__ import annotations

import torch


def device(name: str) -> str:
    """Return the name of a torch device; `auto` is the first available of cuda, mps and cpu.

    Raises ValueError for a device that is not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device {name} is not available ({str(e).splitlines()[0]}); pass --device auto") from e
    return name
