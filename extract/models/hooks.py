"""Feature blocks read from a running UNet: forward hooks from outside, stopping once all have been seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from pathseg.extract.models.ldm.unet import UNet


class _Seen(Exception):
    """All wanted blocks have been seen; the rest of the pass is not needed."""


def block_modules(unet: UNet) -> list[nn.Module]:
    """The modules whose outputs are blocks 0 (middle) and 1, 2, ... (upsampling), in running order.

    CompVis counts a residual layer, its attention and its upsampling layer as one output block; diffusers keeps them
    in three lists. A block's output is that of the last of the three which it has.
    """
    modules: list[nn.Module] = [unet.mid_block]
    for stage in unet.up_blocks:
        modules += getattr(stage, "attentions", stage.resnets)
        if stage.upsamplers is not None:
            modules[-1] = stage.upsamplers[0]
    return modules


@contextmanager
def captured(unet: UNet, blocks: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Within this context one call of `unet` fills the yielded dict: block number -> (N, C, h, w).

    The call ends at the last wanted block (so it returns nothing, and what follows it inside the context is
    skipped). The hooks are gone when the context is left, however it is left. Raises ValueError for a block that
    the UNet does not have.
    """
    modules = block_modules(unet)
    wanted = sorted(set(blocks))
    if not wanted or wanted[0] < 0 or wanted[-1] >= len(modules):
        raise ValueError(f"blocks {wanted} are not within 0-{len(modules) - 1} (0 = middle, then upsampling)")
    outputs: dict[int, torch.Tensor] = {}

    def keep(block: int, output: Any) -> None:
        outputs[block] = output[0] if isinstance(output, tuple) else output  # attention layers give a 1-tuple
        if block == wanted[-1]:
            raise _Seen

    with ExitStack() as hooks:
        for block in wanted:
            hook = modules[block].register_forward_hook(lambda _m, _i, output, block=block: keep(block, output))
            hooks.callback(hook.remove)
        with suppress(_Seen):
            yield outputs
