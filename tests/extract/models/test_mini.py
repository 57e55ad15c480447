import math

import numpy as np
import pytest
import torch

from pathseg.extract.datasets.synthetic.painting import draw_tissue
from pathseg.extract.models.dino_vit import vit_shapes
from pathseg.extract.models.ldm.unet import build_unet
from pathseg.extract.models.load import load_model
from pathseg.extract.models.mini import MINI_PARAMS, MINI_VIT, mini_release, mini_vit, random_weights
from pathseg.extract.models.noise import add_noise
from pathseg.extract.models.registry import BUNDLED, MODELS, bundled_file


def test_mini_is_made_like_the_papers_model():
    release = mini_release()
    assert release.first_stage_design.name == "vq-f4"
    assert release.first_stage_design.latent_shape == (3, 64, 64)
    assert list(release.unet_design.blocks(64)) == list(range(13))


def test_the_bundled_files_are_those_of_the_record():
    for name in MODELS["mini"].files:
        assert bundled_file("mini", name).is_file()
    assert {path.name for path in BUNDLED.glob("*.safetensors")} == set(MODELS["mini"].files)


def test_the_weights_are_small_enough_to_ship():
    assert sum((BUNDLED / name).stat().st_size for name in MODELS["mini"].files) <= 12_000_000


def test_the_weights_are_kept_in_half_precision():
    release = mini_release()
    parts = (release.unet, release.first_stage, release.conditioning, mini_vit())
    assert {tensor.dtype for part in parts for tensor in part.values()} == {torch.float16}


def test_minis_vit_has_the_shapes_of_dinos():
    shapes = {name: tuple(tensor.shape) for name, tensor in mini_vit().items()}
    assert shapes == vit_shapes(*MINI_VIT, grid=8)


def test_latents_of_tissue_have_unit_size():
    model = load_model("mini")
    tissue = draw_tissue(np.random.default_rng(0), 256).image[None]
    assert 0.5 < model.encode(tissue).std().item() < 2


def test_the_denoiser_tells_noise_from_latents():
    """On tissue and at a t where they are equally strong: better than guessing that all or nothing is noise."""
    release, t = mini_release(), 250
    images = np.stack([draw_tissue(np.random.default_rng(seed), 256).image for seed in range(2)])
    z0, context = load_model("mini").prepare(images)
    eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
    alpha_bar = float(release.schedule.alpha_bars()[t])
    zt = add_noise(z0, eps, alpha_bar)
    with torch.inference_mode():
        error = (build_unet(release.unet_design, release.unet)(zt, t, context).sample - eps).square().mean().item()
    # The best guess without a look at neighbours is a share of zt; its error is the latents' share of zt's variance.
    blind = alpha_bar * z0.var().item() / zt.var().item()
    assert error < 0.8 * blind


@pytest.mark.soak
def test_a_patchs_own_embedding_helps_the_denoiser_more_than_anothers():
    release, t = mini_release(), 400
    images = np.stack([draw_tissue(np.random.default_rng(seed), 256).image for seed in range(8)])
    z0, context = load_model("mini").prepare(images)
    eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
    zt, unet = (
        add_noise(z0, eps, float(release.schedule.alpha_bars()[t])),
        build_unet(release.unet_design, release.unet),
    )
    with torch.inference_mode():
        own, another = ((unet(zt, t, y).sample - eps).square().mean((1, 2, 3)) for y in (context, context.roll(1, 0)))
    assert own.mean() < another.mean()


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
