import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pathseg.train.heads import fast_tail, native_conv
from pathseg.train.heads.fcn import FCNHead

# the thirteen blocks of the full-size model, which Table 1 of the paper counts
CHANNELS = dict(enumerate((960, 960, 960, 960, 576, 576, 576, 384, 384, 384, 192, 192, 192)))
SHAPES = {0: (5, 8), 4: (6, 16), 6: (4, 32), 9: (3, 64)}


def features(shapes, n=1, patches=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {b: torch.randn((n, patches, c, s, s), generator=generator, dtype=dtype) for b, (c, s) in shapes.items()}


def head_for(shapes, classes, dtype=torch.float32):
    torch.manual_seed(0)
    return FCNHead({block: c for block, (c, _) in shapes.items()}, classes).to(dtype)


def upsampled(maps, side):
    return {
        b: nn.functional.interpolate(m.flatten(0, 1), (side, side), mode="bilinear").unflatten(0, m.shape[:2])
        for b, m in maps.items()
    }


@pytest.fixture
def by_taps(monkeypatch):
    """Every block that is coarser than the head's grid is convolved by taps, also where that is not cheaper."""
    monkeypatch.setattr(native_conv, "taps_are_cheaper", lambda side, channels, outputs: side < 64)


def test_the_head_of_all_blocks_and_six_classes_has_the_papers_parameters():
    with torch.device("meta"):
        head = FCNHead(CHANNELS, 6)
    assert sum(p.numel() for p in head.parameters()) == 17_470_150
    assert head.first.in_channels == 7296


def test_the_state_dict_has_the_names_of_release_0_1_0():
    names = [name for name, _ in FCNHead({4: 6}, 2).named_parameters()]
    layers = ("first", "tail.0", "tail.2", "tail.3", "tail.5", "tail.6", "tail.8")
    assert names == [f"{layer}.{name}" for layer in layers for name in ("weight", "bias")]


@pytest.mark.parametrize("grid", [(1, 2), (2, 1)])
def test_the_plain_head_is_the_papers_layers_on_the_stack_of_upsampled_blocks(grid):
    maps, head = features(SHAPES), head_for(SHAPES, 3)
    axis = 3 if grid == (1, 2) else 2  # two patches side by side, or one above the other
    fine = [torch.cat(m.unbind(1), axis) for _, m in sorted(upsampled(maps, 64).items())]
    layers = nn.Sequential(
        nn.Conv2d(18, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU(),
        nn.ConvTranspose2d(256, 128, 4, stride=2, padding=1), nn.BatchNorm2d(128), nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 3, 3, padding=1),
    )  # fmt: skip
    layers.load_state_dict(dict(zip(layers.state_dict(), head.state_dict().values(), strict=True)))
    expected = layers(torch.cat(fine, 1))
    assert expected.shape == (1, 3, 256 * grid[0], 256 * grid[1])
    assert torch.allclose(head.plain_forward(maps, grid), expected, atol=1e-5)


@pytest.mark.usefixtures("by_taps")
def test_scores_and_every_gradient_are_those_of_the_plain_head():
    maps = features(SHAPES, patches=1, dtype=torch.float64)
    head = head_for(SHAPES, 3, torch.float64)
    found = []
    for forward in (head, head.plain_forward):
        head.zero_grad()
        scores = forward(maps, (1, 1))
        scores.log_softmax(1)[:, 1].mean().backward()
        found.append([scores.detach(), *(p.grad.clone() for p in head.parameters())])
    for ours, plain in zip(*found, strict=True):
        # a bias before batch normalisation has no gradient but rounding
        assert (ours - plain).norm() <= 1e-10 * (plain.norm() + 1e-4)


@pytest.mark.usefixtures("by_taps")
@pytest.mark.parametrize("grid", [(2, 1), (1, 2)])
def test_in_float32_scores_are_those_of_the_plain_head_up_to_rounding(grid):
    maps, head = features(SHAPES), head_for(SHAPES, 3)
    with torch.no_grad():
        ours, plain = head(maps, grid), head.plain_forward(maps, grid)
    assert (ours - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("band", [10_000, 12, 7], ids=["one band", "two rows", "one row"])
def test_the_fast_tail_has_the_values_and_gradients_of_its_layers(band, monkeypatch):
    for name in ("BAND", "TRANSPOSED_BAND"):
        monkeypatch.setattr(fast_tail, name, band)
    untrained, found = head_for({4: (6, 16)}, 2, torch.float64).tail, []
    for forward in (fast_tail.fast_tail, lambda tail, x: tail(x)):
        tail = copy.deepcopy(untrained)
        x = torch.randn(2, 256, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        scores = forward(tail, x)
        (scores * torch.arange(scores.numel()).view(scores.shape)).sum().backward()
        statistics = [value.double() for value in tail.buffers()]  # running means, variances and numbers of batches
        found.append([scores.detach(), x.grad, *(p.grad for p in tail.parameters()), *statistics])
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-9, atol=1e-5)  # gradients are of the order of 1e5


def test_in_evaluation_the_fast_tail_has_the_values_of_its_layers():
    tail = head_for({4: (6, 16)}, 3, torch.float64).tail
    with torch.no_grad():
        for layer in tail[0], tail[3], tail[6]:
            for values in layer.weight, layer.bias, layer.running_mean, layer.running_var:
                values.copy_(torch.rand_like(values) + 0.5)
        tail.eval()
        x = torch.randn(2, 256, 5, 6, dtype=torch.float64)
        before, expected = x.clone(), tail(x)
        torch.testing.assert_close(fast_tail.fast_tail(tail, x), expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(x, before)


def test_in_float32_gradients_of_the_tail_are_those_of_its_layers_up_to_rounding():
    tail, mask = head_for({4: (6, 16)}, 2).tail, torch.arange(96 * 96).view(1, 96, 96) // 7 % 2
    found = []
    for forward in (lambda x: fast_tail.fast_tail(tail, x), tail):
        tail.zero_grad()
        x = torch.randn(1, 256, 24, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        F.cross_entropy(forward(x), mask).backward()
        # a bias before batch normalisation has no gradient but rounding
        gradients = [p.grad.clone() for name, p in tail.named_parameters() if name not in ("2.bias", "5.bias")]
        found.append([x.grad, *gradients])
    for ours, plain in zip(*found, strict=True):
        assert (ours - plain).norm() <= 1e-5 * plain.norm()


def test_in_bfloat16_the_fast_tail_is_as_near_to_float32_as_its_layers():
    tail, mask = head_for({4: (6, 16)}, 2).tail, torch.arange(96 * 96).view(1, 96, 96) // 7 % 2
    found = []
    for forward, bfloat16 in ((lambda x: fast_tail.fast_tail(tail, x), True), (tail, True), (tail, False)):
        tail.zero_grad()
        x = torch.randn(1, 256, 24, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            scores = forward(x)
        F.cross_entropy(scores.float(), mask).backward()
        gradients = [p.grad.clone() for name, p in tail.named_parameters() if name not in ("2.bias", "5.bias")]
        found.append([scores.detach().float(), x.grad, *gradients])
    for ours, plain, exact in zip(*found, strict=True):
        assert (ours - exact).norm() <= 1.5 * (plain - exact).norm() + 1e-3 * exact.norm()


def test_after_a_step_scores_are_those_of_the_plain_head():
    maps = features(SHAPES, patches=1, dtype=torch.float64)
    mask = torch.arange(256 * 256).view(1, 256, 256) // 7 % 2
    found = []
    for forward in (FCNHead.forward, FCNHead.plain_forward):
        head = head_for(SHAPES, 2, torch.float64)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.05)
        F.cross_entropy(forward(head, maps, (1, 1)), mask).backward()
        optimizer.step()
        with torch.no_grad():
            found.append(forward(head.eval(), maps, (1, 1)))
            untrained = head_for(SHAPES, 2, torch.float64).eval()(maps, (1, 1))
    assert (found[0] - untrained).norm() > 0.1 * untrained.norm()
    assert (found[0] - found[1]).norm() <= 1e-9 * found[1].norm()


@pytest.mark.parametrize(("shapes", "side"), [(SHAPES, 64), (SHAPES, 256)], ids=["grid", "image"])
def test_native_features_give_the_scores_of_the_other_layouts(shapes, side):
    maps, head = features(shapes), head_for(shapes, 2).eval()
    with torch.no_grad():
        assert torch.allclose(head(maps, (1, 2)), head(upsampled(maps, side), (1, 2)), atol=1e-5)


@pytest.mark.parametrize("shapes", [{4: (6, 16)}, {4: (5, 16), 9: (3, 64)}])
def test_blocks_or_channels_other_than_the_heads_own_are_refused(shapes):
    with pytest.raises(ValueError, match=r"blocks and channels {4: 6, 9: 3}, got"):
        FCNHead({4: 6, 9: 3}, 2)(features(shapes), (1, 2))


def test_another_number_of_patches_is_refused():
    with pytest.raises(ValueError, match="2 patches, but a 2x2 grid has 4"):
        FCNHead({4: 6}, 2)(features({4: (6, 16)}), (2, 2))
