import json
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.layers
import torch
import torchvision.transforms.functional as TF
from safetensors.torch import save_file

from pathseg.extract.config import ViTConfig
from pathseg.extract.models import load_model
from pathseg.extract.models.registry import MODELS

MEAN, STD = (0.7, 0.58, 0.7), (0.21, 0.23, 0.18)
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 2}
PATCHES = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)

# architecture, arguments as in a config.json, input px
VIT = ("vit_small_patch16_224", {"depth": 5}, 256)
REGISTERS = (
    "vit_giant_patch14_224",  # built as UNI2-h, in small
    {
        **{"img_size": 224, "patch_size": 14, "embed_dim": 96, "depth": 3, "num_heads": 4, "mlp_ratio": 5.33334},
        **{"init_values": 1e-5, "no_embed_class": True, "reg_tokens": 8, "mlp_layer": "SwiGLUPacked"},
        **{"act_layer": "silu", "dynamic_img_size": True},
    },
    252,
)
ROTARY = ("vit_small_patch16_dinov3", {"depth": 3}, 256)


def built(architecture, arguments, **more):
    """A model of timm with random weights, whose norms and scales are not the constants that they start as."""
    named = {**arguments, **more}
    if "mlp_layer" in named:
        named["mlp_layer"] = getattr(timm.layers, named["mlp_layer"])
    torch.manual_seed(0)
    network = timm.create_model(architecture, **{"num_classes": 0, **named}).eval().requires_grad_(False)
    for tensor in network.parameters():
        tensor += 0.02 * torch.randn(tensor.shape)
    return network


def saved(folder, network, architecture, arguments, *, weights="model.safetensors", **config):
    """Save a network as a folder of the Hugging Face hub."""
    folder.mkdir(parents=True)
    values = {
        **{"architecture": architecture, "num_classes": 0, "num_features": network.num_features},
        **{"model_args": arguments, "pretrained_cfg": {"mean": MEAN, "std": STD, "license": "mit"}},
    }
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if weights == "model.safetensors":
        save_file(tensors, folder / weights)
    elif weights:
        torch.save(tensors, folder / weights)
    return folder


@pytest.fixture
def small(tmp_path):
    """The folder of a ViT with two layers of width 64."""
    return saved(tmp_path / "small", built("vit_small_patch16_224", SMALL), "vit_small_patch16_224", SMALL)


def normalised(px, mean=MEAN, std=STD):
    rgb = torch.from_numpy(PATCHES).permute(0, 3, 1, 2) / 255
    if px != 256:
        rgb = TF.resize(rgb, [px, px], TF.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    return TF.normalize(rgb, mean, std)


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("architecture", "arguments", "px"), [VIT, REGISTERS, ROTARY], ids=["vit", "swiglu", "rotary"])
def test_features_are_those_of_timm_itself(tmp_path, architecture, arguments, px):
    network = built(architecture, arguments, dynamic_img_size=True)  # timm resizes positions as it runs
    model = load_model(saved(tmp_path / "model", network, architecture, arguments))
    wanted = list(range(arguments["depth"]))
    for norm in ("final", "none"):
        model = load_model(tmp_path / "model", vit=ViTConfig(norm=norm))
        expected = network.forward_intermediates(
            normalised(px), indices=wanted, norm=norm == "final", output_fmt="NCHW", intermediates_only=True
        )
        found = model.features(PATCHES)
        assert list(found) == list(model.blocks) == wanted
        for block, maps in enumerate(expected):
            assert found[block].shape[1:] == maps.shape[1:] == (*model.blocks[block], model.blocks[block][1])
            assert relative(found[block], maps) < 1e-6
    assert relative(model.embed(PATCHES), network(normalised(px))) < 1e-6


def test_some_blocks_are_the_same_as_all(small):
    model = load_model(small)
    assert torch.equal(model.features(PATCHES, blocks=[0])[0], model.features(PATCHES)[0])


@pytest.mark.parametrize(("depth", "blocks"), [(1, (0,)), (2, (0, 1)), (6, (1, 2, 4, 5)), (12, (2, 5, 8, 11))])
def test_four_evenly_spaced_blocks_with_the_last_are_the_default(tmp_path, depth, blocks):
    arguments = {**SMALL, "depth": depth}
    folder = saved(tmp_path / "model", built("vit_small_patch16_224", arguments), "vit_small_patch16_224", arguments)
    assert load_model(folder).default_blocks == blocks


def test_both_kinds_of_weights_and_a_file_for_an_architecture_give_the_same(tmp_path):
    network = built("vit_tiny_patch16_224", {})
    safe = load_model(saved(tmp_path / "a", network, "vit_tiny_patch16_224", {}))
    pickled = load_model(saved(tmp_path / "b", network, "vit_tiny_patch16_224", {}, weights="pytorch_model.bin"))
    named = load_model(
        "timm:vit_tiny_patch16_224", weights=tmp_path / "a/model.safetensors", vit=ViTConfig(mean=MEAN, std=STD)
    )
    assert safe.digest == pickled.digest == named.digest
    assert named.name == "vit_tiny_patch16_224"


def test_mean_and_std_of_an_architecture_are_those_that_timm_has_for_its_name(tmp_path):
    weights = saved(tmp_path / "a", built("vit_tiny_patch16_224", {}), "vit_tiny_patch16_224", {}) / "model.safetensors"
    named = load_model("timm:vit_tiny_patch16_224.augreg_in21k", weights=weights)
    assert (named.vit.mean, named.vit.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_old_files_have_their_arguments_beside_the_architecture(tmp_path):
    network = built("vit_small_patch16_224", {**SMALL, "init_values": 1e-5})
    beside = {**SMALL, "img_size": 224, "init_values": 1.0, "dynamic_img_size": True, "global_pool": "token"}
    folder = saved(tmp_path / "old", network, "vit_small_patch16_224", {}, **beside)
    expected = network.forward_intermediates(  # positions of 14 x 14 tokens do not need to be resized
        TF.resize(normalised(256), [224, 224], TF.InterpolationMode.BICUBIC, antialias=True),
        norm=True,
        intermediates_only=True,
    )
    found = load_model(folder, vit=ViTConfig(input_px=224)).features(PATCHES)
    assert relative(found[1], expected[1]) < 1e-2  # values beyond 0..1 are clipped before they are normalised


def test_a_classifier_in_the_file_is_left_out(tmp_path, small):
    network = built("vit_small_patch16_224", {**SMALL, "num_classes": 7})
    folder = saved(tmp_path / "classifier", network, "vit_small_patch16_224", SMALL, num_classes=7)
    assert set(network.state_dict()) > {"head.weight"}
    assert load_model(folder).features(PATCHES)[1].shape == (2, 64, 16, 16)


CHANGES = [
    ViTConfig(mean=(0.5, 0.5, 0.5)),
    ViTConfig(std=(0.5, 0.5, 0.5)),
    ViTConfig(norm="none"),
    ViTConfig(input_px=224),
    ViTConfig(model_args=("pre_norm=false",)),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_setting_is_in_the_digest_and_can_be_repeated_from_the_settings(small, change):
    model = load_model(small, vit=change)
    assert model.digest != load_model(small).digest
    assert load_model(small, vit=ViTConfig.from_settings(model.vit)).digest == model.digest


def test_a_named_model_that_is_missing_says_where_it_goes(monkeypatch, tmp_path):
    monkeypatch.setattr("platformdirs.user_data_path", lambda *args, **options: tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        load_model("uni")
    for part in (str(tmp_path / "models/uni"), "config.json", "MahmoodLab/UNI", "gated", "CC-BY-NC-ND"):
        assert part in str(error.value)


def test_a_named_model_is_built_with_what_its_config_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr("platformdirs.user_data_path", lambda *args, **options: tmp_path)
    arguments = {**SMALL, "img_size": 224, "patch_size": 14, "reg_tokens": 4, "mlp_ratio": 5.5}
    network = built("vit_huge_patch14_224", {**arguments, "mlp_layer": "SwiGLUPacked", "act_layer": torch.nn.SiLU})
    saved(tmp_path / "models/virchow2", network, "vit_huge_patch14_224", arguments)
    model = load_model("virchow2")
    assert (model.name, model.blocks[1]) == ("virchow2", (64, 18))
    assert (
        relative(
            load_model("virchow2", vit=ViTConfig(input_px=224)).embed(np.zeros_like(PATCHES)),
            network(TF.normalize(torch.zeros(2, 3, 224, 224), MEAN, STD)),
        )
        < 1e-6
    )


def test_only_models_that_are_not_bundled_name_a_licence_of_their_own():
    timm_models = [record for record in MODELS.values() if record.kind == "timm"]
    assert {record.name for record in timm_models} >= {"uni", "uni2-h", "virchow", "virchow2", "h-optimus-0"}
    assert not any(record.files for record in timm_models)


def other_weights(folder):
    save_file(built("vit_small_patch32_224", SMALL).state_dict(), folder / "model.safetensors")


def without(name):
    def change(folder):
        tensors = built("vit_small_patch16_224", SMALL).state_dict()
        del tensors[name]
        save_file(tensors, folder / "model.safetensors")

    return change


def config(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def nothing(folder: Path):
    pass


WRONG = {
    "weights of another architecture": (other_weights, {}, "patch_embed.proj.weight"),
    "a missing tensor": (without("blocks.1.attn.qkv.weight"), {}, "lacks tensor blocks.1.attn.qkv.weight"),
    "too few layers": (config(model_args={**SMALL, "depth": 1}), {}, "blocks.1"),
    "two numbers for the mean": (config(pretrained_cfg={"mean": [0.5, 0.5], "std": STD}), {}, "mean must be three"),
    "a std of 0": (config(pretrained_cfg={"mean": MEAN, "std": [1, 0, 1]}), {}, "std must be three numbers above 0"),
    "no mean": (config(pretrained_cfg={}), {}, "--mean"),
    "a convolutional network": (config(architecture="resnet18", model_args={}), {}, "resnet18 is no ViT"),
    "an unknown architecture": (config(architecture="vit_colossal"), {}, "'vit_colossal'"),
    "an unknown argument": (config(model_args={"colour": 1}), {}, "colour"),
    "an argument that loads a file": (config(model_args={"checkpoint_path": "x.pth"}), {}, "checkpoint_path"),
    "endless width": (config(model_args={**SMALL, "embed_dim": 64000}), {}, "weights, but .*model.safetensors holds"),
    "endless layers": (config(model_args={"depth": 10**9}), {}, "depth=1000000000"),
    "an image size that no patch divides": (nothing, {"vit": ViTConfig(input_px=250)}, "multiple of .* got 250"),
    "an image size as an argument": (nothing, {"vit": ViTConfig(model_args=("img_size=224",))}, "--input-px"),
    "a config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), {}, "is no JSON"),
    "a config that is a list": (lambda folder: (folder / "config.json").write_text("[]"), {}, "must be a JSON object"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), {}, "no model.safetensors and no pytorch"),
    "no config": (lambda folder: (folder / "config.json").unlink(), {}, "has no config.json"),
    "truncated weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), {}, "truncated"),
    "weights beside a folder": (nothing, {"weights": "w.safetensors"}, "--weights FILE and --model timm:NAME"),
}


@pytest.mark.parametrize(("change", "options", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_one_line(small, change, options, message):
    change(small)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_model(small, **options)
    assert "\n" not in str(error.value)


def test_a_folder_of_transformers_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "architectures": ["Dinov2Model"]}))
    with pytest.raises(ValueError, match=r"is a model of transformers \(config.json has model_type dinov2\)"):
        load_model(tmp_path)


def test_an_architecture_without_weights_is_refused():
    with pytest.raises(ValueError, match="--weights FILE and --model timm:NAME belong together"):
        load_model("timm:vit_tiny_patch16_224")


def test_a_name_that_timm_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'vit_colossal'"):
        load_model("timm:vit_colossal", weights=tmp_path / "model.safetensors")


def test_an_unknown_block_is_refused(small):
    with pytest.raises(ValueError, match="no block 2; its layers are blocks 0-1"):
        load_model(small).features(PATCHES, blocks=[1, 2])


@pytest.mark.parametrize(
    "values",
    [{"mean": (0.5, 0.5)}, {"std": (0.5, 0.0, 0.5)}, {"input_px": 0}, {"model_args": ("depth",)}],
    ids=str,
)
def test_a_wrong_setting_is_refused(values):
    with pytest.raises(ValueError, match=r"must be|no argument"):
        ViTConfig(**values)
