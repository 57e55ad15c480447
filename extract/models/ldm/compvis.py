"""CompVis' names of the tensors that diffusers' networks hold under other names."""

from __future__ import annotations

from pathseg.extract.models.ldm.config import UNetDesign

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
ENCODER_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str, design: UNetDesign) -> str:
    """Return CompVis' name of a tensor of diffusers' UNet, as below `model.diffusion_model.`.

    CompVis numbers all layers of the downsampling and of the upsampling path in one row each, where diffusers has
    blocks of a level. The q, k and v of plain self-attention are one tensor in CompVis' network.
    """
    layer, _, kind = name.rpartition(".")  # kind: weight or bias
    if layer in UNET_ENDS:
        return f"{UNET_ENDS[layer]}.{kind}"
    part, *path = layer.split(".")
    if part == "mid_block":
        modules, number, *rest = path
        return f"middle_block.{2 * int(number) + (modules == 'attentions')}.{_unet_layer(modules, rest, design)}.{kind}"
    level, modules, number, *rest = path
    per_level = design.num_res_blocks + 1  # a level's downsampling layer counts too
    row = int(level) * per_level + int(number)
    if modules == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * per_level}.0.op.{kind}"
    if modules == "upsamplers":
        attends = design.attends(len(design.channel_mult) - 1 - int(level))
        return f"output_blocks.{(int(level) + 1) * per_level - 1}.{1 + attends}.conv.{kind}"
    block = f"input_blocks.{row + 1}" if part == "down_blocks" else f"output_blocks.{row}"
    return f"{block}.{int(modules == 'attentions')}.{_unet_layer(modules, rest, design)}.{kind}"


def _unet_layer(modules: str, path: list[str], design: UNetDesign) -> str:
    layer = ".".join(path)
    if modules == "resnets":
        return RESIDUAL[layer]
    return UNET_ATTENTION[layer] if design.context_dim is None else layer


def encoder_name(name: str) -> str:
    """Return CompVis' name of a tensor of `FirstStage`, as below `first_stage_model.`."""
    layer, _, kind = name.rpartition(".")
    match layer.split("."):
        case ["encoder", "down_blocks", level, "resnets", number, *rest]:
            layer = f"encoder.down.{level}.block.{number}.{'.'.join(rest)}"
        case ["encoder", "down_blocks", level, "downsamplers", "0", "conv"]:
            layer = f"encoder.down.{level}.downsample.conv"
        case ["encoder", "mid_block", "resnets", number, *rest]:
            layer = f"encoder.mid.block_{int(number) + 1}.{'.'.join(rest)}"
        case ["encoder", "mid_block", "attentions", "0", *rest]:
            layer = f"encoder.mid.attn_1.{ENCODER_ATTENTION['.'.join(rest)]}"
        case ["encoder", "conv_norm_out"]:
            layer = "encoder.norm_out"
    return f"{layer.replace('conv_shortcut', 'nin_shortcut')}.{kind}"
