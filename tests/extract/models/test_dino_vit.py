import runpy
from pathlib import Path

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from pathseg.extract.models.dino_vit import build_vit, load_vit, read_vit, resize_positions, vit_shapes, vit_tokens
from pathseg.extract.models.patches import network_input

FILES = runpy.run_path(Path(__file__).parents[2] / "golden/files.py")


@pytest.fixture
def tensors():
    return FILES["weights"]("vq_f4_ssl")["vit"]


@pytest.mark.parametrize("name", FILES["CASES"])
def test_embeddings_agree_with_the_reference(tmp_path, name):
    vit = load_vit(FILES["write_vit"](tmp_path / "vit256.pth", FILES["weights"](name)["vit"]))
    embedding = vit_tokens(vit, network_input(FILES["patch"](name), torch.device("cpu")))[1]
    assert FILES["relative_error"](embedding, FILES["expected"](name)["hipt"]) < 1e-5


def test_positions_are_not_resized_by_timms_rule(tensors):
    ours = resize_positions(tensors["pos_embed"], 16)
    timms = resample_abs_pos_embed(tensors["pos_embed"], new_size=[16, 16])
    assert FILES["relative_error"](ours, timms) > 0.01


def test_positions_of_the_same_grid_are_kept():
    positions = torch.randn(1, 1 + 16 * 16, 8)
    assert torch.equal(resize_positions(positions, 16), positions)


def test_patch_tokens_lie_row_by_row(tensors):
    vit = build_vit(tensors)
    pixels = network_input(FILES["patch"]("vq_f4_ssl"), torch.device("cpu"))
    tokens, embedding = vit_tokens(vit, pixels)
    sequence = vit.forward_features(pixels)
    assert tokens.shape == (1, 128, 16, 16)
    assert torch.equal(tokens[0, :, 2, 5], sequence[0, 1 + 2 * 16 + 5])
    assert torch.equal(embedding[0], sequence[0, 0])


def test_the_teacher_is_read_and_not_the_student(tmp_path, tensors):
    read = read_vit(FILES["write_vit"](tmp_path / "vit.pth", tensors))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_plain_state_dict_is_read(tmp_path, tensors):
    torch.save(tensors, tmp_path / "vit.pth")
    assert read_vit(tmp_path / "vit.pth").keys() == tensors.keys()


@pytest.mark.parametrize("wrapper", ["teacher", "student", "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.backbone."])
def test_wrappers_and_prefixes_of_training_scripts_are_taken_off(tmp_path, tensors, wrapper, prefix):
    torch.save({wrapper: {prefix + name: t for name, t in tensors.items()}, "epoch": 3}, tmp_path / "vit.pth")
    read = read_vit(tmp_path / "vit.pth")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_an_unknown_prefix_and_several_state_dicts_are_named(tmp_path, tensors):
    torch.save({f"image_encoder.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"vit\.pth.*pos_embed.*remove 'image_encoder\.'"):
        read_vit(tmp_path / "vit.pth")
    torch.save({"model": tensors, "student": tensors}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"vit\.pth.*several.*model, student.*alone"):
        read_vit(tmp_path / "vit.pth")


@pytest.mark.parametrize("name", FILES["CASES"])
def test_names_and_shapes_are_those_of_the_reference(name):
    assert vit_shapes(128, 2) == {k: tuple(s) for k, s in FILES["case"](name)["shapes"]["vit"].items()}


def test_the_papers_vit_is_built_to_its_published_size():
    vit = build_vit({name: torch.zeros(shape) for name, shape in vit_shapes(384, 12).items()})
    resized = (16 * 16 - 14 * 14) * 384  # positions that 256 px patches need more
    assert sum(parameter.numel() for parameter in vit.parameters()) - resized == 21_665_664
    assert vit.blocks[0].attn.num_heads == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "lacks tensor norm.weight"),
        ({"pos_embed": None}, r"no tensor pos_embed, its tensors are .* more; a DINO checkpoint of a ViT is needed"),
        ({"blocks.1.ls1.gamma": torch.zeros(128)}, "has the unexpected tensor blocks.1.ls1.gamma"),
        ({"blocks.0.norm1.weight": torch.zeros(64)}, r"tensor blocks.0.norm1.weight: \(64,\), not \(128,\)"),
    ],
)
def test_a_checkpoint_that_is_no_such_vit_is_refused(tmp_path, tensors, change, message):
    torch.save({k: v for k, v in (tensors | change).items() if v is not None}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=rf"vit\.pth.*{message}"):
        read_vit(tmp_path / "vit.pth")


def test_a_width_that_heads_do_not_divide_is_refused(tmp_path):
    torch.save({name: torch.zeros(shape) for name, shape in vit_shapes(96, 1).items()}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match="width 96, but it must be a multiple of its heads' width 64"):
        read_vit(tmp_path / "vit.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"teacher": None}, "must hold tensors by name, got NoneType"),
        ({"teacher": [1]}, "must hold tensors by name, got list"),
        (torch.zeros(3), "must hold tensors by name, got Tensor"),
        ({0: torch.zeros(3)}, "must name its tensors by strings, got the key 0"),
        ({"teacher": {1: torch.zeros(3)}}, "must name its tensors by strings, got the key 1"),
    ],
)
def test_a_file_without_named_tensors_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=rf"vit\.pth {message}; a state dict is needed$"):
        read_vit(tmp_path / "vit.pth")


@pytest.mark.parametrize("name", ["pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"])
@pytest.mark.parametrize("shape", [(), (5,), (1, 0, 128, 1), (1, 0), (0, 0, 0)])
def test_a_tensor_that_gives_no_size_is_refused(tmp_path, tensors, name, shape):
    torch.save(tensors | {name: torch.zeros(shape)}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=rf"vit\.pth: tensor {name} must have the axes .*got the shape \(") as error:
        read_vit(tmp_path / "vit.pth")
    assert str(shape) in str(error.value)


def test_tokens_that_do_not_divide_the_patch_are_refused(tmp_path):
    torch.save({name: torch.zeros(shape) for name, shape in vit_shapes(64, 1, patch=14).items()}, tmp_path / "vit.pth")
    with pytest.raises(
        ValueError, match=r"vit\.pth has a ViT with tokens of 14 px, but they must divide patches of 256"
    ):
        read_vit(tmp_path / "vit.pth")
