"""The conditioning stage of a release: SSL embeddings to the context tokens of the denoiser."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from pathseg.extract.models.ldm.config import ConditioningDesign
from pathseg.extract.models.weights import Shape, load_frozen, shapes_of


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


def conditioning_shapes(design: ConditioningDesign, context_dim: int) -> dict[str, Shape]:
    """Return the shapes of a design's tensors, named as below `cond_stage_model.`."""
    with torch.device("meta"):
        return shapes_of(Conditioning(design, context_dim))


def build_conditioning(
    design: ConditioningDesign, context_dim: int, tensors: Mapping[str, torch.Tensor]
) -> Conditioning:
    """Build the conditioning stage of a design with its weights: float32, CPU, frozen, ready to run."""
    with torch.device("meta"):
        stage = Conditioning(design, context_dim)
    return load_frozen(stage, tensors)
