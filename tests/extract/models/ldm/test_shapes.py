import math
import runpy
from pathlib import Path

import pytest
import torch
import yaml

from pathseg.extract.models.ldm.config import (
    FirstStageDesign,
    UNetDesign,
    conditioning_design,
    first_stage_design,
    unet_design,
)
from pathseg.extract.models.ldm.shapes import (
    check_shapes,
    conditioning_shapes,
    decoder_shapes,
    encoder_shapes,
    unet_shapes,
    vit_shapes,
)

FILES = runpy.run_path(Path(__file__).parents[3] / "golden/files.py")
FULL_UNET = UNetDesign(3, 3, 192, (1, 2, 3, 5), 2, (8, 4, 2), 512, 1, 1, None)


def parameters(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.fixture(params=FILES["CASES"])
def case(request):
    described = FILES["case"](request.param)
    shapes = {part: {k: tuple(s) for k, s in named.items()} for part, named in described["shapes"].items()}
    return shapes, yaml.safe_load(described["config_yaml"])["model"]["params"]


def test_unet_names_and_shapes_are_those_of_the_reference(case):
    shapes, params = case
    assert unet_shapes(unet_design(params)) == shapes["unet"]


def test_first_stage_names_and_shapes_are_those_of_the_reference(case):
    shapes, params = case
    design = first_stage_design(params)
    assert encoder_shapes(design) | decoder_shapes(design) == shapes["first_stage"]


def test_conditioning_names_and_shapes_are_those_of_the_reference(case):
    shapes, params = case
    assert conditioning_shapes(conditioning_design(params), 512) == shapes["cond_stage"]


def test_vit_names_and_shapes_are_those_of_the_reference(case):
    shapes, _ = case
    assert vit_shapes(128, 2) == shapes["vit"]


def test_the_papers_vit_has_the_published_number_of_parameters():
    assert parameters(vit_shapes(384, 12)) == 21_665_664


def test_the_papers_unet_has_the_published_number_of_parameters():
    assert parameters(unet_shapes(FULL_UNET)) == 400_920_579


def test_the_papers_first_stage_has_the_published_number_of_parameters():
    design = FirstStageDesign("vq", 128, (1, 2, 4), 2, 3, 3, 8192)
    assert parameters(encoder_shapes(design) | decoder_shapes(design)) == 55_322_782


EXPECTED = {"a.weight": (2, 3), "a.bias": (2,)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": (2, 3)}, "file lacks tensor a.bias"),
        ({}, "file lacks tensor a.weight and 1 more"),
        ({**EXPECTED, "b": (1,)}, "file has the unexpected tensor b"),
        ({**EXPECTED, "a.weight": (3, 2)}, r"file does not fit its config in tensor a.weight: \(3, 2\), not \(2, 3\)"),
    ],
)
def test_the_first_offending_tensor_is_named(tensors, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_shapes({name: torch.zeros(shape) for name, shape in tensors.items()}, EXPECTED, "file")
