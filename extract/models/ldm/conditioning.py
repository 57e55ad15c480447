"""The conditioning stages of releases: SSL embeddings to the context tokens of the denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.vision_transformer import Encoder

from pathseg.extract.models.ldm.config import (
    ZOOM_HEADS,
    ZOOM_MAGNIFICATIONS,
    ZOOM_SIDE,
    ZOOM_TOKENS,
    ConditioningDesign,
    ZoomDesign,
    zoom_design,
)
from pathseg.extract.models.weights import Shape, check_weights, load_frozen, shapes_of


class Conditioning(nn.Module):
    """SSLEmbedder (a patch token and a region token) or PatchEmbedder (a patch token) of the public release.

    Images are cut into patches without the region around them, so the region embedding is always zero, as the release
    does without one.
    """

    def __init__(self, design: ConditioningDesign, context_dim: int) -> None:
        super().__init__()
        self.design = design
        self.patch_fc = nn.Linear(design.patch_embed_dim, context_dim)
        if design.region_embed_dim is not None:
            self.region_fc = nn.Linear(design.region_embed_dim, context_dim)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """(N, D) patch embeddings -> (N, L, context_dim), L = 2 or 1 tokens. A zero embedding: unconditional."""
        if self.design.normalize:
            embedding = F.normalize(embedding, dim=-1)  # zeros stay zeros
        tokens = [self.patch_fc(embedding)]
        if self.design.region_embed_dim is not None:
            tokens.append(self.region_fc(embedding.new_zeros(len(embedding), self.design.region_embed_dim)))
        return torch.stack(tokens, dim=1)


class ZoomConditioning(nn.Module):
    """EmbeddingViT2_5 of ZoomLDM: the embeddings of an image's 20x patches and its magnification.

    Without condition the denoiser takes zeros in the place of these tokens.
    """

    def __init__(self, design: ZoomDesign) -> None:
        super().__init__()
        self.design = design
        self.pad_token = nn.Parameter(torch.empty(1, 1, design.hidden_channels))
        self.mag_embedding = nn.Embedding(ZOOM_MAGNIFICATIONS, design.hidden_channels)
        self.dim_reduce = nn.Linear(design.input_channels, design.hidden_channels)
        self.encoder = Encoder(
            seq_length=ZOOM_TOKENS,
            num_layers=design.num_layers,
            num_heads=ZOOM_HEADS,
            hidden_dim=design.hidden_channels,
            mlp_dim=design.vit_mlp_dim,
            dropout=0.0,
            attention_dropout=0.0,
        )
        self.final_proj = nn.Linear(design.hidden_channels, design.output_channels)
        self.layer_norm = nn.LayerNorm(design.output_channels)

    def forward(self, features: torch.Tensor, magnification: int = 0) -> torch.Tensor:
        """(N, D, h, w) embeddings of the 256 px patches at 20x that images cover -> (N, 65, output_channels).

        magnification: 0 = 20x, 1 = 10x, 2 = 5x, ..., 7. h = w = 1, 2, 4, 8 at magnifications 0 to 3; beyond, the cells
        are averaged down to 8x8. Raises ValueError for another magnification, width or number of cells.
        """
        _check_embeddings(features, self.design.input_channels, magnification)
        if features.shape[-1] > ZOOM_SIDE:
            features = F.adaptive_avg_pool2d(features, ZOOM_SIDE)
        std, mean = torch.std_mean(features, dim=1, keepdim=True)  # (N, 1, h, w): per cell, the sample's deviation
        cells = ((features - mean) / (std + 1e-8)).flatten(2).transpose(1, 2)  # (N, h*w, D), row by row
        n, count = cells.shape[:2]
        start = ZOOM_SIDE**2 // 2 - count // 2  # in the middle of the 64
        tokens = self.pad_token.repeat(n, ZOOM_SIDE**2, 1)
        tokens[:, start : start + count] = self.dim_reduce(cells)
        index = torch.full((n, 1), magnification, device=features.device)
        tokens = torch.cat([self.mag_embedding(index), tokens], dim=1)  # (N, 65, hidden_channels)
        return self.layer_norm(self.final_proj(self.encoder(tokens)))


def _check_embeddings(features: torch.Tensor, width: int, magnification: int) -> None:
    if not isinstance(magnification, int) or not 0 <= magnification < ZOOM_MAGNIFICATIONS:
        raise ValueError(
            f"magnification must be a whole number within 0-{ZOOM_MAGNIFICATIONS - 1} (0 = 20x, 1 = 10x, ...), got "
            f"{magnification!r}"
        )
    shape, side = tuple(features.shape), 2**magnification
    fits = side == shape[-1] if side <= ZOOM_SIDE else shape[-1] >= ZOOM_SIDE
    if len(shape) != 4 or shape[1] != width or shape[2] != shape[3] or not fits:
        cells = f"{side}, {side})" if side <= ZOOM_SIDE else f"h, h) with h from {ZOOM_SIDE} on"
        raise ValueError(f"embeddings at magnification {magnification} must be (N, {width}, {cells}, got {shape}")


def zoom_conditioning(params: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> ZoomConditioning:
    """Build ZoomLDM's conditioning stage with its weights: float32, CPU, frozen, ready to run.

    params: of the config's cond_stage_config. weights: its tensors, named as below `cond_stage_model.`.

    Raises ValueError for an option that is missing or of another kind, and for weights that do not fit the params.
    """
    design = zoom_design(params)
    check_weights(weights, conditioning_shapes(design, design.output_channels), "the weights of EmbeddingViT2_5")
    with torch.device("meta"):
        stage = ZoomConditioning(design)
    return load_frozen(stage, weights)


def conditioning_shapes(design: ConditioningDesign | ZoomDesign, context_dim: int) -> dict[str, Shape]:
    """Return the shapes of a design's tensors, named as below `cond_stage_model.`."""
    with torch.device("meta"):
        return shapes_of(_empty_stage(design, context_dim))


def build_conditioning(
    design: ConditioningDesign | ZoomDesign, context_dim: int, tensors: Mapping[str, torch.Tensor]
) -> Conditioning | ZoomConditioning:
    """Build the conditioning stage of a release with its weights: float32, CPU, frozen, ready to run."""
    with torch.device("meta"):
        stage = _empty_stage(design, context_dim)
    return load_frozen(stage, tensors)


def _empty_stage(design: ConditioningDesign | ZoomDesign, context_dim: int) -> Conditioning | ZoomConditioning:
    return ZoomConditioning(design) if isinstance(design, ZoomDesign) else Conditioning(design, context_dim)
