"""Names and shapes of a release's tensors, from its config: what a checkpoint must hold, under CompVis' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch

from pathseg.extract.models.ldm.config import ConditioningDesign, FirstStageDesign, UNetDesign

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


def unet_shapes(design: UNetDesign) -> dict[str, Shape]:
    """CompVis' `UNetModel`, names as below `model.diffusion_model.`."""
    return dict(_unet(design))


def encoder_shapes(design: FirstStageDesign) -> dict[str, Shape]:
    """The part of the first stage that makes latents, names as below `first_stage_model.`."""
    return dict(_encoder(design))


def decoder_shapes(design: FirstStageDesign) -> dict[str, Shape]:
    """The rest of the first stage, in every release but not used here."""
    return dict(_decoder(design))


def conditioning_shapes(design: ConditioningDesign | None, context_dim: int | None) -> dict[str, Shape]:
    """SSLEmbedder or PatchEmbedder, names as below `cond_stage_model.`; none without a conditioning stage."""
    if design is None or context_dim is None:
        return {}
    shapes = dict(_layer("patch_fc", context_dim, design.patch_embed_dim))
    if design.region_embed_dim is not None:
        shapes |= _layer("region_fc", context_dim, design.region_embed_dim)
    return shapes


def vit_shapes(dim: int, depth: int, *, grid: int = 14, patch: int = 16, hidden: int | None = None) -> dict[str, Shape]:
    """DINO's VisionTransformer without a head; `grid` x `grid` positions, `hidden` (default 4 x dim) in its MLPs."""
    return dict(_vit(dim, depth, grid, patch, hidden or 4 * dim))


def named_tensors(state: Any, source: str) -> dict[str, torch.Tensor]:
    """The tensors of a state dict by name; ValueError, naming `source`, where it is none or a key is no string."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{source} must hold tensors by name, got {type(state).__name__}; a state dict is needed")
    for key in state:
        if not isinstance(key, str):
            raise ValueError(f"{source} must name its tensors by strings, got the key {key!r}; a state dict is needed")
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def check_shapes(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, Shape], source: str) -> None:
    """Raise ValueError, naming the first offending tensor, unless the names and shapes are the expected ones."""
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    wrong = [name for name in expected if name in tensors and tuple(tensors[name].shape) != tuple(expected[name])]
    for names, what in ((missing, "lacks"), (unexpected, "has the unexpected"), (wrong, "does not fit its config in")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            sizes = "" if names is not wrong else f": {tuple(tensors[names[0]].shape)}, not {expected[names[0]]}"
            raise ValueError(f"{source} {what} tensor {names[0]}{sizes}{more}")


def _layer(name: str, *shape: int) -> Named:
    """Weight and bias of a convolution (out, in, k, k), a linear layer (out, in) or a norm (channels,)."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _unet(design: UNetDesign) -> Named:
    first, embedding = design.channels[0], 4 * design.model_channels
    yield from _layer("time_embed.0", embedding, design.model_channels)
    yield from _layer("time_embed.2", embedding, embedding)
    yield from _layer("input_blocks.0.0", first, design.in_channels, 3, 3)
    width, skips, number = first, [first], 1
    for level, channels in enumerate(design.channels):
        for _ in range(design.num_res_blocks):
            yield from _residual(f"input_blocks.{number}.0", width, channels, embedding)
            if design.attends(level):
                yield from _attending(f"input_blocks.{number}.1", channels, design)
            width, number = channels, number + 1
            skips.append(channels)
        if level < len(design.channels) - 1:
            yield from _layer(f"input_blocks.{number}.0.op", channels, channels, 3, 3)
            skips.append(channels)
            number += 1
    yield from _residual("middle_block.0", width, width, embedding)
    yield from _attending("middle_block.1", width, design)
    yield from _residual("middle_block.2", width, width, embedding)
    yield from _upsampling(design, width, skips, embedding)
    yield from _layer("out.0", first)
    yield from _layer("out.2", design.out_channels, first, 3, 3)


def _upsampling(design: UNetDesign, width: int, skips: list[int], embedding: int) -> Named:
    number = 0
    for level in reversed(range(len(design.channels))):
        channels = design.channels[level]
        for layer in range(design.num_res_blocks + 1):
            block = f"output_blocks.{number}"
            yield from _residual(f"{block}.0", width + skips.pop(), channels, embedding)
            if design.attends(level):
                yield from _attending(f"{block}.1", channels, design)
            if level and layer == design.num_res_blocks:
                yield from _layer(f"{block}.{1 + design.attends(level)}.conv", channels, channels, 3, 3)
            width, number = channels, number + 1


def _residual(name: str, width: int, channels: int, embedding: int) -> Named:
    yield from _layer(f"{name}.in_layers.0", width)
    yield from _layer(f"{name}.in_layers.2", channels, width, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", channels, embedding)
    yield from _layer(f"{name}.out_layers.0", channels)
    yield from _layer(f"{name}.out_layers.3", channels, channels, 3, 3)
    if width != channels:
        yield from _layer(f"{name}.skip_connection", channels, width, 1, 1)


def _self_attention(name: str, channels: int) -> Named:
    """CompVis' `AttentionBlock`, which convolves over the cells in a row: kernels of one cell."""
    yield from _layer(f"{name}.norm", channels)
    yield from _layer(f"{name}.qkv", 3 * channels, channels, 1)
    yield from _layer(f"{name}.proj_out", channels, channels, 1)


def _attending(name: str, channels: int, design: UNetDesign) -> Named:
    if design.context_dim is None:
        yield from _self_attention(name, channels)
    else:
        yield from _transformer(name, channels, design.transformer_depth, design.context_dim)


def _transformer(name: str, channels: int, depth: int, context: int) -> Named:
    yield from _layer(f"{name}.norm", channels)
    yield from _layer(f"{name}.proj_in", channels, channels, 1, 1)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        yield from _attention(f"{block}.attn1", channels, channels)
        yield from _layer(f"{block}.ff.net.0.proj", 8 * channels, channels)
        yield from _layer(f"{block}.ff.net.2", channels, 4 * channels)
        yield from _attention(f"{block}.attn2", channels, context)
        for norm in (1, 2, 3):
            yield from _layer(f"{block}.norm{norm}", channels)
    yield from _layer(f"{name}.proj_out", channels, channels, 1, 1)


def _attention(name: str, channels: int, context: int) -> Named:
    yield f"{name}.to_q.weight", (channels, channels)
    yield f"{name}.to_k.weight", (channels, context)
    yield f"{name}.to_v.weight", (channels, context)
    yield from _layer(f"{name}.to_out.0", channels, channels)


def _encoder(design: FirstStageDesign) -> Named:
    levels, doubled = design.channels, 2 if design.kind == "kl" else 1
    yield from _layer("encoder.conv_in", levels[0], 3, 3, 3)
    for level, (width, channels) in enumerate(pairwise((levels[0], *levels))):
        yield from _stack(f"encoder.down.{level}", width, channels, design.num_res_blocks)
        if level < len(levels) - 1:
            yield from _layer(f"encoder.down.{level}.downsample.conv", channels, channels, 3, 3)
    yield from _middle("encoder.mid", levels[-1])
    yield from _layer("encoder.norm_out", levels[-1])
    yield from _layer("encoder.conv_out", doubled * design.z_channels, levels[-1], 3, 3)
    yield from _layer("quant_conv", doubled * design.embed_dim, doubled * design.z_channels, 1, 1)


def _decoder(design: FirstStageDesign) -> Named:
    levels = design.channels
    yield from _layer("decoder.conv_in", levels[-1], design.z_channels, 3, 3)
    yield from _middle("decoder.mid", levels[-1])
    for level, (channels, width) in enumerate(pairwise((*levels, levels[-1]))):
        yield from _stack(f"decoder.up.{level}", width, channels, design.num_res_blocks + 1)
        if level:
            yield from _layer(f"decoder.up.{level}.upsample.conv", channels, channels, 3, 3)
    yield from _layer("decoder.norm_out", levels[0])
    yield from _layer("decoder.conv_out", 3, levels[0], 3, 3)
    yield from _layer("post_quant_conv", design.z_channels, design.embed_dim, 1, 1)
    if design.n_embed is not None:
        yield "quantize.embedding.weight", (design.n_embed, design.embed_dim)


def _stack(name: str, width: int, channels: int, layers: int) -> Named:
    for layer in range(layers):
        yield from _block(f"{name}.block.{layer}", channels if layer else width, channels)


def _middle(name: str, channels: int) -> Named:
    yield from _block(f"{name}.block_1", channels, channels)
    yield from _layer(f"{name}.attn_1.norm", channels)
    for projection in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{name}.attn_1.{projection}", channels, channels, 1, 1)
    yield from _block(f"{name}.block_2", channels, channels)


def _block(name: str, width: int, channels: int) -> Named:
    yield from _layer(f"{name}.norm1", width)
    yield from _layer(f"{name}.conv1", channels, width, 3, 3)
    yield from _layer(f"{name}.norm2", channels)
    yield from _layer(f"{name}.conv2", channels, channels, 3, 3)
    if width != channels:
        yield from _layer(f"{name}.nin_shortcut", channels, width, 1, 1)


def _vit(dim: int, depth: int, grid: int, patch: int, hidden: int) -> Named:
    yield "cls_token", (1, 1, dim)
    yield "pos_embed", (1, grid * grid + 1, dim)
    yield from _layer("patch_embed.proj", dim, 3, patch, patch)
    for block in (f"blocks.{number}" for number in range(depth)):
        yield from _layer(f"{block}.norm1", dim)
        yield from _layer(f"{block}.attn.qkv", 3 * dim, dim)
        yield from _layer(f"{block}.attn.proj", dim, dim)
        yield from _layer(f"{block}.norm2", dim)
        yield from _layer(f"{block}.mlp.fc1", hidden, dim)
        yield from _layer(f"{block}.mlp.fc2", dim, hidden)
    yield from _layer("norm", dim)
