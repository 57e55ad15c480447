"""The denoiser of a release as diffusers' UNet2DConditionModel or, without a context, UNet2DModel."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.attention_processor import Attention

from pathseg.extract.models.ldm.config import UNetDesign
from pathseg.extract.models.ldm.release import UNET, Release, Tensors

UNet = UNet2DConditionModel | UNet2DModel


def empty_unet(design: UNetDesign) -> UNet:
    """The network of a design, on whatever device is the default (`meta` for one without memory)."""
    sizes = {
        "in_channels": design.in_channels,
        "out_channels": design.out_channels,
        "block_out_channels": design.channels,
        "layers_per_block": design.num_res_blocks,
    }
    if design.context_dim is None:
        return _without_context(design, sizes)
    down, up = _types(design, "CrossAttn")
    return UNet2DConditionModel(
        **sizes,
        down_block_types=down,
        up_block_types=up,
        transformer_layers_per_block=design.transformer_depth,
        cross_attention_dim=design.context_dim,
        attention_head_dim=design.heads,  # diffusers' name for the number of heads per level
    )


def build_unet(release: Release) -> UNet:
    """The release's denoiser with its weights: float32, CPU, frozen, ready to run."""
    design = release.unet_design
    with torch.device("meta"):
        unet = empty_unet(design)
    named = {UNET + name: tensor for name, tensor in release.unet.items()}
    tensors = convert_ldm_unet_checkpoint(named, {"layers_per_block": design.num_res_blocks})
    if design.context_dim is None:
        tensors = _self_attention(tensors, design)
    # Copies: what was read may be a view of a file that the user is free to move or replace.
    unet.load_state_dict({n: t.to(torch.float32, copy=True) for n, t in tensors.items()}, assign=True)
    return unet.eval().requires_grad_(False)


def _types(design: UNetDesign, attention: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """diffusers' names of the blocks on the way down and on the way up."""
    kinds = [attention if design.attends(level) else "" for level in range(len(design.channels))]
    return tuple(f"{kind}DownBlock2D" for kind in kinds), tuple(f"{kind}UpBlock2D" for kind in reversed(kinds))


def _without_context(design: UNetDesign, sizes: dict[str, int | tuple[int, ...]]) -> UNet2DModel:
    """UNet2DModel takes one width of heads for all levels, so where a config gives their number it is set here."""
    down, up = _types(design, "Attn")
    unet = UNet2DModel(**sizes, down_block_types=down, up_block_types=up, attention_head_dim=None)
    for module in unet.modules():
        if isinstance(module, Attention):
            module.heads = design.heads_of(module.inner_dim)
            module.scale = (module.inner_dim // module.heads) ** -0.5
    return unet


def _self_attention(tensors: Tensors, design: UNetDesign) -> Tensors:
    """CompVis' AttentionBlocks under the names of diffusers' Attention: one matrix each for q, k and v."""
    renamed = {}
    for name, tensor in tensors.items():
        if ".attentions." not in name:
            renamed[name] = tensor
        elif ".qkv." in name:
            for part, rows in zip("qkv", _parts(tensor, design), strict=True):
                renamed[name.replace("qkv", f"to_{part}")] = rows
        else:
            renamed[name.replace("norm", "group_norm").replace("proj_out", "to_out.0")] = _matrix(tensor)
    return renamed


def _parts(qkv: torch.Tensor, design: UNetDesign) -> torch.Tensor:
    """(3C, C, 1) or (3C,) -> (3, C, C) or (3, C): q, k and v, the heads of each in their order."""
    rows = _matrix(qkv)
    if not design.new_attention_order:  # q, k, v of the first head, then of the second, ...
        heads = design.heads_of(len(rows) // 3)
        rows = rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return rows.unflatten(0, (3, -1))


def _matrix(kernel: torch.Tensor) -> torch.Tensor:
    """A convolution's kernel of one cell as a matrix; what has no kernel as it is."""
    return kernel[..., 0] if kernel.ndim == 3 else kernel
