"""The interface of a frozen feature model, whatever its architecture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pathseg.store.key import DiffusersSettings, ViTSettings, ZoomSettings

    Images = np.ndarray | torch.Tensor


class FeatureModel(Protocol):
    """A frozen model that computes feature maps of patches. Images are uint8 RGB (N, 256, 256, 3).

    Returned tensors are float32 on `device` and carry no autograd state: every method runs in inference mode. Images
    of another dtype or shape raise ValueError.

    Attributes:
        name: of the model record, or of the release folder.
        trained: False for random weights.
        digest: hex SHA-256 of all weights and settings that change the features.
        first_stage: `vq-f4`, `kl-f8`, ... or `none`.
        condition: `ssl` or `none`.
        blocks: block number -> (channels, side) of its feature map.
        default_blocks: those that are extracted unless others are named.
        vit: how a timm model was built and fed, None for others.
        diffusers: how the denoiser of a diffusers pipeline was conditioned, None for others.
        zoom: how ZoomLDM was conditioned, None for others and without its condition.
        notes: what a user should know about the choice of files and settings, one line each.
    """

    name: str
    trained: bool
    digest: str
    first_stage: str
    condition: Literal["ssl", "none"]
    blocks: dict[int, tuple[int, int]]
    default_blocks: tuple[int, ...]
    vit: ViTSettings | None
    diffusers: DiffusersSettings | None
    zoom: ZoomSettings | None
    notes: tuple[str, ...]
    device: torch.device

    @property
    def latent_shape(self) -> tuple[int, int, int] | None:
        """(z, h, w) of a patch, or None for a model without latents."""

    @property
    def timesteps(self) -> int | None:
        """The number of timesteps: 0 <= t < timesteps. None for a model without noise."""

    def embed(self, images: Images) -> torch.Tensor:
        """Return the SSL embeddings y = SSL(x), equation 1: (N, D), for ZoomLDM (N, D, h, w) of the cells of images.

        Raises ValueError without a ViT.
        """

    def encode(self, images: Images) -> torch.Tensor:
        """Return the latents z0 = E(x), equation 2: (N, z, h, w), scale factor applied.

        Raises ValueError for a model without latents.
        """

    def prepare(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the inputs of `denoise`, which are the same for every timestep.

        A diffusion model returns z0 (N, z, h, w) and the context tokens (N, L, c), L = 0 for a denoiser that takes
        none. The ViT of a DINO checkpoint returns its patch tokens (N, D, h, w) and embeddings (N, D), a timm model its
        normalised images (N, 3, H, W) and no context.
        """

    def denoise(
        self, z0: torch.Tensor, context: torch.Tensor, t: int, blocks: Iterable[int], noise: Images | None
    ) -> dict[int, torch.Tensor]:
        """Return the features of what `prepare` returned: block -> (N, C, h, w). Arguments as of `features`."""

    def features(
        self, images: Images, t: int = 50, blocks: Iterable[int] | None = None, noise: Images | None = None
    ) -> dict[int, torch.Tensor]:
        """Run the denoiser once at timestep t (0-based) and return its block outputs: block -> (N, C, h, w).

        blocks: all of the model by default; the pass stops after the last of them. noise: eps of equation 3,
        (N, z, h, w); by default that of `noise.patch_noise` for seed 0, image id `array` and the index in the batch,
        so equal calls return equal features. A ViT has no noise and no timesteps and ignores both.

        Raises ValueError for a timestep or a block that the model does not have.
        """
