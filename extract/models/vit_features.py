"""The baseline without diffusion: patch tokens of a ViT as features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, NoReturn

import torch

from pathseg.extract.models.arithmetic import fixed_arithmetic
from pathseg.extract.models.dino_vit import build_vit, vit_tokens
from pathseg.extract.models.patches import network_input
from pathseg.extract.models.weights import weights_digest
from pathseg.store.grid import PATCH_PX

if TYPE_CHECKING:
    from pathseg.extract.models.feature_model import Images
    from pathseg.store.key import DiffusersSettings, ViTSettings, ZoomSettings


class TokenFeatures:
    """A ViT as a FeatureModel: block 0 is the map of its normed patch tokens. It has no latents, timesteps or noise."""

    first_stage = "none"
    condition: Literal["ssl", "none"] = "none"
    latent_shape = None
    timesteps = None
    vit: ViTSettings | None = None
    diffusers: DiffusersSettings | None = None
    zoom: ZoomSettings | None = None
    notes: tuple[str, ...] = ()
    default_blocks: tuple[int, ...] = (0,)

    def __init__(
        self, vit: Mapping[str, torch.Tensor], *, name: str, trained: bool, device: str | torch.device = "cpu"
    ) -> None:
        self.name, self.trained = name, trained
        self.device = torch.device(device)
        dim, patch = vit["pos_embed"].shape[-1], vit["patch_embed.proj.weight"].shape[-1]
        self.blocks = {0: (dim, PATCH_PX // patch)}
        self.digest = weights_digest(vit, {})
        self._vit = build_vit(vit).to(self.device)

    def embed(self, images: Images) -> torch.Tensor:
        """Return the normed class tokens: (N, D)."""
        return self.prepare(images)[1]

    def encode(self, images: Images) -> NoReturn:
        """Raise ValueError: a ViT has no latents."""
        raise ValueError(f"model {self.name} is a ViT and has no latents; use embed or features")

    @torch.inference_mode()
    def prepare(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the patch tokens as a map (N, D, g, g) and the embeddings (N, D)."""
        with fixed_arithmetic(self.device):
            return vit_tokens(self._vit, network_input(images, self.device))

    def denoise(
        self, z0: torch.Tensor, context: torch.Tensor, t: int, blocks: Iterable[int], noise: Images | None
    ) -> dict[int, torch.Tensor]:
        """Return the patch tokens of `prepare` as block 0; t and noise are ignored."""
        if set(wanted := list(blocks)) != {0}:
            raise ValueError(f"model {self.name} has its patch tokens as block 0 and no other, got blocks {wanted}")
        return {0: z0}

    def features(
        self, images: Images, t: int = 50, blocks: Iterable[int] | None = None, noise: Images | None = None
    ) -> dict[int, torch.Tensor]:
        """Return {0: patch tokens (N, D, g, g)}; t and noise are ignored."""
        return self.denoise(*self.prepare(images), t, self.blocks if blocks is None else blocks, noise)
