"""Features of a frozen latent diffusion model: equations 1 to 3 of the paper and one denoiser pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from pathseg.extract.models.arithmetic import fixed_arithmetic
from pathseg.extract.models.denoiser_features import DenoiserFeatures
from pathseg.extract.models.dino_vit import build_vit, vit_tokens
from pathseg.extract.models.ldm.conditioning import Conditioning, ZoomConditioning, build_conditioning
from pathseg.extract.models.ldm.config import ZOOM_TOKENS, ConditioningDesign, ZoomDesign
from pathseg.extract.models.ldm.first_stage import build_first_stage
from pathseg.extract.models.ldm.release import Release
from pathseg.extract.models.ldm.unet import build_unet
from pathseg.extract.models.ldm.zoom_embeddings import ZoomEmbeddings
from pathseg.extract.models.patches import network_input
from pathseg.extract.models.weights import weights_digest

if TYPE_CHECKING:
    from pathseg.extract.models.feature_model import Images


class DiffusionFeatures(DenoiserFeatures):
    """A latent diffusion release and its ViT as a FeatureModel."""

    def __init__(
        self,
        release: Release,
        vit: Mapping[str, torch.Tensor] | ZoomEmbeddings | None,
        *,
        name: str,
        trained: bool,
        device: str | torch.device = "cpu",
    ) -> None:
        """Build the networks. Without `vit` the features are unconditional.

        vit: tensors of a DINO checkpoint, of ZoomLDM the embeddings of cells. Unconditional: the patch embedding is
        zero; of ZoomLDM all context tokens are zero, so its conditioning stage is not built. Raises ValueError for a
        ViT that the release has no conditioning stage for, or one of another kind or width.
        """
        self.name, self.trained = name, trained
        self.device = torch.device(device)
        self.condition: Literal["ssl", "none"] = "none" if vit is None else "ssl"
        self.first_stage = release.first_stage_design.name
        self.latent_shape = release.first_stage_design.latent_shape
        self.blocks = release.unet_design.blocks(self.latent_shape[1])
        self.default_blocks = tuple(self.blocks)
        self.timesteps = release.schedule.timesteps
        self.digest = _digest(release, vit)
        if vit is not None:
            _require_fit(release, vit)
        self._embeddings = vit if isinstance(vit, ZoomEmbeddings) else None
        self._vit = None if vit is None or isinstance(vit, ZoomEmbeddings) else build_vit(vit).to(self.device)
        if self._embeddings is not None:
            self.zoom = self._embeddings.settings
            self.notes = (str(self._embeddings),)
        self._encoder = build_first_stage(release.first_stage_design, release.first_stage).to(self.device)
        self._conditioning: Conditioning | ZoomConditioning | None = None
        self._zero_context = (0, 0)  # (L, c) of the context without a conditioning stage
        design, width = release.conditioning_design, release.unet_design.context_dim
        if width is not None and design is not None and (isinstance(design, ConditioningDesign) or vit is not None):
            self._conditioning = build_conditioning(design, width, release.conditioning).to(self.device)
        elif width is not None:
            self._zero_context = (ZOOM_TOKENS, width)
        self._unet = build_unet(release.unet_design, release.unet)
        cast(nn.Module, self._unet).to(self.device)  # diffusers' classes do not show as modules to a type checker
        self._scale_factor = release.scale_factor
        self._alpha_bars = release.schedule.alpha_bars()

    @torch.inference_mode()
    def embed(self, images: Images) -> torch.Tensor:
        """Compute the embeddings of equation 1: (N, D), for ZoomLDM (N, D, h, w). Raises ValueError without a ViT."""
        if self._embeddings is not None:
            return self._embeddings(images)
        if self._vit is None:
            raise ValueError(f"model {self.name} was loaded with condition 'none' and has no ViT; use condition 'ssl'")
        with fixed_arithmetic(self.device):
            return vit_tokens(self._vit, network_input(images, self.device))[1]

    @torch.inference_mode()
    def encode(self, images: Images) -> torch.Tensor:
        """Compute the latents of equation 2: (N, z, h, w), scale factor applied."""
        with fixed_arithmetic(self.device):
            return self._encoder(network_input(images, self.device)) * self._scale_factor

    @torch.inference_mode()
    def prepare(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute z0 (N, z, h, w) and the context tokens (N, L, c), L = 0 without a conditioning stage."""
        z0 = self.encode(images)
        if self._conditioning is None:
            return z0, z0.new_zeros(len(z0), *self._zero_context)
        if isinstance(self._conditioning, ZoomConditioning):
            assert self._embeddings is not None  # without them the stage is not built
            embeddings = self.embed(images)
            with fixed_arithmetic(self.device):
                return z0, self._conditioning(embeddings, self._embeddings.level)
        if self._vit is None:
            embedding = torch.zeros(len(z0), self._conditioning.design.patch_embed_dim, device=self.device)
        else:
            embedding = self.embed(images)
        with fixed_arithmetic(self.device):
            return z0, self._conditioning(embedding)


def _require_fit(release: Release, vit: Mapping[str, torch.Tensor] | ZoomEmbeddings) -> None:
    design, of_cells = release.conditioning_design, isinstance(vit, ZoomEmbeddings)
    if design is None:
        raise ValueError(f"{release.source} has no conditioning stage, so it takes no ViT; use condition 'none'")
    if of_cells is not isinstance(design, ZoomDesign):
        wanted = "a DINO checkpoint of HIPT's kind" if of_cells else "a timm model"
        raise ValueError(f"{release.source} takes the ViT of its condition as {wanted}; pass that, or condition 'none'")
    needed = design.input_channels if isinstance(design, ZoomDesign) else design.patch_embed_dim
    width = vit.width if isinstance(vit, ZoomEmbeddings) else vit["pos_embed"].shape[-1]
    if width != needed:
        raise ValueError(
            f"the ViT gives embeddings of {width}, but the conditioning stage of {release.source} takes "
            f"{needed}; pass the ViT that this release was trained with as --hipt"
        )


def _digest(release: Release, vit: Mapping[str, torch.Tensor] | ZoomEmbeddings | None) -> str:
    of_cells = vit if isinstance(vit, ZoomEmbeddings) else None
    of_dino = {} if vit is None or isinstance(vit, ZoomEmbeddings) else vit
    networks = {"unet": release.unet, "first_stage": release.first_stage, "vit": of_dino}
    # unconditional features of ZoomLDM do not depend on its conditioning stage
    if of_cells is not None or not isinstance(release.conditioning_design, ZoomDesign):
        networks["conditioning"] = release.conditioning
    tensors = {f"{network}.{name}": tensor for network, named in networks.items() for name, tensor in named.items()}
    schedule = release.schedule
    settings: dict[str, Any] = {
        "first_stage": release.first_stage_design.name,
        "scale_factor": release.scale_factor,
        "schedule": [schedule.linear_start, schedule.linear_end, schedule.timesteps],
        "heads": release.unet_design.heads,
    }
    match release.conditioning_design:
        case None:
            settings["new_attention_order"] = release.unet_design.new_attention_order
        case ConditioningDesign(normalize=normalize):
            settings["normalize"] = normalize
        case ZoomDesign() if of_cells is not None:
            settings |= {"magnification": of_cells.level, "cells": of_cells.settings.cells, "vit": of_cells.digest}
        case ZoomDesign():
            settings["zero_context"] = ZOOM_TOKENS
    return weights_digest(tensors, settings)
