"""How fast the head's first layer is at native resolution, against the plain convolution of the upsampled stack.

    python benchmarks/first_layer.py

One 768 px image, block shapes of the full-size model, float32, forward and backward; medians of three turns in one run.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from pathseg.store.grid import PatchGrid
from pathseg.store.layout import resample
from pathseg.train.native import native_convolution

CHANNELS = (960, 960, 960, 960, 576, 576, 576, 384, 384, 384, 192, 192, 192)
SIDES = (8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64, 64)
GRID = PatchGrid(3, 3)


def plain(maps, weight, bias):
    """The layer as the paper describes it: upsample every block, stack, convolve."""
    fine = [GRID.stitch(resample(maps[block][0], 64)[None]) for block in sorted(maps)]
    return F.conv2d(torch.cat(fine, 1), weight, bias, padding=1)


def measure(blocks, turns=3):
    """Seconds of both ways, and the relative difference of their results."""
    torch.manual_seed(0)
    maps = {b: torch.randn(1, 9, CHANNELS[b], SIDES[b], SIDES[b]) for b in blocks}
    weight = (torch.randn(256, sum(CHANNELS[b] for b in blocks), 3, 3) * 0.01).requires_grad_()
    bias = torch.zeros(256, requires_grad=True)
    ways = {"plain": lambda: plain(maps, weight, bias), "native": lambda: native_convolution(maps, weight, bias, GRID)}
    taken, results = {name: [] for name in ways}, {}
    for _ in range(turns + 1):  # the first warms up
        for name, way in ways.items():
            started = time.perf_counter()
            results[name] = way()
            results[name].sum().backward()
            taken[name].append(time.perf_counter() - started)
    a, b = (results[name].detach() for name in ("native", "plain"))
    seconds = {name: statistics.median(values[1:]) for name, values in taken.items()}
    return seconds, ((a - b).norm() / b.norm()).item()


if __name__ == "__main__":
    for name, blocks in (("4-6", range(4, 7)), ("all", range(13))):
        seconds, difference = measure(blocks)
        ratio = seconds["plain"] / seconds["native"]
        print(f"blocks {name}: plain {seconds['plain']:.2f} s, native {seconds['native']:.2f} s, "
              f"{ratio:.1f} times; relative difference {difference:.0e}")  # fmt: skip
