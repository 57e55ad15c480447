"""ZoomLDM: its conditioning stage against the golden case, its folder against diffusers' own networks."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from pathseg.cli import main
from pathseg.extract.models.ldm.conditioning import conditioning_shapes, zoom_conditioning
from pathseg.extract.models.ldm.config import ZoomDesign, conditioning_design
from pathseg.extract.models.ldm.release import read_release, release_from
from pathseg.extract.models.ldm_features import DiffusionFeatures
from pathseg.extract.models.load import load_model
from pathseg.extract.models.mini import mini_vit
from pathseg.store.features import FeatureStore

FILES = runpy.run_path(Path(__file__).parents[3] / "golden/files.py")
BRCA = ZoomDesign(12, 1024, 512, 512, 2048)  # of the public model


def params_of_stage():
    return yaml.safe_load(FILES["case"]("zoom_context")["config_yaml"])["cond_stage_config"]["params"]


@pytest.fixture(scope="module")
def drawn_stage():
    """Weights of the golden case, to be read only."""
    return FILES["weights"]("zoom_context")["cond_stage"]


@pytest.fixture(scope="module")
def stage(drawn_stage):
    return zoom_conditioning(params_of_stage(), drawn_stage)


@pytest.mark.parametrize("magnification", range(5))
def test_context_agrees_with_the_reference_at_each_magnification(stage, magnification):
    reference = FILES["expected"]("zoom_context")
    context = stage(torch.from_numpy(reference[f"mag{magnification}_features"]), magnification)
    assert FILES["relative_error"](context, reference[f"mag{magnification}_context"]) < 1e-5


def test_20x_is_the_default_magnification(stage):
    features = torch.from_numpy(FILES["expected"]("zoom_context")["mag0_features"])
    assert torch.equal(stage(features), stage(features, magnification=0))


def test_the_stage_is_frozen(stage):
    assert isinstance(stage, torch.nn.Module) and not stage.training
    assert not any(parameter.requires_grad for parameter in stage.parameters())


def test_larger_maps_are_averaged_down_to_8x8(stage):
    cells = torch.randn(1, 48, 8, 8, generator=torch.Generator().manual_seed(0))
    large = cells.repeat_interleave(4, -1).repeat_interleave(4, -2)  # 32x32, at 0.625x
    assert FILES["relative_error"](stage(large, 5), stage(cells, 5)) < 1e-5


def test_names_and_shapes_are_those_of_the_reference():
    shapes = FILES["case"]("zoom_context")["shapes"]["cond_stage"]
    design = ZoomDesign(2, 48, 32, 32, 128)
    assert conditioning_shapes(design, 32) == {name: tuple(shape) for name, shape in shapes.items()}


def test_the_public_stage_has_a_token_for_each_cell_and_for_the_magnification():
    shapes = conditioning_shapes(BRCA, 512)
    assert shapes["encoder.pos_embedding"] == (1, 65, 512)
    assert shapes["mag_embedding.weight"] == (8, 512)
    assert sum(name.startswith("encoder.layers.") and name.endswith("mlp.0.weight") for name in shapes) == 12


@pytest.mark.parametrize("magnification", [-1, 8, 1.0, None, "20x"])
def test_a_magnification_that_the_stage_does_not_have_is_refused(stage, magnification):
    with pytest.raises(ValueError, match=rf"magnification must be .* within 0-7 .*got {magnification!r}$"):
        stage(torch.zeros(1, 48, 1, 1), magnification)


@pytest.mark.parametrize(
    ("shape", "magnification", "wanted"),
    [
        ((1, 1024, 1, 1), 0, r"\(N, 48, 1, 1\)"),
        ((1, 48), 0, r"\(N, 48, 1, 1\)"),
        ((1, 48, 2, 2), 0, r"\(N, 48, 1, 1\)"),
        ((1, 48, 4, 2), 1, r"\(N, 48, 2, 2\)"),
        ((1, 48, 1, 1), 3, r"\(N, 48, 8, 8\)"),
        ((1, 48, 4, 4), 4, r"\(N, 48, h, h\) with h from 8 on"),
    ],
)
def test_embeddings_that_do_not_fit_the_magnification_are_refused(stage, shape, magnification, wanted):
    with pytest.raises(ValueError, match=rf"at magnification {magnification} must be {wanted}, got \(1, "):
        stage(torch.zeros(shape), magnification)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("pad_token", None, "lacks tensor pad_token"),
        ("encoder.layers.encoder_layer_1.ln_1.bias", None, r"lacks tensor encoder\.layers\.encoder_layer_1\.ln_1\.b"),
        ("encoder.layers.encoder_layer_2.ln_1.bias", torch.zeros(32), "has the unexpected tensor encoder"),
        ("mag_embedding.weight", torch.zeros(5, 32), r"mag_embedding\.weight: \(5, 32\), not \(8, 32\)"),
        ("dim_reduce.weight", torch.zeros(32, 1024), r"dim_reduce\.weight: \(32, 1024\), not \(32, 48\)"),
        ("layer_norm.bias", torch.full((32,), torch.nan), r"NaN or infinity in tensor layer_norm\.bias"),
    ],
)
def test_weights_that_do_not_fit_the_stage_are_refused_by_name(drawn_stage, name, tensor, message):
    weights = {key: value for key, value in (drawn_stage | {name: tensor}).items() if value is not None}
    with pytest.raises(ValueError, match=f"weights of EmbeddingViT2_5 .*{message}") as error:
        zoom_conditioning(params_of_stage(), weights)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": ...}, "no num_layers in model.params.cond_stage_config.params"),
        ({"num_layers": 1.5}, "num_layers must be a whole number from 1 to 100, got 1.5"),
        ({"input_channels": "x"}, "input_channels must be a whole number from 1 to 1000000, got 'x'"),
        ({"hidden_channels": 36}, "hidden_channels .* multiple of its 8 attention heads, got 36"),
    ],
)
def test_params_that_describe_no_stage_are_refused_by_option(drawn_stage, changes, message):
    params = {name: value for name, value in (params_of_stage() | changes).items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        zoom_conditioning(params, drawn_stage)


@pytest.fixture(scope="module")
def published():
    """State dict and config of a small ZoomLDM model, to be read only."""
    return FILES["zoom_release"]()


@pytest.fixture
def state(published):
    """Its state dict, which a test may change."""
    return dict(published[0])


@pytest.fixture
def config(published):
    return yaml.safe_load(published[1])


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory):
    """Its folder, to be read only."""
    return FILES["write_zoom"](tmp_path_factory.mktemp("models") / "zoom", *published)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, condition="none")


def release_of(state, config):
    return release_from(config["model"]["params"], state, name="zoom", source="weights.ckpt")


def test_features_are_those_of_diffusers_networks_with_a_context_of_65_zero_tokens(published, model):
    state, _ = published
    unet, vq = FILES["diffusers_zoom"](state)
    patch, eps = FILES["patch"]("vq_f4_ssl"), np.random.default_rng(2).standard_normal((1, 3, 64, 64))
    pixels = torch.from_numpy(patch.copy()).permute(0, 3, 1, 2) / 127.5 - 1
    with FILES["reference_threads"](), torch.inference_mode():
        z0 = vq.encode(pixels.contiguous(memory_format=torch.channels_last)).latents
    alpha_bar = (1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2).cumprod()[50]
    zt = math.sqrt(alpha_bar) * z0 + math.sqrt(1 - alpha_bar) * torch.from_numpy(eps).float()
    expected = FILES["hooked"](unet, zt, 50, torch.zeros(1, 65, 512))

    features = model.features(patch, 50, range(13), eps)
    errors = {block: FILES["relative_error"](maps, expected[block]) for block, maps in features.items()}
    assert len(errors) == len(expected) == 13
    assert max(errors.values()) < 1e-5, errors


def test_the_context_is_65_zero_tokens(model):
    context = model.prepare(FILES["patch"]("vq_f4_ssl"))[1]
    assert context.shape == (1, 65, 512)
    assert not context.any()


def test_what_the_model_says_of_itself(model):
    assert (model.name, model.trained, model.condition, model.first_stage) == ("zoom", True, "none", "vq-f4")
    assert model.latent_shape == (3, 64, 64)


def test_safetensors_give_the_same_model(published, model, tmp_path):
    folder = FILES["write_zoom"](tmp_path / "zoom", *published)
    (folder / "weights.ckpt").unlink()
    save_file(published[0], folder / "weights.safetensors")
    assert load_model(folder, condition="none").digest == model.digest


def test_weights_of_the_conditioning_stage_change_no_feature_and_so_not_the_digest(state, config, model):
    state["cond_stage_model.pad_token"] = state["cond_stage_model.pad_token"] + 1
    other = DiffusionFeatures(release_of(state, config), None, name="other", trained=True)
    assert other.digest == model.digest
    state["model_ema.diffusion_modelout2bias"] = state["model_ema.diffusion_modelout2bias"] + 1
    other = DiffusionFeatures(release_of(state, config), None, name="other", trained=True)
    assert other.digest != model.digest


def test_the_stage_of_the_folder_is_read_as_it_is_published(folder, published):
    release = read_release(folder)
    design = conditioning_design(yaml.safe_load(published[1])["model"]["params"])
    assert release.conditioning_design == design == ZoomDesign(2, 48, 32, 512, 128)
    assert torch.equal(release.conditioning["pad_token"], published[0]["cond_stage_model.pad_token"])


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("cond_stage_model.pad_token", None, r"\(conditioning\) lacks tensor pad_token"),
        ("cond_stage_model.mag_embedding.weight", torch.zeros(5, 32), r"mag_embedding\.weight: \(5, 32\), not \(8, 32"),
        ("model_ema.diffusion_modelout2bias", None, r"\(unet\) lacks tensor out\.2\.bias"),
        ("first_stage_model.quant_conv.bias", None, r"\(first stage\) lacks tensor quant_conv\.bias"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused_by_name(state, config, name, tensor, message):
    state[name] = tensor
    with pytest.raises(ValueError, match=rf"weights\.ckpt {message}|weights\.ckpt .*{message}") as error:
        release_of({key: value for key, value in state.items() if value is not None}, config)
    assert "\n" not in str(error.value)


def test_context_tokens_of_another_width_than_the_denoisers_are_refused_with_the_file(published, config, tmp_path):
    config["model"]["params"]["cond_stage_config"]["params"]["output_channels"] = 32
    folder = FILES["write_zoom"](tmp_path / "zoom", {}, yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"config\.yaml: the unet takes context tokens of 512, the .* gives 32"):
        read_release(folder)


@pytest.mark.parametrize(("lost", "what"), [("config.yaml", "config"), ("weights.ckpt", "checkpoint")])
def test_a_folder_without_one_of_its_files_says_what_it_needs(published, tmp_path, lost, what):
    folder = FILES["write_zoom"](tmp_path / "zoom", {}, published[1])
    (folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no {what}; config\.yaml and weights\.ckpt are needed"):
        read_release(folder)


def test_a_folder_with_other_files_says_which_layouts_there_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config .*project\.yaml and .*, or config\.yaml and weights\.ckpt"):
        read_release(tmp_path)


def test_a_dino_vit_is_refused(folder):
    with pytest.raises(ValueError, match="takes the ViT of its condition as a timm model"):
        DiffusionFeatures(read_release(folder), mini_vit(), name="zoom", trained=True)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.soak
def test_extract_train_and_predict_with_it(folder, tmp_path):
    work = tmp_path / "work"
    flags = ("--dataset", "synthetic", "--resize", 256, "--limit", 3, "--blocks", "4-6", "--layout", "native",
             "--model", folder, "--condition", "none")  # fmt: skip
    for command in (
        ("extract", *flags),
        ("train-head", "--head", "linear", "--epochs", 1, "--name", "head"),
        ("train-head", "--epochs", 1, "--name", "fcn"),
    ):
        result = run(*command, "--workspace", work)
        assert result.exit_code == 0, result.output
    store = FeatureStore.open(work / "synthetic-zoom.zarr")
    assert (store.contents.key.model, store.contents.key.condition) == ("zoom", "none")
    assert all(np.isfinite(maps).all() for maps in store.read(0, t=50, blocks=(4, 5, 6)).values())

    for index, name in enumerate(store.ids):
        Image.fromarray(store.image(index)).save(tmp_path / f"{name}.png")
    (expected,) = (work / "heads/head/predictions").iterdir()  # of the image of the test split
    result = run("predict", tmp_path / expected.name, "--run", "head", "--out", tmp_path / "out", "--model", folder,
                 "--workspace", work)  # fmt: skip
    assert result.exit_code == 0, result.output
    found = np.asarray(Image.open(tmp_path / "out/mask" / expected.name))
    np.testing.assert_array_equal(found, np.asarray(Image.open(expected)))
