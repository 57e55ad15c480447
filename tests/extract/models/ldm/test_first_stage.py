import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from pathseg.extract.models.ldm.first_stage import build_first_stage
from pathseg.extract.models.ldm.release import read_release
from pathseg.extract.models.mini import mini_release
from pathseg.extract.models.patches import network_input

FILES = runpy.run_path(Path(__file__).parents[3] / "golden/files.py")


@pytest.fixture(params=FILES["CASES"])
def stage(request, tmp_path):
    release = read_release(FILES["write_case"](request.param, tmp_path))
    pixels = network_input(FILES["patch"](request.param), torch.device("cpu"))
    return build_first_stage(release), release.scale_factor, pixels, FILES["expected"](request.param)["z0"]


def test_latents_agree_with_the_reference(stage):
    encoder, scale, pixels, reference = stage
    with FILES["reference_threads"]():
        assert FILES["relative_error"](encoder(pixels) * scale, reference) < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_latents_agree_with_float64_whatever_the_number_of_threads(stage, threads):
    encoder, *_, pixels, _ = stage
    with FILES["reference_threads"]():
        torch.set_num_threads(threads)
        latents = encoder(pixels)
    assert FILES["relative_error"](latents, encoder.double()(pixels.double())) < 5e-5


def test_latents_do_not_depend_on_how_pixels_lie_in_memory(stage):
    encoder, _, pixels, _ = stage
    assert torch.equal(encoder(pixels), encoder(pixels.contiguous()))


def test_no_decoder_is_built(stage):
    encoder, *_ = stage
    assert {name.split(".")[0] for name, _ in encoder.named_parameters()} == {"encoder", "quant_conv"}


def test_latents_do_not_depend_on_the_batch():
    encoder = build_first_stage(mini_release())
    images = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    pixels = network_input(images, torch.device("cpu"))
    assert FILES["relative_error"](encoder(pixels)[1:2], encoder(pixels[1:2])) < 1e-5
