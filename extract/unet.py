"""The denoiser of a release as a diffusers UNet2DConditionModel."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from pathseg.extract.architecture import UNetDesign
from pathseg.extract.release import UNET, Release


def empty_unet(design: UNetDesign) -> UNet2DConditionModel:
    """The network of a design, on whatever device is the default (`meta` for one without memory)."""
    attends = [design.attends(level) for level in range(len(design.channels))]
    return UNet2DConditionModel(
        in_channels=design.in_channels,
        out_channels=design.out_channels,
        block_out_channels=design.channels,
        layers_per_block=design.num_res_blocks,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        transformer_layers_per_block=design.transformer_depth,
        cross_attention_dim=design.context_dim,
        attention_head_dim=design.heads,  # diffusers' name for the number of heads per level
    )


def build_unet(release: Release) -> UNet2DConditionModel:
    """The release's denoiser with its weights: float32, CPU, frozen, ready to run."""
    with torch.device("meta"):
        unet = empty_unet(release.unet_design)
    named = {UNET + name: tensor for name, tensor in release.unet.items()}
    tensors = convert_ldm_unet_checkpoint(named, {"layers_per_block": release.unet_design.num_res_blocks})
    # Copies: what was read may be a view of a file that the user is free to move or replace.
    unet.load_state_dict({n: t.to(torch.float32, copy=True) for n, t in tensors.items()}, assign=True)
    return unet.eval().requires_grad_(False)
