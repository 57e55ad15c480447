"""The head's first layer computed at native resolution: the same numbers without the upsampled stack.

A 1x1 convolution commutes with bilinear upsampling, and a 3x3 convolution is nine shifted 1x1 convolutions. So the
3x3 convolution over upsampled blocks of one native side r is a 1x1 convolution at r x r into nine taps, followed by
one small matrix per axis that upsamples, shifts and sums: Y = A Z A^T. Patches are upsampled separately, so each is
spread by itself, over its own cells and the ring around them, and rings are added to the neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from pathseg.store.format.layout import resample
from pathseg.store.grid import HEAD_CELLS, PatchGrid

Features = Mapping[int, torch.Tensor]  # block -> (N, P, C, h, w), patches row by row
TAPS = 3  # of the convolution, along each axis
SPREAD = HEAD_CELLS + TAPS - 1  # fine cells along an axis that the taps of a patch's cells reach


def native_pointwise(features: Features, weight: torch.Tensor, bias: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """The 1x1 convolution of the stacked blocks, {block: (N, P, C, h, w)} -> (N, O, 64*rows, 64*cols).

    Each block is convolved at its own side; only the O results are upsampled.
    """
    start, total = 0, bias[:, None, None]
    for block in sorted(features):
        maps = features[block]
        n, _, c = maps.shape[:3]
        part = F.conv2d(maps.flatten(0, 1).to(compute_dtype(weight)), weight[:, start : start + c]).unflatten(
            0, (n, -1)
        )
        total = total + _fine(part, grid)
        start += c
    return total


def native_convolution(features: Features, weight: torch.Tensor, bias: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """The 3x3 convolution (padding 1) of the stacked blocks, {block: (N, P, C, h, w)} -> (N, O, 64*rows, 64*cols).

    weight (O, sum C, 3, 3) with channels in ascending order of blocks, as `nn.Conv2d` has them. Blocks of one side
    are taken together, each group in the cheaper of the two ways, so the result equals the plain convolution of the
    upsampled stack up to rounding. Features get no gradient.
    """
    start = 0
    groups: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for block in sorted(features):
        maps = features[block].detach()
        groups.setdefault(maps.shape[-1], []).append((maps, weight[:, start : start + maps.shape[2]]))
        start += maps.shape[2]
    by_taps: list[torch.Tensor] = []
    parts: list[torch.Tensor] = []
    dtype = compute_dtype(weight)
    for side, members in groups.items():
        kernel = torch.cat([kernel for _, kernel in members], dim=1).to(dtype)
        if taps_are_cheaper(side, kernel.shape[1], kernel.shape[0]):
            by_taps += [kernel, torch.cat([_cells(maps, dtype) for maps, _ in members], dim=-1)]
        else:
            fine = torch.cat([_fine(maps.to(dtype), grid) for maps, _ in members], dim=1)
            parts.append(F.conv2d(fine, kernel, padding=TAPS // 2))
    if by_taps:
        parts.append(_ByTaps.apply(grid, *by_taps))
    return sum(parts[1:], parts[0]) + bias.to(dtype)[:, None, None]


def require_fitting(features: Features, channels: Mapping[int, int], grid: PatchGrid) -> None:
    """Raise ValueError unless the features are of a head's blocks and channels, and of the grid's patches."""
    given = {block: maps.shape[2] for block, maps in sorted(features.items())}
    if given != channels:
        raise ValueError(f"this head takes blocks and channels {channels}, got {given}")
    for block, maps in features.items():
        if maps.shape[1] != grid.patches:
            raise ValueError(
                f"block {block} has {maps.shape[1]} patches, but a {grid.rows}x{grid.cols} grid has {grid.patches}"
            )


def taps_are_cheaper(side: int, channels: int, outputs: int) -> bool:
    """Whether the way at native resolution takes fewer multiplications than the plain one, for one patch."""
    if side >= HEAD_CELLS:
        return False
    plain = channels * outputs * TAPS**2 * HEAD_CELLS**2
    pointwise = channels * outputs * TAPS**2 * side**2
    columns = outputs * TAPS * SPREAD * side * TAPS * side
    rows = outputs * SPREAD * SPREAD * TAPS * side
    return pointwise + columns + rows < plain


def compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """What a layer computes in: the type of the autocast that is on, or of its weight."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _cells(maps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, P, C, y, x) -> (N, P, x, y, C), which is what the taps are computed from, in one pass over the memory."""
    return maps.permute(0, 1, 4, 3, 2).to(dtype, memory_format=torch.contiguous_format)


def _fine(maps: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """(N, P, C, h, w) -> (N, C, 64*rows, 64*cols)."""
    n, p = maps.shape[:2]
    return grid.stitch(resample(maps.flatten(0, 1), HEAD_CELLS).unflatten(0, (n, p)))


class _ByTaps(torch.autograd.Function):
    """The convolution of blocks that are coarser than the head's grid, from kernels and `_cells` in turn.

    Every patch is brought to its 64 cells and one more on each side, which its taps reach in its neighbours. Each
    product finds what it sums over side by side in memory, forward and backward, and patch after patch goes through
    little memory: fresh memory for all of them at once costs a CPU as much as the products. Features get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, grid: PatchGrid, *kernels_and_cells: torch.Tensor) -> torch.Tensor:
        kernel, cells = kernels_and_cells[:2]
        (n, p), outputs = cells.shape[:2], len(kernel)
        padded = cells.new_empty(n * p, SPREAD, SPREAD, outputs)
        for number, (kernel, cells) in enumerate(_pairs(kernels_and_cells)):
            side, channels = cells.shape[2], cells.shape[4]
            pointwise = kernel.permute(2, 3, 0, 1).reshape(-1, channels)  # (ty tx o, c)
            spread = spread_matrix(side, dtype=cells.dtype, device=cells.device)
            down = cells.new_empty(side, SPREAD, TAPS * outputs)  # (x, Y, tx o)
            turned = cells.new_empty(SPREAD, side, TAPS * outputs)  # (Y, x, tx o)
            for patch, out in zip(cells.view(n * p, -1, channels), padded, strict=True):
                z = _product(patch, pointwise, side)  # (x y, ty tx o)
                torch.bmm(spread.expand(side, -1, -1), z.view(side, side * TAPS, -1), out=down)
                turned.copy_(down.transpose(0, 1))
                # (Y, X, o), on top of what coarser or finer blocks gave
                out.baddbmm_(spread.expand(SPREAD, -1, -1), turned.view(SPREAD, side * TAPS, -1), beta=number > 0)
        ctx.grid = grid
        ctx.save_for_backward(*kernels_and_cells)
        return _join(padded.view(n, p, SPREAD, SPREAD, outputs), grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        padded = _part(gradient, ctx.grid).flatten(0, 1)  # (n p, Y, X, o)
        outputs = padded.shape[-1]
        found: list[torch.Tensor | None] = [None]
        for _, cells in _pairs(ctx.saved_tensors):
            side, channels = cells.shape[2], cells.shape[4]
            gather = spread_matrix(side, dtype=cells.dtype, device=cells.device).T
            z = cells.new_empty(len(padded), side * side, TAPS * TAPS * outputs)  # (n p, x y, ty tx o)
            across = cells.new_empty(SPREAD, side * TAPS, outputs)  # (Y, x tx, o)
            turned = cells.new_empty(side, SPREAD, TAPS * outputs)  # (x, Y, tx o)
            for patch, out in zip(padded, z, strict=True):
                torch.bmm(gather.expand(SPREAD, -1, -1), patch, out=across)
                turned.copy_(across.view(SPREAD, side, -1).transpose(0, 1))
                torch.bmm(gather.expand(side, -1, -1), turned, out=out.view(side, side * TAPS, -1))
            # (ty tx o, c)
            pointwise = _product(z.flatten(0, 1).T, cells.view(-1, channels).T, TAPS * TAPS)
            found += [pointwise.view(TAPS, TAPS, outputs, channels).permute(2, 3, 0, 1), None]
        return tuple(found)


def _product(a: torch.Tensor, b: torch.Tensor, rows: int) -> torch.Tensor:
    """a @ b.T, (M, K) and (N, K) -> (M, N).

    In float32 on a CPU as a 1x1 convolution: PyTorch gives convolutions to oneDNN, and products to another library,
    which on some processors takes longer (`benchmarks.train.heads`). M is cut into `rows`, so that strides tell PyTorch
    that channels come last.
    """
    if a.device.type != "cpu" or a.dtype != torch.float32:
        return a @ b.T
    cells = a.contiguous().view(1, rows, len(a) // rows, -1).permute(0, 3, 1, 2)  # channels last
    return F.conv2d(cells, b[:, :, None, None].contiguous()).permute(0, 2, 3, 1).reshape(len(a), -1)


def _pairs(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(tensors[::2], tensors[1::2], strict=True)


# How the padded cells of patches meet the fine ones of the image along an axis, as (patches that give, patches that
# take, their cells among the padded, among the fine): a patch's own, its last in the next patch, its first in the one
# before. What lies outside the image is left out.
MEETINGS = (
    (slice(None), slice(None), slice(1, -1), slice(None)),
    (slice(None, -1), slice(1, None), slice(-1, None), slice(1)),
    (slice(1, None), slice(None, -1), slice(1), slice(-1, None)),
)


def _meetings(padded: torch.Tensor, fine: torch.Tensor, grid: PatchGrid) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of (N, P, 66, 66, O) and of (N, 64*rows, 64*cols, O) that stand for the same cells; own cells first."""
    given = padded.unflatten(1, (grid.rows, grid.cols))
    taken = fine.unflatten(2, (grid.cols, HEAD_CELLS)).unflatten(1, (grid.rows, HEAD_CELLS)).transpose(2, 3)
    for down, across in product(MEETINGS, repeat=2):
        yield given[:, down[0], across[0], down[2], across[2]], taken[:, down[1], across[1], down[3], across[3]]


def _join(padded: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """Patches with what they reach of their neighbours, summed: (N, P, 66, 66, O) -> (N, O, 64*rows, 64*cols)."""
    n, outputs = padded.shape[0], padded.shape[-1]
    fine = padded.new_empty(n, HEAD_CELLS * grid.rows, HEAD_CELLS * grid.cols, outputs)
    for number, (given, taken) in enumerate(_meetings(padded, fine, grid)):
        taken.add_(given) if number else taken.copy_(given)
    return fine.permute(0, 3, 1, 2)


def _part(gradient: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """The transpose of `_join`: (N, O, 64*rows, 64*cols) -> (N, P, 66, 66, O)."""
    fine = gradient.permute(0, 2, 3, 1).contiguous()
    padded = fine.new_zeros(len(fine), grid.patches, SPREAD, SPREAD, fine.shape[-1])
    for given, taken in _meetings(padded, fine, grid):
        given.copy_(taken)
    return padded


def spread_matrix(side: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The matrix of one axis of a patch, (66, side*3): upsample, shift by a tap, sum.

    Row: a fine cell, from the one before the patch to the one after it; column: (coarse cell, tap). A tap meets this
    patch's own upsampled cells, and zeros beyond them: what it meets there is the neighbour's to say.
    """
    return _spread(side).to(device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _spread(side: int) -> torch.Tensor:
    up = _upsampling(side)
    matrix = torch.zeros(SPREAD, side, TAPS, dtype=torch.float64)
    for tap in range(TAPS):
        first = TAPS - 1 - tap  # row whose tap meets the patch's first cell
        matrix[first : first + HEAD_CELLS, :, tap] = up
    return matrix.flatten(1)


def _upsampling(side: int) -> torch.Tensor:
    """(64, side): bilinear upsampling along one axis, as `layout.resample` does it."""
    lines = torch.eye(side, dtype=torch.float64)[None]  # (1, side lines, side cells)
    return F.interpolate(lines, size=HEAD_CELLS, mode="linear", align_corners=False)[0].T
