"""The scalar mix: projections, normalisation and weights against plain layers on the upsampled stack."""

import pytest
import torch
from torch import nn

from pathseg.train.config import Layer
from pathseg.train.heads.scalar_mix import ScalarMixHead

SHAPES = {Layer(0, 50, 4): (6, 16), Layer(0, 50, 9): (3, 64), Layer(1, 200, 11): (5, 18)}


def head_and_maps(patches=2, dtype=torch.float64):
    torch.manual_seed(0)
    head = ScalarMixHead({layer: c for layer, (c, _) in SHAPES.items()}, 3).to(dtype)
    maps = {layer: torch.randn(1, patches, c, s, s, dtype=dtype) for layer, (c, s) in SHAPES.items()}
    return head, maps


def test_the_scores_are_those_of_plain_layers_on_the_upsampled_maps():
    head, maps = head_and_maps()
    head.tail = nn.Sequential(nn.Conv2d(256, 3, 1)).double()  # for speed: the tail of FCNHead has its own tests
    with torch.no_grad():
        head.mix.copy_(torch.tensor([0.02, -0.01, 0.05]))
        total = 0
        for number, layer in enumerate(sorted(maps)):
            values = maps[layer]
            x = head.projections[number](values[0])  # (2, 256, h, w)
            x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            fine = nn.functional.interpolate(x, (64, 64), mode="bilinear")
            weight = (30 * head.mix).exp()[number] / (30 * head.mix).exp().sum()
            total = total + weight * torch.cat([fine[0], fine[1]], -1)[None]
        expected = head.tail(total)
        head.train()
        torch.testing.assert_close(head(maps, (1, 2)), expected, rtol=1e-8, atol=1e-8)


def test_the_weights_start_equal_and_add_up_to_one():
    head, _ = head_and_maps()
    assert head.layer_weights() == pytest.approx(dict.fromkeys(SHAPES, 1 / 3))
    with torch.no_grad():
        head.mix[0] = 0.1
    weights = head.layer_weights()
    assert sum(weights.values()) == pytest.approx(1) and weights[Layer(0, 50, 4)] > 0.8


def test_every_parameter_gets_a_gradient():
    head, maps = head_and_maps(1, torch.float32)
    head(maps, (1, 1))[:, 0].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_the_layer_that_says_the_class_gets_the_largest_weight():
    torch.manual_seed(0)
    says, noise = Layer(0, 50, 4), Layer(0, 50, 9)
    head = ScalarMixHead({says: 2, noise: 2}, 2)
    head.tail = nn.Sequential(nn.Conv2d(256, 2, 1))  # for speed; scores on the grid of the head
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    for _ in range(40):
        mask = torch.randint(0, 2, (1, 8, 8))
        maps = {says: mask[:, None, None].float().repeat(1, 1, 2, 1, 1), noise: torch.randn(1, 1, 2, 8, 8)}
        scores = nn.functional.avg_pool2d(head(maps, (1, 1)), 8)  # (1, 2, 8, 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores, mask).backward()
        optimizer.step()
    weights = head.layer_weights()
    assert weights[says] > 0.6 > 0.4 > weights[noise]
