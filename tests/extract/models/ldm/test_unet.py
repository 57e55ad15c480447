import runpy
from pathlib import Path

import pytest
import torch

from pathseg.extract.models.hooks import captured
from pathseg.extract.models.ldm.config import UNetDesign
from pathseg.extract.models.ldm.release import read_release
from pathseg.extract.models.ldm.unet import build_unet, empty_unet

FILES = runpy.run_path(Path(__file__).parents[3] / "golden/files.py")
FULL = UNetDesign(3, 3, 192, (1, 2, 3, 5), 2, (8, 4, 2), 512, 1, 1, None)


@pytest.mark.parametrize("name", FILES["CASES"])
def test_the_denoiser_agrees_with_the_reference(tmp_path, name):
    reference = FILES["expected"](name)
    unet = build_unet(read_release(FILES["write_case"](name, tmp_path)))
    with torch.inference_mode():
        out = unet(torch.from_numpy(reference["zt"]), 50, torch.from_numpy(reference["context"])).sample
    assert FILES["relative_error"](out, reference["unet_out"]) < 1e-5


def test_the_full_size_denoiser_has_the_published_number_of_parameters():
    with torch.device("meta"):
        unet = empty_unet(FULL)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 400_920_579


def test_full_size_blocks_have_the_sizes_that_the_design_says():
    with torch.device("meta"):
        unet = empty_unet(FULL).requires_grad_(False)
        with captured(unet, range(13)) as features:
            unet(torch.empty(1, 3, 64, 64), torch.tensor(50), torch.empty(1, 2, 512))
    sizes = {block: tuple(maps.shape[1:]) for block, maps in features.items()}
    assert sizes == {block: (c, side, side) for block, (c, side) in FULL.blocks(64).items()}


def test_a_built_denoiser_is_frozen(tmp_path):
    unet = build_unet(read_release(FILES["write_case"]("kl_f8_patch", tmp_path)))
    assert not unet.training
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_half_precision_weights_become_float32(tmp_path):
    state = {name: tensor.half() for name, tensor in FILES["state_dict"]("vq_f4_ssl").items()}
    release = FILES["write_release"](tmp_path, state, FILES["case"]("vq_f4_ssl")["config_yaml"])
    assert {parameter.dtype for parameter in build_unet(read_release(release)).parameters()} == {torch.float32}


@pytest.mark.slow
def test_the_full_size_denoiser_runs():
    torch.manual_seed(0)
    unet = empty_unet(FULL).eval().requires_grad_(False)
    with torch.inference_mode(), captured(unet, range(13)) as features:
        unet(torch.randn(1, 3, 64, 64), 50, torch.randn(1, 2, 512))
    assert all(torch.isfinite(maps).all() for maps in features.values())
