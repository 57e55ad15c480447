import copy
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.vq_model import VQModel

from pathseg.extract.models.ldm.config import FirstStageDesign, first_stage_design
from pathseg.extract.models.ldm.first_stage import build_first_stage, encoder_shapes
from pathseg.extract.models.ldm.release import read_release
from pathseg.extract.models.mini import mini_release
from pathseg.extract.models.patches import network_input

FILES = runpy.run_path(Path(__file__).parents[3] / "golden/files.py")


@pytest.fixture(scope="module", params=FILES["CASES"])
def stage(request, tmp_path_factory):
    release = read_release(FILES["write_case"](request.param, tmp_path_factory.mktemp(request.param)))
    pixels = network_input(FILES["patch"](request.param), torch.device("cpu"))
    return (
        build_first_stage(release.first_stage_design, release.first_stage),
        release.scale_factor,
        pixels,
        FILES["expected"](request.param)["z0"],
    )


def test_latents_agree_with_the_reference(stage):
    encoder, scale, pixels, reference = stage
    with FILES["reference_threads"]():
        assert FILES["relative_error"](encoder(pixels) * scale, reference) < 1e-5


def test_latents_agree_with_float64_whatever_the_number_of_threads(stage):
    encoder, *_, pixels, _ = stage
    exact = copy.deepcopy(encoder).double()(pixels.double())
    with FILES["reference_threads"]():
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert FILES["relative_error"](encoder(pixels), exact) < 5e-5


def test_latents_do_not_depend_on_how_pixels_lie_in_memory(stage):
    encoder, _, pixels, _ = stage
    assert torch.equal(encoder(pixels), encoder(pixels.contiguous()))


def test_no_decoder_is_built(stage):
    encoder, *_ = stage
    assert {name.split(".")[0] for name, _ in encoder.named_parameters()} == {"encoder", "quant_conv"}


def test_latents_do_not_depend_on_the_batch():
    release = mini_release()
    encoder = build_first_stage(release.first_stage_design, release.first_stage)
    images = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    pixels = network_input(images, torch.device("cpu"))
    assert FILES["relative_error"](encoder(pixels)[1:2], encoder(pixels[1:2])) < 1e-5


@pytest.mark.parametrize("name", FILES["CASES"])
def test_names_and_shapes_are_those_of_the_reference(name):
    described = FILES["case"](name)
    design = first_stage_design(yaml.safe_load(described["config_yaml"])["model"]["params"])
    encoder = {
        tensor: tuple(shape)
        for tensor, shape in described["shapes"]["first_stage"].items()
        if tensor.startswith(("encoder.", "quant_conv."))
    }
    assert encoder_shapes(design) == encoder


def test_the_papers_first_stage_has_the_published_number_of_parameters():
    levels = 3
    with torch.device("meta"):
        whole = VQModel(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(128, 256, 512),
            layers_per_block=2,
            latent_channels=3,
            num_vq_embeddings=8192,
        )
    sizes = {name: parameter.numel() for name, parameter in whole.named_parameters()}
    assert sum(sizes.values()) == 55_322_782
    shapes = encoder_shapes(FirstStageDesign("vq", 128, (1, 2, 4), 2, 3, 3, 8192))
    encoder = sum(size for name, size in sizes.items() if name.startswith(("encoder.", "quant_conv.")))
    assert sum(map(math.prod, shapes.values())) == encoder
    config = {"down_block_types": [""] * levels, "up_block_types": [""] * levels}
    converted = convert_ldm_vae_checkpoint({name: torch.empty(shape) for name, shape in shapes.items()}, config)
    assert converted.keys() == {name for name in sizes if name.startswith(("encoder.", "quant_conv."))}
