"""A DINO training checkpoint as a timm VisionTransformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from pathseg.extract.models.checkpoint import read_checkpoint
from pathseg.extract.models.ldm.shapes import check_shapes, named_tensors, vit_shapes
from pathseg.store.grid import PATCH_PX

HEAD_DIM = 64  # width of an attention head in every DINO ViT; a checkpoint does not say it

# The tensors that a ViT's sizes are read from, with their axes.
SIZING = {
    "pos_embed": ("1", "1 + g*g", "D"),
    "patch_embed.proj.weight": ("D", "3", "p", "p"),
    "blocks.0.mlp.fc1.weight": ("hidden", "D"),
}


def read_vit(path: str | Path) -> dict[str, torch.Tensor]:
    """The teacher of a DINO training checkpoint, or a plain state dict, under DINO's names and without a head.

    Raises FileNotFoundError; ValueError when the file is unreadable or holds no such ViT, naming the tensor.
    """
    content = read_checkpoint(path)
    state = content.get("teacher", content) if isinstance(content, dict) else content
    found = named_tensors(state, str(path))
    named = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in found.items()}
    tensors = {name: tensor for name, tensor in named.items() if not name.startswith("head.")}
    for name, axes in SIZING.items():
        if name not in tensors:
            raise ValueError(f"{path} has no tensor {name}; a DINO checkpoint of a ViT is needed (HIPT's vit256*.pth)")
        if len(shape := tuple(tensors[name].shape)) != len(axes) or 0 in shape:
            raise ValueError(
                f"{path}: tensor {name} must have the axes ({', '.join(axes)}), none of them empty, got the shape "
                f"{shape}; a DINO checkpoint of a ViT is needed (HIPT's vit256*.pth)"
            )
    check_shapes(tensors, _expected(tensors), str(path))
    if (dim := tensors["pos_embed"].shape[-1]) % HEAD_DIM:
        raise ValueError(f"{path} has a ViT of width {dim}, but it must be a multiple of its heads' width {HEAD_DIM}")
    if PATCH_PX % (token := tensors["patch_embed.proj.weight"].shape[-1]):
        raise ValueError(f"{path} has a ViT with tokens of {token} px, but they must divide patches of {PATCH_PX} px")
    return tensors


def _expected(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes that follow from the sizes of three tensors and the number of blocks."""
    positions, dim = tensors["pos_embed"].shape[-2:]
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    patch, hidden = tensors["patch_embed.proj.weight"].shape[-1], tensors["blocks.0.mlp.fc1.weight"].shape[0]
    return vit_shapes(dim, len(blocks), grid=math.isqrt(positions - 1), patch=patch, hidden=hidden)


def build_vit(tensors: Mapping[str, torch.Tensor]) -> VisionTransformer:
    """The ViT for 256 px patches with weights as `read_vit` gives them: float32, CPU, frozen, ready to run."""
    dim, patch = tensors["pos_embed"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
    with torch.device("meta"):
        vit = VisionTransformer(
            img_size=PATCH_PX,
            patch_size=patch,
            num_classes=0,
            embed_dim=dim,
            depth=sum(name.endswith(".attn.qkv.weight") for name in tensors),
            num_heads=dim // HEAD_DIM,
            mlp_ratio=tensors["blocks.0.mlp.fc1.weight"].shape[0] / dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    copies["pos_embed"] = resize_positions(copies["pos_embed"], PATCH_PX // patch)
    vit.load_state_dict(copies, assign=True)
    return vit.eval().requires_grad_(False)


def load_vit(path: str | Path) -> VisionTransformer:
    """`build_vit` of `read_vit`: a DINO checkpoint ready to run on 256 px patches."""
    return build_vit(read_vit(path))


def resize_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings (1, 1 + g*g, D) for a grid of side x side tokens, by DINO's own rule.

    Bicubic without antialiasing, with the scale (side + 0.1) / g handed on to the interpolation: DINO's
    `interpolate_pos_encoding`. timm's own resampling gives other values.
    """
    grid = math.isqrt(positions.shape[1] - 1)
    if grid == side:
        return positions
    cells = positions[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / grid
    cells = F.interpolate(cells, scale_factor=(scale, scale), mode="bicubic")  # (1, D, side, side)
    return torch.cat([positions[:, :1], cells.flatten(2).transpose(1, 2)], dim=1)


def vit_tokens(vit: VisionTransformer, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, 256, 256) in [-1, 1] -> the normed patch tokens as a map (N, D, g, g) and the class token (N, D).

    g = 16 for tokens of 16 px. The class token is the embedding y of equation 1 of the paper.
    """
    tokens = vit.forward_features(pixels)  # (N, 1 + g*g, D), the class token first
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side)), tokens[:, 0]
