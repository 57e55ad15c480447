import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import load_file, save_file

from pathseg.extract.config import ViTConfig
from pathseg.extract.models import load_model
from pathseg.store.key import DiffusersSettings

PATCHES = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
T = 300
GROUPS = {"norm_num_groups": 4}
WEIGHTS = "diffusion_pytorch_model.safetensors"

# The layers whose outputs are the blocks, read off the networks below: the middle, then of each up block each residual
# layer or, where it has one, its attention; the last one of an up block ends with the upsampling.
THREE_LEVELS = [
    *("mid_block", "up_blocks.0.resnets.0", "up_blocks.0.upsamplers.0"),
    *("up_blocks.1.attentions.0", "up_blocks.1.upsamplers.0", "up_blocks.2.resnets.0", "up_blocks.2.resnets.1"),
]
FOUR_LEVELS = [
    *("mid_block", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1", "up_blocks.0.upsamplers.0"),
    *("up_blocks.1.attentions.0", "up_blocks.1.attentions.1", "up_blocks.1.upsamplers.0"),
    *("up_blocks.2.attentions.0", "up_blocks.2.attentions.1", "up_blocks.2.upsamplers.0"),
    *("up_blocks.3.attentions.0", "up_blocks.3.attentions.1", "up_blocks.3.attentions.2"),
]


def vq():
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        num_vq_embeddings=16,
        scaling_factor=0.7,
        **GROUPS,
    )


def kl(**options):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 16),
        **{"latent_channels": 4, **GROUPS, **options},
    )


def unconditional(**options):
    values = {
        **{"block_out_channels": (8, 16, 16), "layers_per_block": 1, "attention_head_dim": 4},
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**{**values, **GROUPS, **options})


def text_conditioned(**options):
    values = {
        **{"block_out_channels": (8, 8, 16, 16), "cross_attention_dim": 6, "attention_head_dim": 2},
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    }
    return UNet2DConditionModel(**{**values, **GROUPS, **options})


def ddpm(**options):
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", **options)


def stable():
    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )


def randomised(network, seed=0):
    """A network whose norms and biases are not the constants that they start as."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        tensor.copy_(tensor.new_empty(tensor.shape).normal_(0, 0.1, generator=generator) + (tensor.ndim == 1) * 0.5)
    return network.eval().requires_grad_(False)


def saved(folder, unet, scheduler, *, text=False, **encoder):
    """Save a pipeline as its own save_pretrained does. encoder: vae or vqvae."""
    parts = {"unet": unet, "scheduler": scheduler, **encoder}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    named = {"text_encoder": ["transformers", "CLIPTextModel"], "safety_checker": [None, None]} if text else {}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "SomePipeline", **index, **named}))
    return folder


@pytest.fixture(scope="module")
def latent_template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "tissue-ldm"
    return saved(folder, randomised(unconditional()), ddpm(), vqvae=randomised(vq(), 1))


@pytest.fixture
def latent(latent_template, tmp_path):
    """A folder of an unconditional latent diffusion model with three up blocks."""
    return shutil.copytree(latent_template, tmp_path / "tissue-ldm")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "tissue-sd"
    return saved(folder, randomised(text_conditioned()), stable(), vae=randomised(kl(), 1), text=True)


@pytest.fixture
def stable_folder(template, tmp_path):
    """A folder in the layout of Stable Diffusion, with four up blocks."""
    return shutil.copytree(template, tmp_path / "tissue-sd")


@pytest.fixture(scope="module")
def small_template(tmp_path_factory):
    types = {"down_block_types": ("CrossAttnDownBlock2D", *("DownBlock2D",) * 3)}
    types |= {"up_block_types": (*("UpBlock2D",) * 3, "CrossAttnUpBlock2D")}
    folder = tmp_path_factory.mktemp("pipelines") / "small-sd"
    unet = randomised(text_conditioned(layers_per_block=1, **types))
    return saved(folder, unet, stable(), vae=randomised(kl(), 1), text=True)


@pytest.fixture
def small_folder(small_template, tmp_path):
    """As `stable_folder`, with few layers, which are built and run on the meta device faster."""
    return shutil.copytree(small_template, tmp_path / "small-sd")


def noise(shape):
    return torch.randn((len(PATCHES), *shape), generator=torch.Generator().manual_seed(7))


def hooked(unet, names, scheduler, z0, eps, **inputs):
    """The outputs of modules of a plain UNet that gets z0 with a scheduler's own noise."""
    outputs = {}

    def keep(name):
        def hook(_module, _inputs, output):
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    modules = dict(unet.named_modules())
    for name in names:
        modules[name].register_forward_hook(keep(name))
    unet(scheduler.add_noise(z0, eps, torch.full((len(z0),), T)), torch.tensor(T), **inputs)
    return [outputs[name] for name in names]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pixels():
    return torch.from_numpy(PATCHES).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def relative(a, b):
    return float((a - b).norm() / b.norm())


def assert_equal_features(model, expected, eps):
    found = model.features(PATCHES, T, noise=eps)
    assert list(found) == list(model.blocks) == list(range(len(expected)))
    for block, maps in enumerate(expected):
        assert found[block].shape[1:] == maps.shape[1:] == (*model.blocks[block], model.blocks[block][1])
        assert relative(found[block], maps) < 1e-6, block


def test_unconditional_features_of_a_vq_encoder_and_three_up_blocks_are_those_of_the_pipeline(latent, two_threads):
    model, unet, encoder = load_model(latent), randomised(unconditional()), randomised(vq(), 1)
    assert (model.first_stage, model.latent_shape, model.timesteps) == ("vq-f4", (3, 64, 64), 1000)
    assert model.diffusers == DiffusersSettings("none")
    z0, eps = encoder.encode(pixels()).latents * 0.7, noise(model.latent_shape)
    assert relative(model.encode(PATCHES), z0) < 1e-6
    assert_equal_features(model, hooked(unet, THREE_LEVELS, ddpm(), z0, eps), eps)


def test_features_with_a_zero_context_of_a_kl_encoder_and_four_up_blocks_are_those_of_the_pipeline(
    stable_folder, two_threads
):
    model, unet, encoder = load_model(stable_folder), randomised(text_conditioned()), randomised(kl(), 1)
    assert (model.first_stage, model.latent_shape) == ("kl-f8", (4, 32, 32))
    assert (model.diffusers, str(model.diffusers)) == (DiffusersSettings("zero"), "zero context")
    z0, eps = encoder.encode(pixels()).latent_dist.mode() * 0.18215, noise(model.latent_shape)
    zeros = torch.zeros(2, 77, 6)  # as many tokens as a text has
    assert_equal_features(model, hooked(unet, FOUR_LEVELS, stable(), z0, eps, encoder_hidden_states=zeros), eps)


def test_a_stored_context_is_given_to_every_image(stable_folder, tmp_path, two_threads):
    tokens = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    model = load_model(stable_folder, **context_file(tmp_path, anything=tokens))
    assert (model.diffusers, model.condition) == (DiffusersSettings("file"), "none")
    eps = noise(model.latent_shape)
    expected = hooked(
        randomised(text_conditioned()),
        FOUR_LEVELS,
        stable(),
        model.encode(PATCHES),
        eps,
        encoder_hidden_states=tokens.expand(2, -1, -1),
    )
    assert_equal_features(model, expected, eps)
    digest = model.digest
    assert digest == load_model(stable_folder, **context_file(tmp_path, as_an_encoder_gives_it=tokens[None])).digest
    assert digest != load_model(stable_folder).digest


@pytest.mark.parametrize("label", [None, 2])
@pytest.mark.parametrize("make", [unconditional, pytest.param(text_conditioned, marks=pytest.mark.soak)])
def test_a_class_is_zero_or_one_of_the_models(tmp_path, two_threads, make, label):
    conditional = make is text_conditioned
    unet = randomised(make(num_class_embeds=4))
    folder = saved(tmp_path / "classes", unet, ddpm(), vae=randomised(kl() if conditional else vq(), 1))
    model = load_model(folder, class_label=label)
    assert model.diffusers == DiffusersSettings("zero" if conditional else "none", label)
    if label is None:
        assert "class embedding is zero" in " ".join(model.notes)
        unet.class_embedding.weight.zero_()
    eps, inputs = noise(model.latent_shape), {"class_labels": torch.full((2,), label or 0)}
    if conditional:
        inputs["encoder_hidden_states"] = torch.zeros(2, 3, 6)
    names = FOUR_LEVELS if conditional else THREE_LEVELS
    assert_equal_features(model, hooked(unet, names, ddpm(), model.encode(PATCHES), eps, **inputs), eps)


def test_a_model_of_pixels_has_the_blocks_up_to_the_grid_of_the_heads(tmp_path, two_threads):
    types = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    unet = randomised(unconditional(sample_size=256, block_out_channels=(4, 8, 8), attention_head_dim=2, **types))
    DDPMPipeline(unet, ddpm()).save_pretrained(tmp_path / "pixels")
    model = load_model(tmp_path / "pixels")
    assert (model.first_stage, model.latent_shape) == ("none", (3, 256, 256))
    assert model.blocks == {0: (8, 64), 1: (8, 64)}  # the blocks after them have 128 and 256 cells a side
    eps = noise(model.latent_shape)
    assert_equal_features(model, hooked(unet, THREE_LEVELS[:2], ddpm(), pixels(), eps), eps)


def test_a_unet_beside_the_index_is_read_as_in_the_first_releases_of_ddpm(tmp_path):
    DDPMPipeline(randomised(unconditional(block_out_channels=(4, 8, 8))), ddpm()).save_pretrained(tmp_path / "pixels")
    digest = load_model(tmp_path / "pixels").digest
    for part in ("unet", "scheduler"):
        for path in (tmp_path / "pixels" / part).iterdir():
            path.rename(tmp_path / "pixels" / path.name)
        (tmp_path / "pixels" / part).rmdir()
    model = load_model(tmp_path / "pixels")
    assert model.digest == digest and "no image encoder: a model of pixels" in model.notes


def test_layers_that_resample_by_residual_layers_are_numbered_alike(tmp_path, two_threads):
    options = {
        "down_block_types": ("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        **{"block_out_channels": (8, 16, 16), "layers_per_block": 1, "attention_head_dim": 4},
    }
    unet = randomised(text_conditioned(**options))
    model = load_model(saved(tmp_path / "resnets", unet, stable(), vae=randomised(kl(), 1)))
    eps, zeros = noise(model.latent_shape), torch.zeros(2, 3, 6)
    expected = hooked(unet, THREE_LEVELS, stable(), model.encode(PATCHES), eps, encoder_hidden_states=zeros)
    assert_equal_features(model, expected, eps)


SCHEDULERS = {
    "linear": DDPMScheduler(beta_start=1e-3, beta_end=0.03),
    "scaled linear": DDIMScheduler(beta_schedule="scaled_linear", num_train_timesteps=500),
    "zero signal at the end": DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True),
    "given betas": DDPMScheduler(trained_betas=[0.01 * (i + 1) for i in range(10)], num_train_timesteps=10),
    "of another sampler": EulerDiscreteScheduler(beta_schedule="scaled_linear"),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_the_noise_is_that_of_the_scheduler(tmp_path, scheduler):
    unet = randomised(unconditional(block_out_channels=(4, 4, 4), attention_head_dim=2))
    model = load_model(saved(tmp_path / "model", unet, scheduler, vae=randomised(vq(), 1)))
    assert model.timesteps == len(scheduler.alphas_cumprod)
    z0 = torch.ones(1, *model.latent_shape)
    context, seen = z0.new_zeros(1, 0, 0), []
    model._unet.conv_in.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    for t in (0, model.timesteps // 2, model.timesteps - 1):
        model.denoise(z0, context, t, [0], 2 * z0)
        bar = scheduler.alphas_cumprod[t]
        torch.testing.assert_close(seen[-1], bar.sqrt() * z0 + (1 - bar).sqrt() * 2 * z0)


def test_a_shift_of_the_latents_comes_before_their_scale(tmp_path):
    encoder = randomised(kl(shift_factor=0.5, scaling_factor=2.0), 1)
    folder = saved(tmp_path / "shifted", randomised(text_conditioned()), stable(), vae=encoder)
    expected = (encoder.encode(pixels()).latent_dist.mode() - 0.5) * 2
    assert relative(load_model(folder).encode(PATCHES), expected) < 1e-5


def change_weights(part, change):
    """Change the weights of a part of a pipeline by a function of tensors."""

    def changed(folder):
        path = folder / part / WEIGHTS
        tensors = load_file(path)
        save_file(change(tensors) or tensors, path)

    return changed


def change_config(file, **values):
    def changed(folder):
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return changed


def test_the_digest_follows_weights_and_settings_not_files(latent, stable_folder, tmp_path):
    digest = load_model(latent).digest
    tensors = load_file(latent / "unet" / WEIGHTS)
    torch.save(tensors, latent / "unet/diffusion_pytorch_model.bin")
    (latent / "unet" / WEIGHTS).unlink()
    change_weights("vqvae", lambda all_: {name: t + name.startswith("decoder.") for name, t in all_.items()})(latent)
    change_config("unet/config.json", sample_size=32, freq_shift=0, downsample_padding=1)(latent)
    change_config("scheduler/scheduler_config.json", clip_sample=False)(latent)
    assert load_model(latent).digest == digest
    for change in (
        change_config("unet/config.json", norm_eps=1e-4),
        change_config("vqvae/config.json", scaling_factor=1.0),
        change_config("scheduler/scheduler_config.json", beta_schedule="linear"),
    ):
        change(latent)
        digest, before = load_model(latent).digest, digest
        assert digest != before


def test_weights_in_half_precision_are_taken_where_there_are_no_others(latent):
    path = latent / "unet" / WEIGHTS
    halves = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(halves, latent / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert load_model(latent).notes == ()
    path.unlink()
    model = load_model(latent)
    assert any("half precision (diffusion_pytorch_model.fp16.safetensors)" in note for note in model.notes)
    assert torch.equal(model._unet.conv_in.weight, halves["conv_in.weight"].float())


def test_attention_under_its_old_names_is_read(small_folder):
    digest, old = load_model(small_folder).digest, {"to_q": "query", "to_k": "key", "to_v": "value"}

    def renamed(tensors):
        names = {**{name: name for name in tensors}}
        for name in tensors:
            for now, before in {**old, "to_out.0": "proj_attn"}.items():
                names[name] = names[name].replace(f".{now}.", f".{before}.")
        return {names[name]: tensor for name, tensor in tensors.items()}

    change_weights("vae", renamed)(small_folder)
    assert any(".proj_attn." in name for name in load_file(small_folder / "vae" / WEIGHTS))
    assert load_model(small_folder).digest == digest


def without(part, name):
    return change_weights(part, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})


def sharded(folder):
    (folder / "unet" / WEIGHTS).unlink()
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text("{}")


def flow(folder):
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")


def transformer(folder):
    change_config("model_index.json", unet=[None, None], transformer=["diffusers", "DiTTransformer2DModel"])(folder)


def inpainting(folder):
    randomised(text_conditioned(in_channels=9)).save_pretrained(folder / "unet")


def renamed_encoder(folder):
    (folder / "vae").rename(folder / "movq")
    change_config("model_index.json", vae=[None, None], movq=["diffusers", "VQModel"])(folder)


def encoder_beside_the_index(folder):
    for path in (folder / "vae").iterdir():
        path.rename(folder / path.name)


def gone(file):
    return lambda folder: (folder / file).unlink()


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
WRONG = {
    "a transformer": (transformer, r"without a unet, but with .*transformer \(DiTTransformer2DModel\)"),
    "added conditions": (
        change_config(UNET, addition_embed_type="text_time", addition_time_embed_dim=8),
        "addition_embed_type: 'text_time'",
    ),
    "image embeddings": (change_config(UNET, encoder_hid_dim_type="image_proj"), "encoder_hid_dim_type: 'image_proj'"),
    "classes that are vectors": (change_config(UNET, class_embed_type="projection"), "class_embed_type: 'projection'"),
    "inpainting": (inpainting, "takes 9 channels, but the image encoder gives 4; .* inpainting"),
    "another denoiser": (change_config(UNET, _class_name="UNet3DConditionModel"), "holds a UNet3DConditionModel"),
    "another encoder": (change_config("vae/config.json", _class_name="AutoencoderTiny"), "holds a AutoencoderTiny"),
    "up blocks of another kind": (
        change_config(UNET, up_block_types=["UpBlock2D", *["SimpleCrossAttnUpBlock2D"] * 3]),
        "has a SimpleCrossAttnUpBlock2D, which is not supported",
    ),
    "no middle block": (change_config(UNET, mid_block_type=None), "no middle block"),
    "a missing tensor": (without("unet", "conv_in.weight"), "lacks tensor conv_in.weight"),
    "a missing tensor of the encoder": (without("vae", "encoder.conv_in.bias"), "lacks tensor encoder.conv_in.bias"),
    "another width": (change_config(UNET, cross_attention_dim=8), "does not fit its config in tensor"),
    "widths that diffusers refuses": (change_config(UNET, block_out_channels=[8, 8, 16, 18]), "cannot build"),
    "two lists of unequal length": (
        change_config(UNET, block_out_channels=[8, 8]),
        "cannot build .*block_out_channels",
    ),
    "endless layers": (change_config(UNET, layers_per_block=10**9), "layers_per_block must be whole numbers"),
    "many layers": (change_config(UNET, transformer_layers_per_block=100), "describes 400 layers"),
    "a width as text": (change_config(UNET, cross_attention_dim="wide"), "cannot build"),
    "sharded weights": (sharded, r"in several files \(diffusion_pytorch_model.safetensors.index.json\)"),
    "no weights": (gone(f"unet/{WEIGHTS}"), f"has no {WEIGHTS} and no diffusion_pytorch_model.bin"),
    "truncated weights": (lambda folder: (folder / "vae" / WEIGHTS).write_bytes(b"abc"), "truncated"),
    "no config": (gone(UNET), "unet has no config.json"),
    "an encoder under another name": (renamed_encoder, r"the part movq \(VQModel\), which .* vae or vqvae"),
    "an encoder that is missing": (
        encoder_beside_the_index,
        "vae has no config.json of the part vae",
    ),
    "no index": (gone("model_index.json"), "has no model_index.json"),
    "no scheduler": (gone(SCHEDULER), "has no scheduler/scheduler_config.json"),
    "an index that is a list": (lambda folder: (folder / "model_index.json").write_text("[]"), "must be a JSON object"),
    "a config that is no JSON": (lambda folder: (folder / UNET).write_text("{"), "is no JSON"),
    "flow matching": (flow, "FlowMatchEulerDiscreteScheduler has no alphas_cumprod"),
    "a prediction of flow": (change_config(SCHEDULER, prediction_type="flow_prediction"), "flow_prediction"),
    "an unknown scheduler": (change_config(SCHEDULER, _class_name="NoScheduler"), "names the scheduler NoScheduler"),
    "a class that is no scheduler": (change_config(SCHEDULER, _class_name="os"), "names the scheduler os"),
    "an unknown schedule": (change_config(SCHEDULER, beta_schedule="steps"), "steps is not implemented"),
    "betas above 1": (change_config(SCHEDULER, beta_end=9.0), "numbers from 0 to 1 are needed"),
    "endless timesteps": (change_config(SCHEDULER, num_train_timesteps=10**12), "num_train_timesteps must be"),
    "a scale of 0": (change_config("vae/config.json", scaling_factor=0), "scaling_factor must be a number above 0"),
    "latents of another mean": (change_config("vae/config.json", latents_mean=[0.0] * 4), "latents_mean"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_one_line(small_folder, change, message):
    change(small_folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_model(small_folder)
    assert "\n" not in str(error.value)


def test_a_model_of_pixels_without_a_coarse_block_is_refused(tmp_path):
    unet = unconditional(
        block_out_channels=(4, 4), down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2
    )
    DDPMPipeline(randomised(unet), ddpm()).save_pretrained(tmp_path / "fine")
    with pytest.raises(ValueError, match="128 x 128 cells a patch, but the heads take at most 64 x 64"):
        load_model(tmp_path / "fine")


def context_file(folder: Path, **tensors):
    save_file(tensors, folder / "context.safetensors")
    return {"context": folder / "context.safetensors"}


OPTIONS = {
    "a context of another width": (lambda f: context_file(f, c=torch.zeros(5, 7)), r"must be \(L, 6\), got \(5, 7\)"),
    "a context for each image": (lambda f: context_file(f, c=torch.zeros(2, 5, 6)), r"got \(2, 5, 6\)"),
    "no token": (lambda f: context_file(f, c=torch.zeros(0, 6)), r"got \(0, 6\)"),
    "two tensors": (lambda f: context_file(f, a=torch.zeros(5, 6), b=torch.zeros(5, 6)), "got 2 tensors"),
    "infinite tokens": (lambda f: context_file(f, c=torch.full((5, 6), torch.inf)), "NaN or infinity"),
    "numbers of tokens": (lambda f: context_file(f, c=torch.zeros(5, 6, dtype=torch.long)), "floating-point"),
    "no file": (lambda f: {"context": f / "none.safetensors"}, "no checkpoint file"),
    "a class of a model without": (lambda f: {"class_label": 1}, "takes no class"),
    "settings of a ViT": (
        lambda f: {"vit": ViTConfig(norm="none")},
        "--norm does not apply: .* is a pipeline of diffusers",
    ),
    "weights beside it": (lambda f: {"weights": f / "w.safetensors"}, "belong together"),
}


@pytest.mark.parametrize(("make", "message"), OPTIONS.values(), ids=OPTIONS)
def test_a_wrong_option_is_said_in_one_line(small_folder, make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_model(small_folder, **make(small_folder))
    assert "\n" not in str(error.value)


def test_options_that_the_model_does_not_take_are_refused(latent, tmp_path):
    with pytest.raises(ValueError, match="takes no context"):
        load_model(latent, **context_file(tmp_path, c=torch.zeros(5, 6)))
    for options in ({"context": "c.safetensors"}, {"class_label": 0}):
        with pytest.raises(ValueError, match=r"mini is a release .*; leave it out"):
            load_model("mini", **options)


def test_a_class_beyond_the_models_is_refused(tmp_path):
    folder = saved(tmp_path / "classes", randomised(unconditional(num_class_embeds=4)), ddpm(), vae=randomised(vq()))
    with pytest.raises(ValueError, match="has classes 0-3, got --class-label 4"):
        load_model(folder, class_label=4)


def test_there_is_no_embedding_without_a_vit(latent):
    with pytest.raises(ValueError, match="has no ViT"):
        load_model(latent).embed(PATCHES)
