"""The conditioning stage of a release: embeddings to the denoiser's context tokens."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pathseg.extract.models.ldm.config import ConditioningDesign
from pathseg.extract.models.ldm.release import Release


class Conditioning(nn.Module):
    """SSLEmbedder (a patch and a region token) or PatchEmbedder (a patch token) of the public release.

    A patch comes without a region around it, so the region's embedding is always zeros, as in the release.
    """

    def __init__(self, design: ConditioningDesign, context_dim: int) -> None:
        super().__init__()
        self.design = design
        self.patch_fc = nn.Linear(design.patch_embed_dim, context_dim)
        if design.region_embed_dim is not None:
            self.region_fc = nn.Linear(design.region_embed_dim, context_dim)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """(N, D) patch embeddings -> (N, L, context_dim), L = 2 or 1 tokens. Zeros stand for no condition."""
        if self.design.normalize:
            embedding = F.normalize(embedding, dim=-1)  # zeros stay zeros
        tokens = [self.patch_fc(embedding)]
        if self.design.region_embed_dim is not None:
            tokens.append(self.region_fc(embedding.new_zeros(len(embedding), self.design.region_embed_dim)))
        return torch.stack(tokens, dim=1)


def build_conditioning(release: Release) -> Conditioning | None:
    """The release's conditioning stage with its weights: float32, CPU, frozen, ready to run; None where it has none."""
    if release.conditioning_design is None or release.unet_design.context_dim is None:
        return None
    with torch.device("meta"):
        stage = Conditioning(release.conditioning_design, release.unet_design.context_dim)
    stage.load_state_dict({n: t.to(torch.float32, copy=True) for n, t in release.conditioning.items()}, assign=True)
    return stage.eval().requires_grad_(False)
