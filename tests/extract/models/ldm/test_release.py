import runpy
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from pathseg.extract.models.ldm.release import read_release, release_from

FILES = runpy.run_path(Path(__file__).parents[3] / "golden/files.py")


@pytest.fixture(scope="module")
def drawn_state():
    return FILES["state_dict"]("vq_f4_ssl")


@pytest.fixture
def state(drawn_state):
    """A state dict that a test may change."""
    return dict(drawn_state)


def release_of(state, config):
    """What `read_release` makes of the content of its files."""
    return release_from(config["model"]["params"], state, name="release", source="last.ckpt")


@pytest.fixture
def config():
    return yaml.safe_load(FILES["case"]("vq_f4_ssl")["config_yaml"])


@pytest.fixture
def write(tmp_path):
    return lambda state, config: FILES["write_release"](tmp_path / "release", state, yaml.safe_dump(config))


@pytest.mark.parametrize("name", FILES["CASES"])
def test_weights_come_back_as_published(tmp_path, name):
    release = read_release(FILES["write_case"](name, tmp_path))
    weights = FILES["weights"](name)
    for read, part in ((release.unet, "unet"), (release.conditioning, "cond_stage")):
        assert read.keys() == weights[part].keys()
        assert all(torch.equal(tensor, weights[part][key]) for key, tensor in read.items())


def test_the_ema_copy_is_used_where_the_config_says_so(tmp_path):
    release = read_release(FILES["write_case"]("kl_f8_patch", tmp_path))
    averaged = FILES["weights"]("kl_f8_patch")["unet"]["out.2.weight"]
    assert torch.equal(release.unet["out.2.weight"], averaged)
    assert not torch.equal(FILES["state_dict"]("kl_f8_patch")["model.diffusion_model.out.2.weight"], averaged)


def test_the_live_weights_are_used_where_the_config_says_so(state, config):
    state["model_ema.diffusion_modelout2weight"] = torch.zeros(3, 32, 3, 3)
    release = release_of(state, config)
    assert torch.equal(release.unet["out.2.weight"], state["model.diffusion_model.out.2.weight"])


def test_a_pruned_checkpoint_has_its_ema_copy_as_live_weights(state, config):
    config["model"]["params"]["use_ema"] = True
    assert release_of(state, config).unet.keys() == FILES["weights"]("vq_f4_ssl")["unet"].keys()


def test_half_an_ema_copy_is_refused(state, config):
    config["model"]["params"]["use_ema"] = True
    state["model_ema.diffusion_modelout2weight"] = torch.zeros(3, 32, 3, 3)
    with pytest.raises(ValueError, match=r"last\.ckpt \(unet\) lacks tensor \S+ and 682 more"):
        release_of(state, config)


def test_safetensors_give_the_same_release(write, state, config):
    folder = write({}, config)
    (folder / "checkpoints/last.ckpt").unlink()
    save_file(state, folder / "checkpoints/last.safetensors")
    release = read_release(folder)
    assert torch.equal(release.unet["out.2.weight"], state["model.diffusion_model.out.2.weight"])


def test_what_the_decoder_lacks_does_not_matter(state, config):
    kept = {
        k: v for k, v in state.items() if not k.startswith(("first_stage_model.decoder", "first_stage_model.quantize"))
    }
    assert release_of(kept, config).first_stage_design.name == "vq-f4"


@pytest.mark.parametrize(
    ("stored", "configured", "expected"), [(None, None, 1.0), (None, 0.5, 0.5), (0.25, None, 0.25), (0.25, 0.5, 0.25)]
)
def test_the_scale_factor_is_the_checkpoints_then_the_configs_then_one(state, config, stored, configured, expected):
    if stored is not None:
        state["scale_factor"] = torch.tensor(stored)
    if configured is not None:
        config["model"]["params"]["scale_factor"] = configured
    assert release_of(state, config).scale_factor == expected


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.diffusion_model.out.2.bias", None, r"\(unet\) lacks tensor out\.2\.bias"),
        (
            "model.diffusion_model.label_emb.weight",
            torch.zeros(2),
            r"\(unet\) has the unexpected tensor label_emb\.weight",
        ),
        ("model.diffusion_model.out.0.weight", torch.zeros(64), r"\(unet\) .* out\.0\.weight: \(64,\), not \(32,\)"),
        ("first_stage_model.quant_conv.bias", None, r"\(first stage\) lacks tensor quant_conv\.bias"),
        (
            "first_stage_model.encoder.down.0.attn.0.q.weight",
            torch.zeros(2),
            r"unexpected tensor encoder\.down\.0\.attn",
        ),
        ("cond_stage_model.patch_fc.weight", torch.zeros(512, 64), r"patch_fc\.weight: \(512, 64\), not \(512, 128\)"),
        (
            "alphas_cumprod",
            torch.linspace(1, 0, 1000),
            r"schedule of 1000 steps that ends at alpha_bar 0, but its config",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused_by_name(state, config, name, change, message):
    state[name] = change
    with pytest.raises(ValueError, match=rf"last\.ckpt.*{message}") as error:
        release_of({k: v for k, v in state.items() if v is not None}, config)
    assert "\n" not in str(error.value)


def test_the_schedule_of_the_checkpoint_may_stand_in_float32(state, config):
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64).square()
    state["alphas_cumprod"] = torch.cumprod(1 - betas, 0).float()
    assert release_of(state, config).schedule.timesteps == 1000


def test_a_config_that_is_not_supported_is_named_with_its_file(write, config):
    config["model"]["params"]["cond_stage_config"]["target"] = "ldm.modules.encoders.modules.BERTEmbedder"
    with pytest.raises(ValueError, match=r"project\.yaml: config has the cond_stage_config target BERTEmbedder"):
        read_release(write({}, config))


def test_channels_that_do_not_meet_are_refused(state, config):
    config["model"]["params"]["unet_config"]["params"]["in_channels"] = 4
    with pytest.raises(ValueError, match="the unet takes 4 channels, the first stage gives 3"):
        release_of(state, config)


@pytest.mark.parametrize("text", ["a: [", "just text", "model: {}", "!!python/object/apply:os.system ['true']"])
def test_a_file_that_is_no_config_is_refused(write, config, text):
    folder = write({}, config)
    next(folder.glob("configs/*")).write_text(text)
    with pytest.raises(ValueError, match=r"project\.yaml (is no YAML|has no model\.params)"):
        read_release(folder)


def test_a_checkpoint_without_weights_is_refused(config):
    with pytest.raises(ValueError, match=r"last\.ckpt has no tensor below model\.diffusion_model\."):
        release_of({}, config)


def test_prefixes_of_a_bare_state_dict_are_taken_off_or_named(write, state, config):
    compiled = {
        f"module.{name.replace('diffusion_model.', 'diffusion_model._orig_mod.')}": state[name] for name in state
    }
    folder = write({}, config)
    torch.save(compiled, folder / "checkpoints/last.ckpt")
    assert torch.equal(read_release(folder).unet["out.2.weight"], state["model.diffusion_model.out.2.weight"])
    torch.save({f"ldm.{name}": tensor for name, tensor in state.items()}, folder / "checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt.*remove 'ldm\.' from the names"):
        read_release(folder)


def test_the_newest_of_several_configs_counts(write, state, config):
    folder = write(state, config)
    (folder / "configs/2020-01-01T00-00-00-project.yaml").write_text("old")
    assert read_release(folder).name == "release"


@pytest.mark.parametrize("lost", ["configs/2023-09-01T00-00-00-project.yaml", "checkpoints/last.ckpt"])
def test_an_incomplete_folder_says_what_it_needs(write, config, lost):
    folder = write({}, config)
    (folder / lost).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no (config|checkpoint); configs/\*-project\.yaml and checkpoints/"
    ):
        read_release(folder)


def test_a_missing_folder_says_what_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no release folder .*gone; a folder with configs/\*-project\.yaml"):
        read_release(tmp_path / "gone")


@pytest.mark.parametrize("params", [None, "unet_config", [1], 3])
def test_params_that_are_no_options_are_refused_with_the_file(write, config, params):
    config["model"]["params"] = params
    with pytest.raises(
        ValueError, match=r"project\.yaml has no model\.params with options, got .*; a CompVis"
    ) as error:
        read_release(write({}, config))
    assert repr(params) in str(error.value)


def test_an_option_of_another_kind_is_named_with_the_file(write, config):
    config["model"]["params"]["scale_factor"] = None
    with pytest.raises(ValueError, match=r"project\.yaml: model\.params\.scale_factor must be .*, got None"):
        read_release(write({}, config))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alphas_cumprod", torch.ones(2, 2), r"alphas_cumprod must hold the 1000 .* of shape \(2, 2\)"),
        ("alphas_cumprod", torch.ones(0), r"alphas_cumprod must hold the 1000 .* of shape \(0,\)"),
        ("alphas_cumprod", torch.tensor(1.0), r"alphas_cumprod must hold the 1000 .* of shape \(\)"),
        ("alphas_cumprod", torch.ones(1000, dtype=torch.int64), "alphas_cumprod must hold .*got torch.int64"),
        ("scale_factor", torch.ones(3), r"scale_factor must be one finite number above 0, got shape \(3,\)"),
        ("scale_factor", torch.ones(0), r"scale_factor must be one finite number above 0, got shape \(0,\)"),
        ("scale_factor", torch.tensor(torch.nan), "scale_factor must be one finite number above 0, got nan"),
    ],
)
def test_a_buffer_of_another_kind_is_refused_with_the_file(state, config, name, value, message):
    state[name] = value
    with pytest.raises(ValueError, match=rf"last\.ckpt:? {message}") as error:
        release_of(state, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_schedule_of_the_checkpoint_is_compared_as_precisely_as_it_was_saved(state, config, dtype):
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64).square()
    state["alphas_cumprod"] = torch.cumprod(1 - betas, 0).to(dtype)
    assert release_of(state, config).schedule.linear_end == 0.0195
    config["model"]["params"]["linear_end"] = 0.02
    with pytest.raises(ValueError, match=r"noise schedule of 1000 steps .*; give the config that belongs to it"):
        release_of(state, config)


@pytest.mark.parametrize("text", ["model: 2023-99-99", "[" * 5000])
def test_yaml_that_cannot_be_read_is_refused_with_the_file(write, config, text):
    folder = write({}, config)
    next(folder.glob("configs/*")).write_text(text)
    with pytest.raises(ValueError, match=r"project\.yaml is no YAML"):
        read_release(folder)
