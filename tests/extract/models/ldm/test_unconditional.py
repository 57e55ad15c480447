"""Releases without a conditioning stage, against a transcription of CompVis' UNetModel with plain self-attention."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch.nn import functional as F

from pathseg.cli import main
from pathseg.extract.models.hooks import captured
from pathseg.extract.models.ldm.config import UNetDesign, conditioning_design, unet_design
from pathseg.extract.models.ldm.release import read_release, release_from
from pathseg.extract.models.ldm.unet import build_unet, unet_shapes
from pathseg.extract.models.ldm_features import DiffusionFeatures
from pathseg.extract.models.load import load_model
from pathseg.extract.models.mini import mini_vit
from pathseg.extract.models.noise import add_noise
from pathseg.store.features import FeatureStore

FILES = runpy.run_path(Path(__file__).parents[3] / "golden/files.py")

# Of CompVis' models/ldm/celeba256/config.yaml.
CELEBA = {
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 224,
    "attention_resolutions": [8, 4, 2],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 3, 4],
    "num_head_channels": 32,
}
SMALL = {**CELEBA, "model_channels": 32}
ONE_HEAD = {**SMALL, "num_head_channels": -1, "num_heads": 1}
ATTENTION = {
    "one head": ONE_HEAD,
    "four heads": {**ONE_HEAD, "num_heads": 4},
    "heads of 16 channels": {**SMALL, "num_head_channels": 16},
    "heads of 16 channels in the new order": {**SMALL, "num_head_channels": 16, "use_new_attention_order": True},
    "four heads in the new order": {**ONE_HEAD, "num_heads": 4, "use_new_attention_order": True},
    "attention at every level": {**SMALL, "attention_resolutions": [1, 2, 4, 8]},
    "attention in the middle alone": {**SMALL, "attention_resolutions": []},
}


def config_of(options):
    """The config of a golden case with an unconditional denoiser in the place of its own."""
    config = yaml.safe_load(FILES["case"]("vq_f4_ssl")["config_yaml"])
    params = config["model"]["params"]
    params["unet_config"]["params"] = dict(options)
    params["cond_stage_config"], params["conditioning_key"] = "__is_unconditional__", None
    return config


def params_of(options):
    return config_of(options)["model"]["params"]


def state_of(options):
    rng, first_stage = np.random.default_rng(5), FILES["weights"]("vq_f4_ssl")["first_stage"]
    shapes = unet_shapes(unet_design(params_of(options)))
    state = {f"model.diffusion_model.{name}": FILES["drawn"](name, shape, rng) for name, shape in shapes.items()}
    return state | {f"first_stage_model.{name}": tensor for name, tensor in first_stage.items()}


def release_of(options, **more):
    return release_from(params_of(options), state_of(options) | more, name="plain", source="last.ckpt")


def write(folder, options):
    return FILES["write_release"](folder, state_of(options), yaml.safe_dump(config_of(options)))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A release to be read only."""
    return write(tmp_path_factory.mktemp("releases") / "plain", SMALL)


@pytest.fixture(scope="module")
def model(release):
    return load_model(release, condition="none")


class Reference:
    """CompVis' UNetModel without a spatial transformer, layer by layer from its weights, in float64."""

    def __init__(self, state, options):
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.options = options

    def blocks(self, zt, t):
        """Outputs of the middle and of the output blocks; a layer is known by its weights' names."""
        options, x = self.options, torch.as_tensor(zt, dtype=torch.float64)
        half = options["model_channels"] // 2
        arguments = torch.full((len(x), 1), float(t)) * torch.exp(-math.log(10000) * torch.arange(half) / half)
        embedding = torch.cat([torch.cos(arguments), torch.sin(arguments)], dim=-1).double()
        embedding = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", embedding)))
        x = self.conv("input_blocks.0.0", x)
        skips, outputs = [x], []
        for number in range(1, self.count("input_blocks")):
            x = self.sequence(f"input_blocks.{number}", x, embedding)
            skips.append(x)
        outputs.append(x := self.sequence("middle_block", x, embedding))
        for number in range(self.count("output_blocks")):
            x = self.sequence(f"output_blocks.{number}", torch.cat([x, skips.pop()], dim=1), embedding)
            outputs.append(x)
        assert not skips
        return outputs

    def count(self, part):
        return len({name.split(".")[1] for name in self.state if name.startswith(part)})

    def sequence(self, part, x, embedding):
        for layer in (f"{part}.{i}" for i in range(3)):
            if f"{layer}.in_layers.0.weight" in self.state:
                x = self.res_block(layer, x, embedding)
            elif f"{layer}.qkv.weight" in self.state:
                x = self.attention_block(layer, x)
            elif f"{layer}.op.weight" in self.state:
                x = self.conv(f"{layer}.op", x, stride=2)
            elif f"{layer}.conv.weight" in self.state:
                x = self.conv(f"{layer}.conv", F.interpolate(x, scale_factor=2, mode="nearest"))
        return x

    def res_block(self, layer, x, embedding):
        h = self.conv(f"{layer}.in_layers.2", F.silu(self.norm(f"{layer}.in_layers.0", x)))
        h = h + self.linear(f"{layer}.emb_layers.1", F.silu(embedding))[:, :, None, None]
        h = self.conv(f"{layer}.out_layers.3", F.silu(self.norm(f"{layer}.out_layers.0", h)))
        if f"{layer}.skip_connection.weight" in self.state:
            x = F.conv2d(x, *self.both(f"{layer}.skip_connection"))
        return x + h

    def attention_block(self, layer, x):
        cells = x.flatten(2)
        qkv = F.conv1d(self.norm(f"{layer}.norm", cells), *self.both(f"{layer}.qkv"))
        width = self.options["num_head_channels"]
        heads = self.options["num_heads"] if width == -1 else x.shape[1] // width
        attend = self.new_order if self.options.get("use_new_attention_order") else self.legacy_order
        return (cells + F.conv1d(attend(qkv, heads), *self.both(f"{layer}.proj_out"))).reshape(x.shape)

    @staticmethod
    def legacy_order(qkv, heads):
        """QKVAttentionLegacy: split heads, then q, k, v."""
        n, width, length = qkv.shape
        ch = width // (3 * heads)
        q, k, v = qkv.reshape(n * heads, ch * 3, length).split(ch, dim=1)
        scale = 1 / math.sqrt(math.sqrt(ch))
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale), dim=-1)
        return torch.einsum("bts,bcs->bct", weight, v).reshape(n, -1, length)

    @staticmethod
    def new_order(qkv, heads):
        """QKVAttention: split q, k, v, then heads."""
        n, width, length = qkv.shape
        ch = width // (3 * heads)
        q, k, v = (part.reshape(n * heads, ch, length) for part in qkv.chunk(3, dim=1))
        scale = 1 / math.sqrt(math.sqrt(ch))
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale), dim=-1)
        return torch.einsum("bts,bcs->bct", weight, v).reshape(n, -1, length)

    def both(self, name):
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def conv(self, name, x, stride=1):
        return F.conv2d(x, *self.both(name), stride=stride, padding=1)

    def linear(self, name, x):
        return F.linear(x, *self.both(name))

    def norm(self, name, x):
        return F.group_norm(x, 32, *self.both(name), eps=1e-5)


def test_the_published_number_of_parameters_is_that_of_the_design():
    # 274 million: Rombach et al., 2022, table of hyperparameters of the unconditional models, CelebA-HQ.
    shapes = unet_shapes(unet_design(params_of(CELEBA)))
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e6) == 274


@pytest.mark.parametrize("name", ATTENTION)
def test_every_block_agrees_with_compvis_definition(name):
    read = release_of(ATTENTION[name])
    zt = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    unet = build_unet(read.unet_design, read.unet)
    with torch.inference_mode(), captured(unet, range(13)) as features:
        unet(zt, 50)
    expected = Reference(read.unet, ATTENTION[name]).blocks(zt, 50)
    errors = {block: FILES["relative_error"](maps, expected[block]) for block, maps in features.items()}
    assert len(errors) == len(expected) == 13
    assert max(errors.values()) < 1e-5, errors


def test_the_order_of_q_k_and_v_matters_to_several_heads(release):
    read = read_release(release)
    zt = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    legacy, new = (
        Reference(read.unet, {**SMALL, "num_head_channels": 16, "use_new_attention_order": order}).blocks(zt, 50)
        for order in (False, True)
    )
    assert FILES["relative_error"](new[0], legacy[0]) > 1e-2


def test_features_of_a_folder_agree_with_compvis_definition(model, release):
    patch, eps = FILES["patch"]("vq_f4_ssl"), np.random.default_rng(2).standard_normal((1, 3, 64, 64))
    alpha_bar = (1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2).cumprod()[50]
    zt = add_noise(model.encode(patch), torch.from_numpy(eps).float(), alpha_bar)
    expected = Reference(read_release(release).unet, SMALL).blocks(zt, 50)
    features = model.features(patch, 50, range(13), eps)
    assert {block: (maps.shape[1], maps.shape[2]) for block, maps in features.items()} == model.blocks
    assert max(FILES["relative_error"](maps, expected[block]) for block, maps in features.items()) < 1e-5


def test_there_are_no_context_tokens(model):
    assert model.condition == "none"
    assert model.prepare(FILES["patch"]("vq_f4_ssl"))[1].shape == (1, 0, 0)


def test_the_order_of_q_k_and_v_is_part_of_the_digest(model):
    other = DiffusionFeatures(release_of({**SMALL, "use_new_attention_order": True}), None, name="new", trained=True)
    assert other.digest != model.digest


@pytest.mark.parametrize("stage", [{}, {"cond_stage_config": None}, {"cond_stage_config": "__is_unconditional__"}])
def test_a_config_may_leave_the_conditioning_stage_out_or_say_that_there_is_none(stage):
    params = params_of(SMALL)
    del params["cond_stage_config"], params["conditioning_key"]
    assert conditioning_design(params | stage) is None
    assert unet_design(params | stage).context_dim is None


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("use_spatial_transformer", True, "True, but only use_spatial_transformer: False is supported without a cond_"),
        ("context_dim", 512, "512, but only context_dim: None is supported without a cond_stage_config"),
        ("num_heads_upsample", 2, "2, but only num_heads_upsample: -1 is supported without a cond_stage_config"),
        ("use_new_attention_order", "no", "use_new_attention_order must be true or false, got 'no'"),
        ("num_head_channels", 48, "num_head_channels of the unet must divide the channels"),
    ],
)
def test_another_network_is_refused_by_name(option, value, message):
    with pytest.raises(ValueError, match=message):
        unet_design(params_of({**SMALL, option: value}))


def test_tensors_of_a_conditioning_stage_are_refused():
    with pytest.raises(ValueError, match=r"\(conditioning\) has the unexpected tensor patch_fc\.bias"):
        release_of(SMALL, **{"cond_stage_model.patch_fc.bias": torch.zeros(4)})


def test_a_vit_is_refused(release):
    with pytest.raises(ValueError, match="has no conditioning stage, so it takes no ViT; use condition 'none'"):
        DiffusionFeatures(read_release(release), mini_vit(), name="plain", trained=True)


def test_a_design_without_context_attends_with_one_head_of_each_width():
    assert UNetDesign(3, 3, 32, (1, 2, 3, 4), 2, (8, 4, 2), None, 1, None, 32).heads == (1, 2, 3, 4)


def extract(release, workspace, *more):
    command = ("extract", "--dataset", "synthetic", "--resize", 256, "--limit", 2, "--blocks", "4-6",
               "--model", release, "--workspace", workspace, *more)  # fmt: skip
    return CliRunner().invoke(main, [str(argument) for argument in command])


def test_extract_takes_it_without_a_vit(release, tmp_path):
    result = extract(release, tmp_path / "work", "--condition", "none", "--layout", "native")
    assert result.exit_code == 0, result.output
    store = FeatureStore.open(tmp_path / "work/synthetic-plain.zarr")
    assert store.contents.key.condition == "none"
    assert {block: maps.shape for block, maps in store.read(0, t=50, blocks=(4, 5, 6)).items()} == {
        4: (1, 96, 16, 16),
        5: (1, 96, 16, 16),
        6: (1, 96, 32, 32),
    }


def test_extract_with_the_default_condition_says_what_to_pass(release, tmp_path):
    result = extract(release, tmp_path / "work")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == (
        "Error: model plain has no conditioning stage and cannot take condition ssl; use --condition none"
    )
