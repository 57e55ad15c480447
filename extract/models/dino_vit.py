"""A DINO training checkpoint as a timm VisionTransformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from pathseg.extract.models.checkpoint import read_state_dict
from pathseg.extract.models.weights import Shape, check_weights, load_frozen, named_instead, shapes_of
from pathseg.store.grid import PATCH_PX

HEAD_DIM = 64  # width of an attention head in every DINO ViT; checkpoints do not hold it

# The tensors that the sizes of a ViT are read from, with their axes.
SIZING = {
    "pos_embed": ("1", "1 + g*g", "D"),
    "patch_embed.proj.weight": ("D", "3", "p", "p"),
    "blocks.0.mlp.fc1.weight": ("hidden", "D"),
}


def read_vit(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the ViT of a checkpoint under DINO's names, without a head: its teacher, or else its only state dict.

    Raises FileNotFoundError; ValueError when the file is unreadable or holds no such ViT, naming the tensor.
    """
    found = read_state_dict(path, "teacher")
    named = {name.removeprefix("backbone."): tensor for name, tensor in found.items()}
    tensors = {name: tensor for name, tensor in named.items() if not name.startswith("head.")}
    for name, axes in SIZING.items():
        if name not in tensors:
            raise ValueError(
                f"{path} has no tensor {name}, {named_instead(tensors, name)}; a DINO checkpoint of a ViT is needed "
                "(HIPT's vit256*.pth)"
            )
        if len(shape := tuple(tensors[name].shape)) != len(axes) or 0 in shape:
            raise ValueError(
                f"{path}: tensor {name} must have the axes ({', '.join(axes)}), none of them empty, got the shape "
                f"{shape}; a DINO checkpoint of a ViT is needed (HIPT's vit256*.pth)"
            )
    dim, patch = tensors["pos_embed"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
    if dim % HEAD_DIM:
        raise ValueError(f"{path} has a ViT of width {dim}, but it must be a multiple of its heads' width {HEAD_DIM}")
    if PATCH_PX % patch:
        raise ValueError(f"{path} has a ViT with tokens of {patch} px, but they must divide patches of {PATCH_PX} px")
    grid, hidden = math.isqrt(tensors["pos_embed"].shape[1] - 1), tensors["blocks.0.mlp.fc1.weight"].shape[0]
    check_weights(tensors, vit_shapes(dim, _depth(tensors), grid=grid, patch=patch, hidden=hidden), str(path))
    return tensors


def _depth(tensors: Mapping[str, torch.Tensor]) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})


def empty_vit(dim: int, depth: int, *, grid: int, patch: int = 16, hidden: int | None = None) -> VisionTransformer:
    """Build DINO's VisionTransformer without a head on the current default device, its weights not initialised.

    grid: side of its square of position embeddings. hidden: width of its MLPs, by default 4 x dim.
    """
    return VisionTransformer(
        img_size=grid * patch,
        patch_size=patch,
        num_classes=0,
        embed_dim=dim,
        depth=depth,
        num_heads=dim // HEAD_DIM,
        mlp_ratio=(hidden or 4 * dim) / dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        weight_init="skip",  # they are replaced; on the meta device drawing them takes half of the time of loading
    )


@lru_cache(maxsize=8)
def vit_shapes(
    dim: int, depth: int, *, grid: int = 14, patch: int = 16, hidden: int | None = None
) -> Mapping[str, Shape]:
    """Return the names and shapes of the tensors of `empty_vit`, read-only."""
    with torch.device("meta"):
        return MappingProxyType(shapes_of(empty_vit(dim, depth, grid=grid, patch=patch, hidden=hidden)))


def build_vit(tensors: Mapping[str, torch.Tensor]) -> VisionTransformer:
    """Build the ViT for 256 px patches from what `read_vit` returned: float32, CPU, frozen, ready to run."""
    dim, patch = tensors["pos_embed"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
    grid, hidden = PATCH_PX // patch, tensors["blocks.0.mlp.fc1.weight"].shape[0]
    with torch.device("meta"):
        vit = empty_vit(dim, _depth(tensors), grid=grid, patch=patch, hidden=hidden)
    return load_frozen(vit, {**tensors, "pos_embed": resize_positions(tensors["pos_embed"].float(), grid)})


def load_vit(path: str | Path) -> VisionTransformer:
    """Read a DINO checkpoint and build its ViT for 256 px patches."""
    return build_vit(read_vit(path))


def resize_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Resize position embeddings (1, 1 + g*g, D) to a grid of side x side tokens as DINO does.

    Bicubic without antialiasing, with the scale factor (side + 0.1) / g passed on to the interpolation: DINO's
    `interpolate_pos_encoding`. timm's `resample_abs_pos_embed` returns other values.
    """
    grid = math.isqrt(positions.shape[1] - 1)
    if grid == side:
        return positions
    cells = positions[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / grid
    cells = F.interpolate(cells, scale_factor=(scale, scale), mode="bicubic")  # (1, D, side, side)
    return torch.cat([positions[:, :1], cells.flatten(2).transpose(1, 2)], dim=1)


def vit_tokens(vit: VisionTransformer, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a ViT: (N, 3, 256, 256) in [-1, 1] -> normed patch tokens as a map (N, D, g, g) and class token (N, D).

    g = 16 for tokens of 16 px. The class token is the embedding y of equation 1 of the paper.
    """
    tokens = vit.forward_features(pixels)  # (N, 1 + g*g, D), the class token first
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side)), tokens[:, 0]
