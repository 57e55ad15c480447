import pytest
import torch
from torch import nn

from pathseg.train.heads import native_conv as native
from pathseg.train.heads.fcn import Doubling, FCNHead, LinearHead

# the thirteen blocks of the full-size model, FACTS of the paper's Table 1
CHANNELS = dict(enumerate((960, 960, 960, 960, 576, 576, 576, 384, 384, 384, 192, 192, 192)))


def features(shapes, n=2, patches=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {b: torch.randn((n, patches, c, s, s), generator=generator, dtype=dtype) for b, (c, s) in shapes.items()}


def test_the_head_of_all_blocks_and_six_classes_has_the_papers_parameters():
    assert sum(p.numel() for p in FCNHead(CHANNELS, 6).parameters()) == 17_470_150


def test_the_stack_of_all_blocks_has_7296_channels():
    assert FCNHead(CHANNELS, 6).first.in_channels == 7296


@pytest.mark.parametrize("head", [FCNHead, LinearHead])
@pytest.mark.parametrize("grid", [(1, 2), (2, 1)])
def test_scores_are_at_the_size_of_the_image(head, grid):
    scores = head({4: 6, 9: 3}, 5)(features({4: (6, 16), 9: (3, 64)}), grid)
    assert scores.shape == (2, 5, 256 * grid[0], 256 * grid[1])


def test_native_and_grid_layouts_give_the_same_scores():
    maps = features({4: (6, 16), 9: (3, 64)})
    grid = {
        b: nn.functional.interpolate(m.flatten(0, 1), (64, 64), mode="bilinear").unflatten(0, (2, 2))
        for b, m in maps.items()
    }
    head = FCNHead({4: 6, 9: 3}, 2).eval()
    assert torch.allclose(head(maps, (1, 2)), head(grid, (1, 2)), atol=1e-6)


def plain_scores(head, maps, grid):
    """The same weights in PyTorch's own layers on the upsampled stack."""
    fine = []
    for m in (maps[block] for block in sorted(maps)):
        up = nn.functional.interpolate(m.flatten(0, 1), (64, 64), mode="bilinear").unflatten(0, m.shape[:2])
        rows = up.unflatten(1, grid)  # (N, rows, cols, C, 64, 64)
        fine.append(rows.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3))
    x = nn.functional.conv2d(torch.cat(fine, 1), head.first.weight, head.first.bias, padding=1)
    for layer in head.tail:
        if isinstance(layer, nn.ConvTranspose2d):
            x = nn.functional.conv_transpose2d(x, layer.weight, layer.bias, stride=2, padding=1)
        elif isinstance(layer, nn.ReLU):
            x = x.relu()
        else:
            x = layer(x)
    return x


def both_ways(monkeypatch, dtype, *, grid, n, classes):
    """A head in training and its scores by its own way, coarse blocks by taps, and by plain layers."""
    monkeypatch.setattr(native, "taps_are_cheaper", lambda side, channels, outputs: side < 64)
    maps = features({0: (5, 8), 4: (6, 16), 6: (4, 32), 9: (3, 64)}, n=n, patches=grid[0] * grid[1], dtype=dtype)
    torch.manual_seed(0)
    head = FCNHead({0: 5, 4: 6, 6: 4, 9: 3}, classes).to(dtype)
    return head, head(maps, grid), plain_scores(head, maps, grid)


def test_scores_and_every_gradient_are_those_of_plain_layers_on_the_stack(monkeypatch):
    head, *both = both_ways(monkeypatch, torch.float64, grid=(1, 2), n=1, classes=7)
    found = []
    for scores in both:
        head.zero_grad()
        scores.log_softmax(1)[:, 1].mean().backward()
        found.append([scores.detach(), *(p.grad.clone() for p in head.parameters())])
    for ours, theirs in zip(*found, strict=True):
        # a bias before batch normalisation has no gradient but rounding
        assert (ours - theirs).norm() <= 1e-10 * (theirs.norm() + 1e-4)


@pytest.mark.parametrize(("grid", "classes"), [((2, 1), 3), ((1, 1), 5)])
def test_in_float32_scores_are_those_of_plain_layers_up_to_rounding(monkeypatch, grid, classes):
    _, ours, theirs = both_ways(monkeypatch, torch.float32, grid=grid, n=2, classes=classes)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_the_image_layout_gives_the_scores_of_the_native_one_for_coarse_blocks():
    maps = features({4: (6, 16), 6: (3, 32)})
    image = {
        b: nn.functional.interpolate(m.flatten(0, 1), (256, 256), mode="bilinear").unflatten(0, (2, 2))
        for b, m in maps.items()
    }
    head = FCNHead({4: 6, 6: 3}, 2).eval()
    assert torch.allclose(head(maps, (1, 2)), head(image, (1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [({4: (6, 16)}, "takes blocks and channels"), ({4: (5, 16), 9: (3, 64)}, "takes blocks and channels")],
)
def test_other_blocks_than_the_heads_own_are_refused(shapes, words):
    with pytest.raises(ValueError, match=words):
        FCNHead({4: 6, 9: 3}, 2)(features(shapes), (1, 2))


def test_another_number_of_patches_is_refused():
    with pytest.raises(ValueError, match="2 patches, but a 2x2 grid has 4"):
        FCNHead({4: 6}, 2)(features({4: (6, 16)}), (2, 2))


def test_a_doubling_layer_is_the_transposed_convolution():
    torch.manual_seed(0)
    layer, plain = Doubling(5, 3).double(), torch.nn.ConvTranspose2d(5, 3, 4, stride=2, padding=1).double()
    plain.load_state_dict(layer.state_dict())
    found = []
    for way in (layer, plain):
        maps = torch.randn(2, 5, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        scores = way(maps)
        (scores * torch.arange(scores.numel()).view(scores.shape)).sum().backward()
        found.append((scores, maps.grad, way.weight.grad, way.bias.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10)
