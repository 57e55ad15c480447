import math

import numpy as np
import pytest
import torch

from pathseg.extract.mini import MINI_PARAMS, mini_release, mini_vit, random_weights


def test_mini_is_made_like_the_papers_model():
    release = mini_release()
    assert release.first_stage_design.name == "vq-f4"
    assert release.first_stage_design.latent_shape == (3, 64, 64)
    assert list(release.unet_design.blocks(64)) == list(range(13))


def test_mini_is_the_same_each_time():
    first, second = mini_release(), mini_release()
    assert all(torch.equal(tensor, second.unet[name]) for name, tensor in first.unet.items())


def test_minis_vit_fits_its_conditioning_stage():
    assert mini_vit()["pos_embed"].shape[-1] == MINI_PARAMS["cond_stage_config"]["params"]["patch_embed_dim"]


def test_kernels_are_scaled_by_their_fan_in():
    weights = random_weights({"a.weight": (400, 10, 3, 3)}, np.random.default_rng(0))
    assert weights["a.weight"].std().item() == pytest.approx(1 / math.sqrt(90), rel=0.02)


def test_norms_start_as_the_identity_but_for_small_biases():
    weights = random_weights({"norm.weight": (5000,), "norm.bias": (5000,)}, np.random.default_rng(0))
    assert torch.equal(weights["norm.weight"], torch.ones(5000))
    assert weights["norm.bias"].std().item() == pytest.approx(0.1, rel=0.05)


def test_residual_branches_add_little():
    shapes = {"b.out_layers.3.weight": (400, 10, 3, 3), "b.in_layers.2.weight": (400, 10, 3, 3)}
    last, first = (tensor.std().item() for tensor in random_weights(shapes, np.random.default_rng(0)).values())
    assert last == pytest.approx(0.1 * first, rel=0.05)
