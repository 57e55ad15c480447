"""The noise of equation 3, reproducible per patch."""

from __future__ import annotations

import hashlib

import torch


def patch_noise(shape: tuple[int, int, int], *, seed: int, image_id: str, patch: int, t: int) -> torch.Tensor:
    """Draw eps of one patch: (z, h, w) float32 on the CPU, standard normal. No global generator is used.

    The generator's seed is the first 8 bytes, big endian with the top bit cleared, of the SHA-256 of
    `"{seed}/{image_id}/{patch}/{t}"`. So the noise does not depend on batch size, order, worker, device or resume.
    """
    digest = hashlib.sha256(f"{seed}/{image_id}/{patch}/{t}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") & (2**63 - 1))
    return torch.randn(shape, generator=generator)


def add_noise(z0: torch.Tensor, eps: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """Return zt = sqrt(abar_t) z0 + sqrt(1 - abar_t) eps, equation 3 of the paper: (N, z, h, w)."""
    return alpha_bar**0.5 * z0 + (1 - alpha_bar) ** 0.5 * eps
