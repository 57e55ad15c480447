import runpy
from pathlib import Path

import pytest
import torch

from pathseg.extract.models.dino_vit import build_vit
from pathseg.extract.models.patches import network_input
from pathseg.extract.models.vit_features import TokenFeatures

FILES = runpy.run_path(Path(__file__).parents[2] / "golden/files.py")
PATCH = FILES["patch"]("vq_f4_ssl")


@pytest.fixture(scope="module")
def tensors():
    return FILES["weights"]("vq_f4_ssl")["vit"]


@pytest.fixture(scope="module")
def model(tensors):
    return TokenFeatures(tensors, name="hipt", trained=True)


def test_the_only_block_is_the_map_of_patch_tokens(model, tensors):
    (block,) = model.features(PATCH).items()
    tokens = build_vit(tensors).forward_features(network_input(PATCH, torch.device("cpu")))[:, 1:]
    assert block[0] == 0
    assert torch.equal(block[1], tokens.transpose(1, 2).reshape(1, 128, 16, 16))
    assert model.blocks == {0: (128, 16)}


def test_the_embedding_agrees_with_the_reference(model):
    assert FILES["relative_error"](model.embed(PATCH), FILES["expected"]("vq_f4_ssl")["hipt"]) < 1e-5


def test_timestep_and_noise_change_nothing(model):
    assert torch.equal(model.features(PATCH, t=999, noise=torch.ones(1))[0], model.features(PATCH)[0])


def test_another_block_is_refused(model):
    with pytest.raises(ValueError, match="patch tokens as block 0 and no other"):
        model.features(PATCH, blocks=[0, 4])


def test_there_are_no_latents(model):
    assert model.latent_shape is None
    with pytest.raises(ValueError, match="model hipt is a ViT and has no latents"):
        model.encode(PATCH)
