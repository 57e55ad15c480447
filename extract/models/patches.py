"""Input normalisation of the encoders."""

from __future__ import annotations

import numpy as np
import torch

from pathseg.store.grid import PATCH_PX
from pathseg.store.runtime.device import upload


def network_input(images: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Normalise patches for the ViT and the first stage: uint8 RGB (N, 256, 256, 3) -> float32 (N, 3, 256, 256).

    x / 127.5 - 1, so in [-1, 1]. Raises ValueError for another shape or dtype.
    """
    return channels_first(images, device).div(127.5).sub(1)


def channels_first(images: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Bring patches to the device: uint8 RGB (N, 256, 256, 3) -> float32 (N, 3, 256, 256), 0 to 255.

    Raises ValueError for another shape or dtype.
    """
    dtype = str(images.dtype).removeprefix("torch.")
    if images.ndim != 4 or tuple(images.shape[1:]) != (PATCH_PX, PATCH_PX, 3) or dtype != "uint8":
        raise ValueError(f"patches must be uint8 (N, {PATCH_PX}, {PATCH_PX}, 3), got {dtype} {tuple(images.shape)}")
    if isinstance(images, np.ndarray):
        images = torch.tensor(images)  # a copy: decoded images are often read-only, which as_tensor warns of
    return upload(images, device).permute(0, 3, 1, 2).float()
