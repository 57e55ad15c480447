import dataclasses

import numpy as np
import pytest
import torch

from pathseg.extract.models.dino_vit import vit_shapes
from pathseg.extract.models.ldm_features import DiffusionFeatures
from pathseg.extract.models.mini import mini_release, mini_vit
from pathseg.extract.models.noise import patch_noise


@pytest.fixture(scope="module")
def model():
    return DiffusionFeatures(mini_release(), mini_vit(), name="mini", trained=False)


@pytest.fixture(scope="module")
def unconditional():
    return DiffusionFeatures(mini_release(), None, name="mini", trained=False)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)


def test_features_have_the_sizes_that_blocks_says(model, images):
    sizes = {block: tuple(maps.shape) for block, maps in model.features(images).items()}
    assert sizes == {block: (2, c, side, side) for block, (c, side) in model.blocks.items()}


def test_all_blocks_are_the_default(model, images):
    assert list(model.features(images[:1], blocks=None)) == list(range(13))


def test_features_are_float32_and_frozen(model, images):
    for maps in model.features(images, blocks=[0, 12]).values():
        assert maps.dtype == torch.float32
        assert not maps.requires_grad


def test_noise_that_is_not_given_follows_the_rule_by_position(model, images):
    noise = torch.stack([patch_noise((3, 64, 64), seed=0, image_id="array", patch=i, t=10) for i in (0, 1)])
    assert torch.equal(model.features(images, t=10, blocks=[4])[4], model.features(images, 10, [4], noise)[4])


def test_noise_may_be_an_array(model, images):
    noise = np.ones((2, 3, 64, 64))
    assert torch.equal(
        model.features(images, 10, [4], noise)[4], model.features(images, 10, [4], torch.ones(2, 3, 64, 64))[4]
    )


def test_features_are_denoise_of_prepare(model, images):
    noise = torch.zeros(2, 3, 64, 64)
    z0, context = model.prepare(images)
    assert torch.equal(model.denoise(z0, context, 50, [7], noise)[7], model.features(images, 50, [7], noise)[7])


def test_z0_of_prepare_is_that_of_encode(model, images):
    assert torch.equal(model.prepare(images)[0], model.encode(images))


def test_features_of_a_patch_do_not_depend_on_its_batch(model, images):
    noise = torch.stack([patch_noise((3, 64, 64), seed=0, image_id="a", patch=i, t=50) for i in (0, 1)])
    together, alone = model.features(images, 50, range(13), noise), model.features(images[1:], 50, range(13), noise[1:])
    for block, maps in together.items():
        assert torch.linalg.norm(maps[1:] - alone[block]) < 1e-5 * torch.linalg.norm(maps[1:])


def test_the_condition_changes_features(model, unconditional, images):
    assert not torch.equal(model.features(images, blocks=[4])[4], unconditional.features(images, blocks=[4])[4])


def test_unconditional_tokens_are_the_same_for_every_patch(unconditional, images):
    _, context = unconditional.prepare(images)
    assert torch.equal(context[0], context[1])


def test_an_unconditional_model_has_no_embedding(unconditional, images):
    with pytest.raises(ValueError, match="condition 'none' and has no ViT"):
        unconditional.embed(images)


def test_the_vit_is_part_of_the_digest_where_it_is_used(model, unconditional):
    assert model.digest != unconditional.digest


@pytest.mark.parametrize("change", ["unet", "first_stage", "conditioning", "scale_factor", "schedule"])
def test_everything_that_changes_numbers_changes_the_digest(unconditional, change):
    release = mini_release()
    if change == "scale_factor":
        value = 0.5
    elif change == "schedule":
        value = dataclasses.replace(release.schedule, linear_start=0.001)
    else:
        value = {name: tensor + 1 for name, tensor in getattr(release, change).items()}
    other = DiffusionFeatures(dataclasses.replace(release, **{change: value}), None, name="mini", trained=False)
    assert other.digest != unconditional.digest


def test_the_source_does_not_enter_the_digest(unconditional):
    moved = dataclasses.replace(mini_release(), source="elsewhere", name="other")
    assert DiffusionFeatures(moved, None, name="other", trained=True).digest == unconditional.digest


def test_a_vit_of_another_width_is_refused_with_both_numbers():
    vit = {name: torch.zeros(shape) for name, shape in vit_shapes(384, 1).items()}
    with pytest.raises(ValueError, match=r"gives embeddings of 384, but .* takes 192; pass .* --hipt"):
        DiffusionFeatures(mini_release(), vit, name="mini", trained=False)


@pytest.mark.parametrize("t", [-1, 1000, 50.0, None])
def test_a_timestep_outside_the_schedule_is_refused(model, images, t):
    with pytest.raises(ValueError, match=f"t must be a whole number within 0-999, got {t}"):
        model.features(images, t=t)


@pytest.mark.parametrize(
    ("blocks", "what"), [([4, 13], "has no block 13"), ([-1], "has no block -1"), ([], "at least one block")]
)
def test_blocks_that_are_not_there_are_refused(model, images, blocks, what):
    with pytest.raises(ValueError, match=rf"model mini .*{what}; its blocks are 0-12"):
        model.features(images, blocks=blocks)


def test_noise_of_another_shape_is_refused(model, images):
    with pytest.raises(ValueError, match=r"latents' shape \(2, 3, 64, 64\), got \(1, 3, 64, 64\)"):
        model.features(images, noise=torch.zeros(1, 3, 64, 64))
