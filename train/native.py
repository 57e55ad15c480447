"""The head's first layer computed at native resolution: the same numbers without the upsampled stack.

A 1x1 convolution commutes with bilinear upsampling, and a 3x3 convolution is nine shifted 1x1 convolutions. So the
3x3 convolution over upsampled blocks of one native side r is a 1x1 convolution at r x r into nine taps, followed by
one small matrix per image axis that upsamples, shifts and sums: Y = A Z A^T.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F

from pathseg.store.grid import HEAD_CELLS, PatchGrid
from pathseg.store.layout import resample

Features = Mapping[int, torch.Tensor]  # block -> (N, P, C, h, w), patches row by row
TAPS = 3  # of the convolution, along each axis


def native_pointwise(features: Features, weight: torch.Tensor, bias: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """The 1x1 convolution of the stacked blocks, {block: (N, P, C, h, w)} -> (N, O, 64*rows, 64*cols).

    Each block is convolved at its own side; only the O results are upsampled.
    """
    start, total = 0, bias[:, None, None]
    for block in sorted(features):
        maps = features[block]
        n, _, c = maps.shape[:3]
        part = F.conv2d(maps.flatten(0, 1), weight[:, start : start + c]).unflatten(0, (n, -1))
        total = total + _fine(part, grid)
        start += c
    return total


def native_convolution(features: Features, weight: torch.Tensor, bias: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """The 3x3 convolution (padding 1) of the stacked blocks, {block: (N, P, C, h, w)} -> (N, O, 64*rows, 64*cols).

    weight (O, sum C, 3, 3) with channels in ascending order of blocks, as `nn.Conv2d` has them. Blocks of one side
    are taken together, each group in the cheaper of the two ways, so the result equals the plain convolution of the
    upsampled stack up to rounding.
    """
    start = 0
    groups: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for block in sorted(features):
        maps = features[block]
        groups.setdefault(maps.shape[-1], []).append((maps, weight[:, start : start + maps.shape[2]]))
        start += maps.shape[2]
    total: torch.Tensor | None = None
    for side, members in groups.items():
        maps = torch.cat([maps for maps, _ in members], dim=2) if len(members) > 1 else members[0][0]
        kernel = torch.cat([kernel for _, kernel in members], dim=1) if len(members) > 1 else members[0][1]
        way = _by_taps if taps_are_cheaper(side, maps.shape[2], weight.shape[0], grid) else _by_upsampling
        part = way(maps, kernel, grid)
        total = part if total is None else total + part
    assert total is not None  # a head has at least one block
    return total + bias[:, None, None]


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


def taps_are_cheaper(side: int, channels: int, outputs: int, grid: PatchGrid) -> bool:
    """Whether the way at native resolution takes fewer multiplications than the plain one, for one image."""
    if side >= HEAD_CELLS:
        return False
    plain = channels * outputs * TAPS**2 * HEAD_CELLS**2 * grid.patches
    pointwise = channels * outputs * TAPS**2 * side**2 * grid.patches
    columns = outputs * TAPS * side * grid.rows * HEAD_CELLS * grid.cols * TAPS * side * grid.cols
    rows = outputs * HEAD_CELLS**2 * grid.patches * TAPS * side * grid.rows
    return pointwise + columns + rows < plain


def _fine(maps: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """(N, P, C, h, w) -> (N, C, 64*rows, 64*cols)."""
    n, p = maps.shape[:2]
    return grid.stitch(resample(maps.flatten(0, 1), HEAD_CELLS).unflatten(0, (n, p)))


def _by_upsampling(maps: torch.Tensor, kernel: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    return F.conv2d(_fine(maps, grid), kernel, padding=TAPS // 2)


def _by_taps(maps: torch.Tensor, kernel: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    n, _, c, side, _ = maps.shape
    outputs = kernel.shape[0]
    pointwise = kernel.permute(2, 3, 0, 1).reshape(TAPS * TAPS * outputs, c)  # (ty tx O, C)
    z = F.conv2d(maps.flatten(0, 1), pointwise[..., None, None])  # (N P, ty tx O, y, x)
    z = z.reshape(n, grid.rows, grid.cols, TAPS, TAPS, outputs, side, side)  # n py px ty tx o y x
    across = spread_matrix(side, grid.cols, dtype=z.dtype, device=z.device)  # (64*cols, px tx x)
    down = spread_matrix(side, grid.rows, dtype=z.dtype, device=z.device)  # (64*rows, py ty y)
    z = z.permute(0, 5, 1, 3, 6, 2, 4, 7).flatten(5).flatten(2, 4)  # n o (py ty y) (px tx x)
    return down @ (z @ across.T)  # (N, O, 64*rows, 64*cols)


def spread_matrix(side: int, patches: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The matrix of one image axis, (64*patches, patches*3*side): upsample within each patch, shift by a tap, sum.

    Row: a fine cell; column: (patch, tap, coarse cell). A tap that reaches outside the image meets zeros (padding 1);
    one that reaches into the next patch meets that patch's own upsampled cells.
    """
    return _spread(side, patches).to(device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _spread(side: int, patches: int) -> torch.Tensor:
    up = _upsampling(side)
    fine = HEAD_CELLS * patches
    matrix = torch.zeros(fine, patches, TAPS, side, dtype=torch.float64)
    for cell in range(fine):
        for tap in range(TAPS):
            source = cell + tap - TAPS // 2
            if 0 <= source < fine:
                matrix[cell, source // HEAD_CELLS, tap] = up[source % HEAD_CELLS]
    return matrix.reshape(fine, -1)


def _upsampling(side: int) -> torch.Tensor:
    """(64, side): bilinear upsampling along one axis, as `layout.resample` does it."""
    lines = torch.eye(side, dtype=torch.float64)[None]  # (1, side lines, side cells)
    return F.interpolate(lines, size=HEAD_CELLS, mode="linear", align_corners=False)[0].T
