"""One pass of a frozen denoiser: equation 3 of the paper and the outputs of its blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from pathseg.extract.models.arithmetic import fixed_arithmetic
from pathseg.extract.models.hooks import captured
from pathseg.extract.models.ldm.unet import UNet
from pathseg.extract.models.noise import add_noise, patch_noise
from pathseg.store.runtime.device import upload

if TYPE_CHECKING:
    from pathseg.extract.models.feature_model import Images
    from pathseg.store.key import DiffusersSettings, ViTSettings, ZoomSettings


class DenoiserFeatures(ABC):
    """What the diffusion models have in common as FeatureModels, whose attributes a subclass sets.

    _unet: on `device`. _alpha_bars: cumulative products of 1 - beta, one for each timestep.
    """

    name: str
    device: torch.device
    blocks: dict[int, tuple[int, int]]
    latent_shape: tuple[int, int, int]
    timesteps: int
    vit: ViTSettings | None = None
    diffusers: DiffusersSettings | None = None
    zoom: ZoomSettings | None = None
    notes: tuple[str, ...] = ()
    _unet: UNet
    _alpha_bars: np.ndarray

    @abstractmethod
    def prepare(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute z0 (N, z, h, w) and the context tokens (N, L, c), L = 0 for a denoiser that takes none."""

    def _run(self, zt: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> None:
        """Call the denoiser, whose block outputs are captured meanwhile. t: (), int64, on `device`."""
        self._unet(zt, t, *([context] if context.shape[1] else []))

    @torch.inference_mode()
    def denoise(
        self, z0: torch.Tensor, context: torch.Tensor, t: int, blocks: Iterable[int], noise: Images | None
    ) -> dict[int, torch.Tensor]:
        """Add noise (equation 3) and run the denoiser up to the last wanted block: block -> (N, C, h, w)."""
        wanted = self._check(t, blocks)
        eps = torch.as_tensor(self._noise(len(z0), t) if noise is None else noise, dtype=torch.float32)
        eps = upload(eps, self.device)
        if eps.shape != z0.shape:
            raise ValueError(f"noise must have the latents' shape {tuple(z0.shape)}, got {tuple(eps.shape)}")
        zt = add_noise(z0, eps, float(self._alpha_bars[t]))
        with fixed_arithmetic(self.device), captured(self._unet, wanted) as features:
            # a number would be copied to a GPU after all that is queued there (`upload`)
            self._run(zt, torch.full((), t, dtype=torch.long, device=self.device), context)
        return features

    def features(
        self, images: Images, t: int = 50, blocks: Iterable[int] | None = None, noise: Images | None = None
    ) -> dict[int, torch.Tensor]:
        """Run `denoise` on the outputs of `prepare`, by default for all blocks: block -> (N, C, h, w)."""
        wanted = self._check(t, self.blocks if blocks is None else blocks)  # before the encoders run
        return self.denoise(*self.prepare(images), t, wanted, noise)

    def _noise(self, patches: int, t: int) -> torch.Tensor:
        rule = (patch_noise(self.latent_shape, seed=0, image_id="array", patch=i, t=t) for i in range(patches))
        return torch.stack(list(rule))  # (N, z, h, w)

    def _check(self, t: int, blocks: Iterable[int]) -> list[int]:
        """Check t and blocks; return the blocks in ascending order without duplicates."""
        if not isinstance(t, int | np.integer) or not 0 <= t < self.timesteps:
            raise ValueError(f"t must be a whole number within 0-{self.timesteps - 1}, got {t}")
        wanted = sorted(set(blocks))
        unknown = [block for block in wanted if block not in self.blocks]
        if unknown or not wanted:
            what = f"has no block {unknown[0]}" if unknown else "needs at least one block"
            raise ValueError(f"model {self.name} {what}; its blocks are 0-{max(self.blocks)}")
        return wanted
