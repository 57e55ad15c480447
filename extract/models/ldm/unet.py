"""The denoiser of a release as diffusers' UNet2DConditionModel or, without a context, UNet2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from pathseg.extract.models.arithmetic import skip_divisions_by_one
from pathseg.extract.models.ldm.compvis import unet_name
from pathseg.extract.models.ldm.config import UNetDesign
from pathseg.extract.models.weights import Shape, load_frozen, shapes_of

UNet = UNet2DConditionModel | UNet2DModel


def empty_unet(design: UNetDesign) -> UNet:
    """Build the network of a design on the current default device (`meta` for one without memory)."""
    sizes: dict[str, Any] = {
        "in_channels": design.in_channels,
        "out_channels": design.out_channels,
        "block_out_channels": design.channels,
        "layers_per_block": design.num_res_blocks,
    }
    attends = [design.attends(level) for level in range(len(design.channels))]
    kind = "Attn" if design.context_dim is None else "CrossAttn"
    sizes["down_block_types"] = tuple(f"{kind if a else ''}DownBlock2D" for a in attends)
    sizes["up_block_types"] = tuple(f"{kind if a else ''}UpBlock2D" for a in reversed(attends))
    if design.context_dim is not None:
        return UNet2DConditionModel(
            **sizes,
            transformer_layers_per_block=design.transformer_depth,
            cross_attention_dim=design.context_dim,
            attention_head_dim=design.heads,  # diffusers' name for the number of heads per level
        )
    unet = UNet2DModel(**sizes, attention_head_dim=None)
    for module in unet.modules():  # UNet2DModel takes the width of heads alone, a config may give their number
        if isinstance(module, Attention):
            module.heads = design.heads_of(module.inner_dim)
            module.scale = (module.inner_dim // module.heads) ** -0.5
    return unet


@lru_cache(maxsize=8)
def unet_shapes(design: UNetDesign) -> Mapping[str, Shape]:
    """Return the shapes of a design's tensors under CompVis' names, as below `model.diffusion_model.`; read-only."""
    with torch.device("meta"):
        shapes = shapes_of(empty_unet(design))
    named = {unet_name(name, design): shape for name, shape in shapes.items()}
    if design.context_dim is None:  # plain self-attention is a convolution over a row of cells in CompVis' network
        for name, (rows, *columns) in named.items():
            if ".qkv." in name:
                named[name] = (3 * rows, *columns, 1) if columns else (3 * rows,)
            elif name.endswith(".proj_out.weight"):
                named[name] = (rows, *columns, 1)
    return MappingProxyType(named)


def build_unet(design: UNetDesign, tensors: Mapping[str, torch.Tensor]) -> UNet:
    """Build the denoiser of a design with weights under CompVis' names: float32, CPU, frozen, ready to run."""
    with torch.device("meta"):
        unet = empty_unet(design)
    state = {}
    for name, shape in shapes_of(unet).items():
        tensor = tensors[unet_name(name, design)]
        if ".qkv." in unet_name(name, design):
            tensor = _split_qkv(tensor, design)[["to_q", "to_k", "to_v"].index(name.split(".")[-2])]
        state[name] = tensor.reshape(shape)  # drops the axes of length 1 of kernels that are matrices here
    return skip_divisions_by_one(load_frozen(unet, state))


def _split_qkv(qkv: torch.Tensor, design: UNetDesign) -> torch.Tensor:
    """Split the tensor of plain self-attention: (3C, ...) -> (3, C, ...), q, k and v with their heads in order."""
    if not design.new_attention_order:  # its rows are q, k, v of the first head, then of the second, ...
        heads = design.heads_of(len(qkv) // 3)
        qkv = qkv.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return qkv.unflatten(0, (3, -1))
