"""Convolutions of the stacked features computed at native resolution, without the upsampled stack.

A 1x1 convolution commutes with bilinear upsampling, and a 3x3 convolution is nine shifted 1x1 convolutions. So the
3x3 convolution over upsampled blocks of one native side r is a 1x1 convolution at r x r into nine taps, followed by
one small matrix per axis that upsamples, shifts and sums: Y = A Z A^T. Patches are upsampled separately, so the result
of each is computed by itself, for its own cells and a border of one cell; borders are added to the neighbours' cells.
`benchmarks.train.heads` (step) measures what this saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from pathseg.store.grid import HEAD_CELLS, PatchGrid
from pathseg.train.heads.stack import Features, stitch_upsampled

TAPS = 3  # of the convolution, along each axis
BORDERED = HEAD_CELLS + TAPS - 1  # fine cells along an axis of a patch with its border


def native_pointwise(features: Features, weight: torch.Tensor, bias: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """Apply a 1x1 convolution to the stacked blocks, {block: (N, P, C, h, w)} -> (N, O, 64 * rows, 64 * cols).

    weight (O, sum C, 1, 1), channels by ascending block. Each block is convolved at its own side; only the O results
    are upsampled. Equals `F.conv2d(stack_blocks(features, grid), weight, bias)` up to rounding.
    """
    start, total = 0, bias[:, None, None]
    for block in sorted(features):
        maps = features[block]
        n, p, c = maps.shape[:3]
        x = F.conv2d(maps.flatten(0, 1).to(compute_dtype(weight)), weight[:, start : start + c])  # (N P, O, h, w)
        total = total + stitch_upsampled(x.unflatten(0, (n, p)), grid)
        start += c
    return total


def native_convolution(features: Features, weight: torch.Tensor, bias: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """Apply a 3x3 convolution to the stacked blocks, {block: (N, P, C, h, w)} -> (N, O, 64 * rows, 64 * cols).

    weight (O, sum C, 3, 3), channels by ascending block, as of `nn.Conv2d`. Equals
    `F.conv2d(stack_blocks(features, grid), weight, bias, padding=1)` up to rounding: blocks of one side are computed
    together, each group by taps or by the plain convolution, whichever is cheaper. Features get no gradient.
    """
    start, dtype = 0, compute_dtype(weight)
    groups: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}  # side -> maps and kernel of each block
    for block in sorted(features):
        maps = features[block].detach()
        groups.setdefault(maps.shape[-1], []).append((maps, weight[:, start : start + maps.shape[2]]))
        start += maps.shape[2]
    by_taps: list[torch.Tensor] = []
    results: list[torch.Tensor] = []
    for side, members in groups.items():
        kernel = torch.cat([kernel for _, kernel in members], dim=1).to(dtype)
        if taps_are_cheaper(side, kernel.shape[1], kernel.shape[0]):
            by_taps += [kernel, torch.cat([_channels_last(maps, dtype) for maps, _ in members], dim=-1)]
        else:
            fine = torch.cat([stitch_upsampled(maps.to(dtype), grid) for maps, _ in members], dim=1)
            results.append(F.conv2d(fine, kernel, padding=TAPS // 2))
    if by_taps:
        results.append(_ConvolutionByTaps.apply(grid, *by_taps))
    return sum(results[1:], results[0]) + bias.to(dtype)[:, None, None]


def taps_are_cheaper(side: int, channels: int, outputs: int) -> bool:
    """Return whether the convolution by taps takes fewer multiplications than the plain one, for one patch."""
    if side >= HEAD_CELLS:
        return False
    plain = channels * outputs * TAPS**2 * HEAD_CELLS**2
    pointwise = channels * outputs * TAPS**2 * side**2
    columns = outputs * TAPS * BORDERED * side * TAPS * side
    rows = outputs * BORDERED * BORDERED * TAPS * side
    return pointwise + columns + rows < plain


def compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """Return the dtype a layer computes in: that of the active autocast, else that of its weight."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _channels_last(maps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Permute and cast maps in one pass over the memory, (N, P, C, y, x) -> (N, P, x, y, C)."""
    return maps.permute(0, 1, 4, 3, 2).to(dtype, memory_format=torch.contiguous_format)


class _ConvolutionByTaps(torch.autograd.Function):
    """The 3x3 convolution of blocks coarser than the head's grid, from (kernel, `_channels_last` maps) of each side.

    Every patch is brought to its 64 cells and a border of one cell, which its taps reach in its neighbours. Memory
    layouts are chosen so that each matrix product sums over contiguous values, forward and backward, and patches are
    computed one after the other in small buffers: on a CPU, fresh memory for all of them at once costs as much time
    as the products.
    """

    @staticmethod
    def forward(ctx: Any, grid: PatchGrid, *kernels_and_maps: torch.Tensor) -> torch.Tensor:
        kernel, maps = kernels_and_maps[:2]
        (n, p), outputs = maps.shape[:2], len(kernel)
        bordered = maps.new_empty(n * p, BORDERED, BORDERED, outputs)
        for number, (kernel, maps) in enumerate(_pairs(kernels_and_maps)):
            side, channels = maps.shape[2], maps.shape[4]
            pointwise = kernel.permute(2, 3, 0, 1).reshape(-1, channels)  # (ty tx o, c)
            spread = spread_matrix(side, dtype=maps.dtype, device=maps.device)
            down = maps.new_empty(side, BORDERED, TAPS * outputs)  # (x, Y, tx o)
            turned = maps.new_empty(BORDERED, side, TAPS * outputs)  # (Y, x, tx o)
            for patch, out in zip(maps.view(n * p, -1, channels), bordered, strict=True):
                z = _product(patch, pointwise, side)  # (x y, ty tx o)
                torch.bmm(spread.expand(side, -1, -1), z.view(side, side * TAPS, -1), out=down)
                turned.copy_(down.transpose(0, 1))
                # (Y, X, o), added to the results of blocks of other sides
                out.baddbmm_(spread.expand(BORDERED, -1, -1), turned.view(BORDERED, side * TAPS, -1), beta=number > 0)
        ctx.grid = grid
        ctx.save_for_backward(*kernels_and_maps)
        return _add_borders(bordered.view(n, p, BORDERED, BORDERED, outputs), grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        bordered = _with_borders(gradient, ctx.grid).flatten(0, 1)  # (n p, Y, X, o)
        outputs = bordered.shape[-1]
        gradients: list[torch.Tensor | None] = [None]
        for _, maps in _pairs(ctx.saved_tensors):
            side, channels = maps.shape[2], maps.shape[4]
            gather = spread_matrix(side, dtype=maps.dtype, device=maps.device).T
            z = maps.new_empty(len(bordered), side * side, TAPS * TAPS * outputs)  # (n p, x y, ty tx o)
            across = maps.new_empty(BORDERED, side * TAPS, outputs)  # (Y, x tx, o)
            turned = maps.new_empty(side, BORDERED, TAPS * outputs)  # (x, Y, tx o)
            for patch, out in zip(bordered, z, strict=True):
                torch.bmm(gather.expand(BORDERED, -1, -1), patch, out=across)
                turned.copy_(across.view(BORDERED, side, -1).transpose(0, 1))
                torch.bmm(gather.expand(side, -1, -1), turned, out=out.view(side, side * TAPS, -1))
            # (ty tx o, c)
            pointwise = _product(z.flatten(0, 1).T, maps.view(-1, channels).T, TAPS * TAPS)
            gradients += [pointwise.view(TAPS, TAPS, outputs, channels).permute(2, 3, 0, 1), None]
        return tuple(gradients)


def _product(a: torch.Tensor, b: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a @ b.T, (M, K) and (N, K) -> (M, N).

    In float32 on a CPU as a 1x1 convolution: PyTorch computes convolutions with oneDNN, and matrix products with
    another library that takes longer on some processors (`benchmarks.train.heads`, products_first). M is split into
    `rows` image rows, so that the strides tell PyTorch that channels come last.
    """
    if a.device.type != "cpu" or a.dtype != torch.float32:
        return a @ b.T
    image = a.contiguous().view(1, rows, len(a) // rows, -1).permute(0, 3, 1, 2)  # channels last
    return F.conv2d(image, b[:, :, None, None].contiguous()).permute(0, 2, 3, 1).reshape(len(a), -1)


def _pairs(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(tensors[::2], tensors[1::2], strict=True)


# Along an axis, the bordered cells of patches that lie on fine cells of the image, as (source patches, target patches,
# cells of the bordered source, cells of the target): a patch's own cells, its last cell in the next patch, its first in
# the previous one. Cells outside the image are left out.
OVERLAPS = (
    (slice(None), slice(None), slice(1, -1), slice(None)),
    (slice(None, -1), slice(1, None), slice(-1, None), slice(1)),
    (slice(1, None), slice(None, -1), slice(1), slice(-1, None)),
)


def _overlaps(
    bordered: torch.Tensor, fine: torch.Tensor, grid: PatchGrid
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield views of (N, P, 66, 66, O) and of (N, 64*rows, 64*cols, O) on the same cells; own cells come first."""
    source = bordered.unflatten(1, (grid.rows, grid.cols))
    target = fine.unflatten(2, (grid.cols, HEAD_CELLS)).unflatten(1, (grid.rows, HEAD_CELLS)).transpose(2, 3)
    for y, x in product(OVERLAPS, repeat=2):
        yield source[:, y[0], x[0], y[2], x[2]], target[:, y[1], x[1], y[3], x[3]]


def _add_borders(bordered: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """Stitch patches, adding their borders to the neighbours, (N, P, 66, 66, O) -> (N, O, 64*rows, 64*cols)."""
    n, outputs = bordered.shape[0], bordered.shape[-1]
    fine = bordered.new_empty(n, HEAD_CELLS * grid.rows, HEAD_CELLS * grid.cols, outputs)
    for number, (source, target) in enumerate(_overlaps(bordered, fine, grid)):
        target.add_(source) if number else target.copy_(source)
    return fine.permute(0, 3, 1, 2)


def _with_borders(gradient: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """Apply the transpose of `_add_borders`, (N, O, 64*rows, 64*cols) -> (N, P, 66, 66, O)."""
    fine = gradient.permute(0, 2, 3, 1).contiguous()
    bordered = fine.new_zeros(len(fine), grid.patches, BORDERED, BORDERED, fine.shape[-1])
    for source, target in _overlaps(bordered, fine, grid):
        source.copy_(target)
    return bordered


@lru_cache(maxsize=64)  # a copy to a GPU waits for all that is queued there
def spread_matrix(side: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the matrix A that upsamples, shifts by a tap and sums along one axis of a patch, (66, side * 3).

    Row: a fine cell, from the border before the patch to the border after it; column: (coarse cell, tap). Fine cells
    beyond the patch count as 0: they are its neighbours'. The matrix is shared: it is only read.
    """
    up = _upsampling(side)
    matrix = torch.zeros(BORDERED, side, TAPS, dtype=torch.float64)
    for tap in range(TAPS):
        first = TAPS - 1 - tap  # row whose tap reads the patch's first cell
        matrix[first : first + HEAD_CELLS, :, tap] = up
    return matrix.flatten(1).to(dtype).to(device)  # in two steps: not every device has float64


def _upsampling(side: int) -> torch.Tensor:
    """Return the matrix of bilinear upsampling along one axis, (64, side), as `layout.resample` computes it."""
    units = torch.eye(side, dtype=torch.float64)[None]  # (1, side vectors, side cells)
    return F.interpolate(units, size=HEAD_CELLS, mode="linear", align_corners=False)[0].T
