import math
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from pathseg.extract.models.hooks import captured
from pathseg.extract.models.ldm.compvis import unet_name
from pathseg.extract.models.ldm.config import UNetDesign, unet_design
from pathseg.extract.models.ldm.release import read_release
from pathseg.extract.models.ldm.unet import build_unet, empty_unet, unet_shapes

FILES = runpy.run_path(Path(__file__).parents[3] / "golden/files.py")
FULL = UNetDesign(3, 3, 192, (1, 2, 3, 5), 2, (8, 4, 2), 512, 1, 1, None)


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    return {name: read_release(FILES["write_case"](name, tmp_path_factory.mktemp(name))) for name in FILES["CASES"]}


@pytest.mark.parametrize("name", FILES["CASES"])
def test_the_denoiser_agrees_with_the_reference(releases, name):
    reference = FILES["expected"](name)
    unet = build_unet(releases[name].unet_design, releases[name].unet)
    with torch.inference_mode():
        out = unet(torch.from_numpy(reference["zt"]), 50, torch.from_numpy(reference["context"])).sample
    assert FILES["relative_error"](out, reference["unet_out"]) < 1e-5


@pytest.mark.parametrize("name", FILES["CASES"])
def test_names_and_shapes_are_those_of_the_reference(name):
    described = FILES["case"](name)
    params = yaml.safe_load(described["config_yaml"])["model"]["params"]
    assert unet_shapes(unet_design(params)) == {k: tuple(s) for k, s in described["shapes"]["unet"].items()}


def test_names_are_those_of_the_converter_of_diffusers():
    shapes = unet_shapes(FULL)
    numbered = {f"model.diffusion_model.{name}": torch.tensor(i) for i, name in enumerate(shapes)}
    converted = convert_ldm_unet_checkpoint(numbered, {"layers_per_block": 2})
    names = list(shapes)
    assert all(names[number] == unet_name(theirs, FULL) for theirs, number in converted.items())
    assert len(converted) == len(names)


def test_the_full_size_denoiser_has_the_published_number_of_parameters():
    assert sum(math.prod(shape) for shape in unet_shapes(FULL).values()) == 400_920_579


def test_full_size_blocks_have_the_sizes_that_the_design_says():
    with torch.device("meta"):
        unet = empty_unet(FULL).requires_grad_(False)
        with captured(unet, range(13)) as features:
            unet(torch.empty(1, 3, 64, 64), torch.tensor(50), torch.empty(1, 2, 512))
    sizes = {block: tuple(maps.shape[1:]) for block, maps in features.items()}
    assert sizes == {block: (c, side, side) for block, (c, side) in FULL.blocks(64).items()}


def test_a_built_denoiser_is_frozen_and_float32(releases):
    release = releases["kl_f8_patch"]
    unet = build_unet(release.unet_design, {name: tensor.half() for name, tensor in release.unet.items()})
    assert not unet.training
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}


@pytest.mark.slow
def test_the_full_size_denoiser_runs():
    torch.manual_seed(0)
    unet = empty_unet(FULL).eval().requires_grad_(False)
    with torch.inference_mode(), captured(unet, range(13)) as features:
        unet(torch.randn(1, 3, 64, 64), 50, torch.randn(1, 2, 512))
    assert all(torch.isfinite(maps).all() for maps in features.values())
