"""Capture the block outputs of a UNet with forward hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import torch
from torch import nn

from pathseg.extract.models.ldm.unet import UNet


class _LastBlock(Exception):
    """Ends the forward pass after the last wanted block."""


def block_modules(unet: UNet) -> list[nn.Module]:
    """Return the modules whose outputs are blocks 0 (middle) and 1, 2, ... (upsampling), in the order they run.

    CompVis counts a residual layer, its attention and its upsampling layer as one output block; diffusers keeps them
    in three lists. The output of a block is that of the last of its layers.
    """
    modules = [cast(nn.Module, unet.mid_block)]
    for stage in cast("list[Any]", unet.up_blocks):  # diffusers types them as modules without these attributes
        modules += getattr(stage, "attentions", stage.resnets)
        if stage.upsamplers is not None:
            modules[-1] = stage.upsamplers[0]
    return modules


@contextmanager
def captured(unet: UNet, blocks: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Capture blocks of one call of `unet` inside this context in the yielded dict: block number -> (N, C, h, w).

    The call stops after the last wanted block and leaves the context, so statements after it do not run. The hooks
    are removed on leaving the context, also after an error. Raises ValueError for a block that the UNet does not have.
    """
    modules = block_modules(unet)
    wanted = sorted(set(blocks))
    if not wanted or wanted[0] < 0 or wanted[-1] >= len(modules):
        raise ValueError(f"blocks {wanted} are not within 0-{len(modules) - 1} (0 = middle, then upsampling)")
    outputs: dict[int, torch.Tensor] = {}

    def keep(block: int, output: Any) -> None:
        outputs[block] = output[0] if isinstance(output, tuple) else output  # attention layers give a 1-tuple
        if block == wanted[-1]:
            raise _LastBlock

    with ExitStack() as hooks:
        for block in wanted:
            hook = modules[block].register_forward_hook(lambda _m, _i, output, block=block: keep(block, output))
            hooks.callback(hook.remove)
        with suppress(_LastBlock):
            yield outputs
