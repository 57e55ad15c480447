import runpy
from pathlib import Path

import pytest
import torch
import yaml

from pathseg.extract.models.ldm.conditioning import Conditioning, build_conditioning, conditioning_shapes
from pathseg.extract.models.ldm.config import ConditioningDesign, conditioning_design

FILES = runpy.run_path(Path(__file__).parents[3] / "golden/files.py")


def design_of(name):
    return conditioning_design(yaml.safe_load(FILES["case"](name)["config_yaml"])["model"]["params"])


@pytest.mark.parametrize("name", FILES["CASES"])
def test_context_agrees_with_the_reference(name):
    reference = FILES["expected"](name)
    stage = build_conditioning(design_of(name), 512, FILES["weights"](name)["cond_stage"])
    assert FILES["relative_error"](stage(torch.from_numpy(reference["hipt"])), reference["context"]) < 1e-5


def test_without_normalising_the_length_of_an_embedding_counts():
    stage = Conditioning(ConditioningDesign(4, None, normalize=False), 8)
    (token,) = stage(torch.full((1, 4), 2.0))
    assert torch.allclose(token[0], stage.patch_fc.weight.sum(1) * 2 + stage.patch_fc.bias)


def test_zeros_are_conditioned_by_the_biases_alone():
    stage = Conditioning(ConditioningDesign(4, 6, normalize=True), 8)
    context = stage(torch.zeros(2, 4))
    assert torch.allclose(context, torch.stack([stage.patch_fc.bias, stage.region_fc.bias]).expand(2, 2, 8))


@pytest.mark.parametrize("name", FILES["CASES"])
def test_names_and_shapes_are_those_of_the_reference(name):
    shapes = FILES["case"](name)["shapes"]["cond_stage"]
    assert conditioning_shapes(design_of(name), 512) == {k: tuple(s) for k, s in shapes.items()}
