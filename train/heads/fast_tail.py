"""A faster way to compute the layers of a head's tail on a CPU: the same values, less memory and other memory orders.

On a CPU, PyTorch computes the gradients of the weights of convolutions whose channels come last at 0.05 to 0.2 of the
rate of a matrix product. Here they are matrix products, over bands of rows that fit in the processor's cache. Fresh
memory costs time too: a normalisation, ReLU and the convolution after them share what each by itself would allocate.
`benchmarks.train.heads` (step, usual_tail) measures what this saves.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from pathseg.train.heads.native_conv import compute_dtype

KERNEL, STRIDE = 4, 2  # of the transposed convolutions, along each axis; the padding of all convolutions is 1
TRANSPOSED_BAND, BAND = 4096, 65536  # input pixels a matrix product sums over at most; both are large and fit in caches


def fast_tail(tail: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Apply the head's tail, (N, 256, H/4, W/4) -> (N, K, H, W), on a CPU faster than layer by layer.

    A normalisation must be followed by ReLU and a convolution, as in `head_tail`.
    """
    if x.device.type != "cpu" or not isinstance(tail[0], nn.BatchNorm2d):
        return tail(x)
    stages: list[tuple[Any, Any]] = list(zip(tail[::3], tail[2::3], strict=True))  # (normalisation, convolution)
    if tail.training:
        for normalisation, convolution in stages:
            x = _training_stage(x, normalisation, convolution)
        return x
    first, last = stages[0][0], stages[-1][1]
    if torch.is_grad_enabled() or not _is_full_precision(compute_dtype(last.weight)):
        return tail(x)
    x = first(x).relu_()
    for (_, convolution), (normalisation, _) in pairwise(stages):
        x = _folded(x, convolution, normalisation).relu_()  # without the memory of a normalised copy
    return last(x)


def _is_full_precision(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.float64)


def _folded(x: torch.Tensor, convolution: nn.ConvTranspose2d, normalisation: nn.BatchNorm2d) -> torch.Tensor:
    """Apply a transposed convolution and the normalisation of evaluation after it as one transposed convolution."""
    assert convolution.bias is not None
    assert normalisation.running_mean is not None and normalisation.running_var is not None
    scale = normalisation.weight * (normalisation.running_var + normalisation.eps).rsqrt()  # (O,)
    bias = (convolution.bias - normalisation.running_mean) * scale + normalisation.bias
    weight = convolution.weight * scale[:, None, None]
    return F.conv_transpose2d(x, weight, bias, stride=STRIDE, padding=1)


def _training_stage(
    x: torch.Tensor, normalisation: nn.BatchNorm2d, convolution: nn.Conv2d | nn.ConvTranspose2d
) -> torch.Tensor:
    assert normalisation.num_batches_tracked is not None and convolution.bias is not None
    normalisation.num_batches_tracked.add_(1)
    dtype = compute_dtype(convolution.weight)
    weights = convolution.weight.to(dtype), convolution.bias.to(dtype)
    statistics = normalisation.running_mean, normalisation.running_var, normalisation.momentum, normalisation.eps
    return _NormalizedConvolution.apply(x.to(dtype), normalisation.weight, normalisation.bias, *weights, *statistics)


class _NormalizedConvolution(torch.autograd.Function):
    """Batch normalisation of training, ReLU and a convolution: 4x4, transposed, of stride 2, or else 3x3.

    (N, C, h, w) -> (N, O, 2h, 2w) or (N, O, h, w). The running mean and variance are updated.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        shift: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        running_mean: torch.Tensor,
        running_var: torch.Tensor,
        momentum: float,
        eps: float,
    ) -> torch.Tensor:
        y, mean, inverse_deviation = torch.native_batch_norm(
            x, scale, shift, running_mean, running_var, True, momentum, eps
        )
        y.relu_()
        ctx.eps = eps
        ctx.save_for_backward(x, scale, mean, inverse_deviation, y, weight)
        if weight.shape[-1] == KERNEL:
            return F.conv_transpose2d(y, weight, bias, stride=STRIDE, padding=1)
        return F.conv2d(y, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, mean, inverse_deviation, y, weight = ctx.saved_tensors
        transposed, by_products = weight.shape[-1] == KERNEL, _is_full_precision(weight.dtype)
        stride = [STRIDE if transposed else 1] * 2
        # not the gradient of the bias: PyTorch's own backward pass takes up to a fifth of its time for this sum
        of_y, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, y, weight, None, stride, [1, 1], [1, 1], transposed, [0, 0], 1, [True, not by_products, False]
        )
        if by_products:
            of_weight = (_transposed_weight_gradient if transposed else _weight_gradient)(y, gradient)
        of_y = torch.ops.aten.threshold_backward.grad_input(of_y, y, 0, grad_input=of_y)  # of ReLU, in place
        of_x, of_scale, of_shift = torch.ops.aten.native_batch_norm_backward(
            of_y, x, scale, None, None, mean, inverse_deviation, True, ctx.eps, [True, True, True]
        )
        return of_x, of_scale, of_shift, of_weight, gradient.sum((0, 2, 3)), None, None, None, None


def _weight_gradient(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the weight (O, C, 3, 3), from x (N, C, H, W) and the gradient (N, O, H, W).

    The outputs are few, so their 3x3 neighbourhoods are unfolded and not those of the inputs.
    """
    channels, height, width = x.shape[1:]
    outputs, rows = gradient.shape[1], max(1, BAND // width)
    padded = F.pad(gradient, (1, 1, 1, 1))
    result = x.new_zeros(outputs * 9, channels)
    for image, around in zip(x, padded, strict=True):
        for first in range(0, height, rows):
            pixels = image[:, first : first + rows].permute(1, 2, 0).reshape(-1, channels)  # (y x, c)
            result.addmm_(F.unfold(around[:, first : first + rows + 2], 3), pixels)  # (o ty tx, c)
    return result.view(outputs, 3, 3, channels).flip(1, 2).permute(0, 3, 1, 2)


def _transposed_weight_gradient(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the weight (C, O, 4, 4), from x (N, C, h, w) and the gradient (N, O, 2h, 2w).

    Input pixel (y, x) reaches the output pixels (2y - 1 .. 2y + 2, 2x - 1 .. 2x + 2). So where the output is padded by
    one pixel and cut into cells of 2 x 2 pixels, (h + 1, w + 1), it reaches the four cells from (y, x) to
    (y + 1, x + 1), and the gradient is one matrix product for each of these shifts.
    """
    n, channels, height, width = x.shape
    outputs = gradient.shape[1]
    rows = max(1, TRANSPOSED_BAND // width)
    cells = x.new_zeros(rows + 1, width + 1, STRIDE, STRIDE, outputs)  # (y, x, p, q, o)
    pixels = x.new_zeros(rows, width + 1, channels)  # the last column stays 0: cells of the row below
    result = x.new_zeros(2, 2, STRIDE * STRIDE * outputs, channels)  # (shift y, shift x, p q o, c)
    for image in range(n):
        for first in range(0, height, rows):
            count = min(rows, height - first)
            _fill_cells(cells[: count + 1], gradient[image], first)
            pixels[:count, :width] = x[image, :, first : first + count].permute(1, 2, 0)
            summed = count * (width + 1) - 1  # the last pixel is 0
            flat_pixels, flat_cells = pixels.flatten(0, 1)[:summed], cells.flatten(0, 1).flatten(1)
            for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
                shifted = flat_cells[down * (width + 1) + right :][:summed]
                result[down, right].addmm_(shifted.T, flat_pixels)
    result = result.view(2, 2, STRIDE, STRIDE, outputs, channels)
    return result.permute(5, 4, 0, 2, 1, 3).reshape(channels, outputs, KERNEL, KERNEL)


def _fill_cells(cells: torch.Tensor, gradient: torch.Tensor, first: int) -> None:
    """Copy the output rows from 2 * first - 1 into cells (rows, w + 1, 2, 2, O), from a gradient (O, 2h, 2w).

    What lies outside the output is 0; the left and right borders of `cells` are taken to be.
    """
    rows, width = cells.shape[0], gradient.shape[2]
    for p in range(STRIDE):
        start = STRIDE * first - 1 + p
        inside = slice(int(start < 0), min(rows, (gradient.shape[1] - start + 1) // STRIDE))
        below = gradient[:, start + STRIDE * inside.start :: STRIDE][:, : inside.stop - inside.start].permute(1, 2, 0)
        cells[: inside.start, :, p] = 0
        cells[inside.stop :, :, p] = 0
        cells[inside, :-1, p, 1] = below[:, 0:width:2]
        cells[inside, 1:, p, 0] = below[:, 1:width:2]
