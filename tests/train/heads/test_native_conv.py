import pytest
import torch
from torch import nn

from pathseg.store.grid import PatchGrid
from pathseg.train.heads import native_conv
from pathseg.train.heads.native_conv import native_convolution, native_pointwise, spread_matrix, taps_are_cheaper

VQ_SIDES = (8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64, 64)  # the thirteen blocks with the VQ-f4 first stage
KL_SIDES = tuple(side // 2 for side in VQ_SIDES)  # and with KL-f8
SELECTIONS = [(0,), (4,), (6,), (9,), (4, 5, 6), tuple(range(13))]  # a block of each side, and several


def features(shapes, n=2, patches=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {b: torch.randn((n, patches, c, s, s), generator=generator, dtype=dtype) for b, (c, s) in shapes.items()}


def layer(shapes, outputs, dtype, kernel=3):
    generator = torch.Generator().manual_seed(1)
    channels = sum(c for c, _ in shapes.values())
    weight = torch.randn((outputs, channels, kernel, kernel), generator=generator, dtype=dtype)
    return weight.requires_grad_(), torch.randn(outputs, generator=generator, dtype=dtype).requires_grad_()


def plain(maps, weight, bias, grid):
    """The definition: upsample every patch, put them side by side, convolve."""
    fine = []
    for block in sorted(maps):
        n, p = maps[block].shape[:2]
        up = nn.functional.interpolate(maps[block].flatten(0, 1), (64, 64), mode="bilinear").unflatten(0, (n, p))
        rows = [torch.cat(list(up[:, r * grid.cols : (r + 1) * grid.cols].unbind(1)), -1) for r in range(grid.rows)]
        fine.append(torch.cat(rows, -2))
    return nn.functional.conv2d(torch.cat(fine, 1), weight, bias, padding=weight.shape[-1] // 2)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def agreement(shapes, grid, *, outputs, n, dtype, way=native_convolution, kernel=3):
    """Relative differences of the result and of both gradients, against the definition."""
    maps = features(shapes, n=n, patches=grid.patches, dtype=dtype)
    results = []
    for compute in (way, plain):
        weight, bias = layer(shapes, outputs, dtype, kernel)
        scores = compute(maps, weight, bias, grid)
        direction = torch.randn(scores.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
        (scores * direction).sum().backward()
        results.append((scores.detach(), weight.grad, bias.grad))
    return [relative(a, b) for a, b in zip(*results, strict=True)]


@pytest.fixture(params=["taps", "counted"])
def ways(request, monkeypatch):
    """With the few channels of a test the plain convolution is cheaper nearly everywhere; `taps` forces the other."""
    if request.param == "taps":
        monkeypatch.setattr(native_conv, "taps_are_cheaper", lambda side, channels, outputs: side < 64)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("blocks", SELECTIONS, ids=str)
@pytest.mark.parametrize("sides", [VQ_SIDES, KL_SIDES], ids=["vq-f4", "kl-f8"])
@pytest.mark.parametrize(("grid", "n"), [(PatchGrid(1, 1), 2), (PatchGrid(2, 3), 1)], ids=str)
def test_scores_and_gradients_are_those_of_the_plain_convolution(blocks, sides, grid, n):
    shapes = {block: (3 + block % 3, sides[block]) for block in blocks}
    assert max(agreement(shapes, grid, outputs=5, n=n, dtype=torch.float64)) < 1e-10
    assert max(agreement(shapes, grid, outputs=5, n=n, dtype=torch.float32)) < 1e-5


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    "shapes", [{3: (5, 18)}, {2: (5, 18), 5: (4, 18)}, {0: (3, 8), 4: (4, 16), 5: (5, 18), 9: (2, 64)}], ids=str
)
def test_sides_that_do_not_divide_the_grid_of_the_head_give_the_same(shapes):  # 18: 252 px in patches of 14 px
    assert max(agreement(shapes, PatchGrid(2, 3), outputs=5, n=1, dtype=torch.float64)) < 1e-10


@pytest.mark.parametrize("n", [1, 2])
def test_in_float32_the_difference_is_rounding_with_many_channels_too(n):
    shapes = {0: (48, 8), 4: (40, 16), 6: (400, 32), 9: (24, 64)}
    assert taps_are_cheaper(32, 400, 16)
    assert max(agreement(shapes, PatchGrid(1, 2), outputs=16, n=n, dtype=torch.float32)) < 1e-5


@pytest.mark.parametrize("outputs", [2, 7])
def test_a_pointwise_layer_is_that_of_the_stack(outputs):
    shapes = {0: (5, 8), 4: (4, 16), 9: (3, 64)}
    differences = agreement(
        shapes, PatchGrid(2, 3), outputs=outputs, n=2, dtype=torch.float64, way=native_pointwise, kernel=1
    )
    assert max(differences) < 1e-10


def test_the_convolution_with_fewer_multiplications_is_chosen():
    assert taps_are_cheaper(8, 960, 256)
    assert taps_are_cheaper(32, 576, 256)
    assert not taps_are_cheaper(64, 192, 256)
    assert not taps_are_cheaper(32, 1, 256)  # one channel: spreading 9 taps costs more than it saves


def test_each_row_of_the_spread_matrix_sums_to_the_taps_that_read_the_patch():
    # upsampling a constant gives it back; of three taps 1, 2, 3, ..., 3, 2, 1 read one of the patch's 64 cells
    sums = spread_matrix(8, dtype=torch.float64, device=torch.device("cpu")).sum(1)
    assert torch.allclose(sums, torch.tensor([1.0, 2.0] + [3.0] * 62 + [2.0, 1.0], dtype=torch.float64))


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_results_differ_by_rounding_only(dtype):
    shapes = {4: (32, 16), 6: (32, 32), 9: (16, 64)}
    maps, grid = features(shapes), PatchGrid(1, 2)
    results = []
    for way, mixed in ((native_convolution, True), (plain, False)):
        weight, bias = layer(shapes, 16, torch.float32)
        with torch.autocast("cpu", dtype=dtype, enabled=mixed):
            scores = way(maps, weight, bias, grid)
        scores.float().square().mean().backward()
        results.append((scores.detach().float(), weight.grad, bias.grad))
    assert max(relative(a, b) for a, b in zip(*results, strict=True)) < 0.02


def test_channels_are_taken_in_ascending_order_of_blocks():
    maps = features({9: (3, 64), 4: (6, 16)})
    weight = torch.zeros(1, 9, 1, 1)
    weight[0, :6] = 1.0  # the six channels of block 4, although block 9 is given first
    summed = native_pointwise(maps, weight, torch.zeros(1), PatchGrid(1, 2))
    alone = native_pointwise({4: maps[4]}, torch.ones(1, 6, 1, 1), torch.zeros(1), PatchGrid(1, 2))
    assert torch.equal(summed, alone)


def test_upsampling_does_not_cross_patch_borders():
    maps = {0: torch.zeros(1, 2, 1, 8, 8)}
    maps[0][:, 1] = 1.0
    fine = native_pointwise(maps, torch.ones(1, 1, 1, 1), torch.zeros(1), PatchGrid(1, 2))
    assert torch.equal(fine[0, 0, :, :64], torch.zeros(64, 64))
    assert torch.equal(fine[0, 0, :, 64:], torch.ones(64, 64))


def test_matrices_first_made_in_inference_mode_can_be_trained_with():
    spread_matrix.cache_clear()
    shapes = {0: (300, 8)}
    maps, weight, bias = features(shapes, n=1, patches=1, dtype=torch.float32), *layer(shapes, 8, torch.float32, 3)
    assert taps_are_cheaper(8, 300, 8)
    with torch.inference_mode():
        native_convolution(maps, weight, bias, PatchGrid(1, 1))
    native_convolution(maps, weight, bias, PatchGrid(1, 1)).sum().backward()
    assert relative(bias.grad, torch.full_like(bias, 64.0 * 64)) < 1e-6
