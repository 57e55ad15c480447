import pytest
import torch
from torch import nn

from pathseg.train.heads import Doubling, FCNHead, LinearHead, classify

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


def test_an_ignored_class_is_never_answered():
    scores = torch.tensor([3.0, 1.0, 2.0]).reshape(1, 3, 1, 1)
    assert classify(scores, None).item() == 0
    assert classify(scores, 0).item() == 2
    assert classify(scores, 255).item() == 0


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
