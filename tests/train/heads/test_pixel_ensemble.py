import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pathseg.store.grid import PatchGrid
from pathseg.train.heads.pixel_ensemble import MODELS, PixelEnsemble, image_uncertainty, pixel_features, vote

SHAPES = {0: (5, 8), 4: (6, 16), 9: (3, 64)}
# the thirteen blocks of the full-size model, FACTS of the paper's Table 1
CHANNELS = (960,) * 4 + (576,) * 3 + (384,) * 3 + (192,) * 3
SIDES = (8,) * 3 + (16,) * 3 + (32,) * 3 + (64,) * 4
FULL = dict(enumerate(zip(CHANNELS, SIDES, strict=True)))


def features(grid, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return {
        b: torch.randn((1, grid.patches, c, s, s), generator=generator, dtype=dtype) for b, (c, s) in shapes.items()
    }


def dense(maps, grid):
    """The stack of equation 4 for one image: each patch of each block upsampled by itself, (d, H, W)."""
    fine = [
        F.interpolate(m[0], (256, 256), mode="bilinear", align_corners=False)[None] for _, m in sorted(maps.items())
    ]
    return torch.cat([grid.stitch(m)[0] for m in fine])


def ensemble(classes=3, shapes=SHAPES):
    torch.manual_seed(0)
    head = PixelEnsemble({b: c for b, (c, _) in shapes.items()}, classes).double().eval()
    for model in head.models:  # as after some training: no statistic is trivial
        for layer in (model[2], model[5]):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        model[0].weight.data *= 50
        model[6].weight.data *= 50
    return head


@pytest.mark.parametrize("grid", [PatchGrid(1, 1), PatchGrid(2, 1), PatchGrid(1, 2)])
def test_a_pixels_features_are_those_of_the_dense_upsampled_stack(grid):
    maps = features(grid)
    pixels = torch.randperm(math.prod(grid.size), generator=torch.Generator().manual_seed(1))[:2000]
    corners = torch.tensor([0, grid.size[1] - 1, math.prod(grid.size) - 1])
    pixels = torch.cat([pixels, corners])
    sampled = pixel_features({b: m[0] for b, m in maps.items()}, pixels, grid)
    assert torch.allclose(sampled, dense(maps, grid).flatten(1).T[pixels], rtol=0, atol=1e-12)


def test_half_precision_features_are_blended_in_float32():
    maps = {4: torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]], dtype=torch.float16)}
    # between cell centres at 64 and 192 px of 256: pixel 100 lies at 100.5, a share of 36.5/128 on the way
    assert pixel_features(maps, torch.tensor([100]), PatchGrid(1, 1)).item() == pytest.approx(36.5 / 128, rel=1e-6)


def test_a_prediction_is_that_of_every_network_on_the_dense_stack():
    grid, head = PatchGrid(1, 2), ensemble()
    head.models = head.models[:3]  # for speed
    maps = features(grid)
    stack = dense(maps, grid).flatten(1).T  # (H W, d)
    with torch.no_grad():
        logits = torch.stack([model(stack) for model in head.models])
    labels, scores, uncertainty, _ = vote(logits)
    found = head.predict(maps, (1, 2))
    assert torch.allclose(found.scores[0].flatten(1).T, scores, rtol=0, atol=1e-9)
    assert torch.allclose(found.uncertainty.flatten(), uncertainty[:, 0], rtol=0, atol=1e-9)
    assert torch.equal(found.labels.flatten(), labels[:, 0])
    assert len(found.labels.unique()) > 1


def test_most_votes_win():
    # three networks, one pixel: class 2, 2, 0, the last one surest
    logits = torch.tensor([[[0.0, 0, 1]], [[0, 0, 1]], [[9, 0, 0]]])
    assert vote(logits)[0].item() == 2
    torch.testing.assert_close(vote(logits)[3], torch.tensor([[1 / 3, 0, 2 / 3]]))


def test_a_tie_goes_to_the_smallest_class():
    logits = torch.tensor([[[0.0, 0, 9]], [[0, 1, 0]], [[0, 0, 9]], [[0, 1, 0]]])
    assert vote(logits)[0].item() == 1


def test_uncertainty_is_the_jensen_shannon_divergence():
    # p = (3/4, 1/4) and (1/4, 3/4): the mean has entropy ln 2, each has ln 4 - 3/4 ln 3
    p = torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]]], dtype=torch.float64)
    expected = math.log(2) - (math.log(4) - 0.75 * math.log(3))
    assert vote(p.log())[2].item() == pytest.approx(expected, abs=1e-12)


def test_networks_that_agree_are_certain():
    logits = torch.randn(1, 50, 4, dtype=torch.float64).expand(MODELS, -1, -1)
    assert vote(logits)[2].abs().max() < 1e-12


def test_an_ignored_class_gets_no_vote_and_no_probability():
    labels, scores, uncertainty, _ = vote(torch.tensor([[[5.0, 1, 0]], [[5.0, 1, 0]]]), ignore=0)
    assert labels.item() == 1
    assert scores.exp()[0, 0] == 0
    assert uncertainty.isfinite().all()


def test_an_image_is_as_uncertain_as_its_worst_tenth():
    values = torch.arange(100.0).reshape(10, 10)
    assert image_uncertainty(values) == pytest.approx(sum(range(90, 100)) / 10)


def test_the_networks_are_those_of_ddpmseg():
    head = PixelEnsemble({0: 500}, 2)
    one = 500 * 128 + 128 + 2 * 128 + 128 * 32 + 32 + 2 * 32 + 32 * 2 + 2  # linear layers and normalisations, by hand
    assert sum(p.numel() for p in head.parameters()) == 10 * one
    assert head.models[0][0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(model[i].bias.abs().max() == 0 for model in head.models for i in (0, 3, 6))
    assert not torch.equal(head.models[0][0].weight, head.models[1][0].weight)


class Largest(TorchDispatchMode):
    """Notes the number of values of the largest tensor that anything makes."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = made if isinstance(made, tuple | list) else (made,)
        self.values = max([self.values, *(t.numel() for t in tensors if isinstance(t, torch.Tensor))])
        return made


def test_a_prediction_makes_nothing_larger_than_the_maps_or_128_channels_of_a_patch():
    with torch.device("meta"):
        head = PixelEnsemble({b: c for b, (c, _) in FULL.items()}, 6).eval()
        head.models = head.models[:2]  # for speed
        maps = {b: torch.empty(1, 9, c, s, s, dtype=torch.float16) for b, (c, s) in FULL.items()}
        with Largest() as largest:
            assert head.predict(maps, (3, 3)).scores.shape == (1, 6, 768, 768)
    assert sum(head.channels.values()) == 7296
    # the stack of the whole image would be 7296 * 768 * 768
    assert largest.values == max(128 * 256 * 256, *(m.numel() for m in maps.values()))


def test_drawing_pixels_makes_nothing_larger_than_the_maps():
    maps = {b: torch.empty(9, c, s, s, dtype=torch.float16, device="meta") for b, (c, s) in FULL.items()}
    with Largest() as largest:
        drawn = pixel_features(maps, torch.empty(1024, dtype=torch.long, device="meta"), PatchGrid(3, 3))
    assert drawn.shape == (1024, 7296)
    assert largest.values == max(1024 * 7296, *(m.numel() for m in maps.values()))
