import copy
import re

import numpy as np
import pytest

from pathseg.extract.models.ldm.config import (
    UNetDesign,
    conditioning_design,
    first_stage_design,
    scale_factor_of,
    schedule_of,
    unet_design,
    uses_ema,
)
from pathseg.extract.models.mini import MINI_PARAMS

READERS = (unet_design, first_stage_design, conditioning_design, schedule_of, scale_factor_of, uses_ema)


def changed(path, value):
    """mini's config with one entry changed, or removed where the value is ..."""
    params = copy.deepcopy(MINI_PARAMS)
    *folders, name = path.split("/")
    entry = params
    for folder in folders:
        entry = entry[folder]
    if value is ...:
        del entry[name]
    else:
        entry[name] = value
    return params


def test_the_papers_blocks_have_the_published_sizes():
    design = UNetDesign(3, 3, 192, (1, 2, 3, 5), 2, (8, 4, 2), 512, 1, 1, None)
    assert design.blocks(64) == {
        0: (960, 8),
        1: (960, 8),
        2: (960, 8),
        3: (960, 16),
        4: (576, 16),
        5: (576, 16),
        6: (576, 32),
        7: (384, 32),
        8: (384, 32),
        9: (384, 64),
        10: (192, 64),
        11: (192, 64),
        12: (192, 64),
    }


def test_twelve_blocks_may_be_three_levels_of_four():
    blocks = UNetDesign(3, 3, 32, (1, 2, 4), 3, (4, 2), 8, 1, 1, None).blocks(32)
    assert [blocks[i] for i in (0, 4, 8, 12)] == [(128, 8), (128, 16), (64, 32), (32, 32)]


def test_heads_follow_from_their_width():
    params = changed("unet_config/params/num_heads", -1)
    params["unet_config"]["params"] |= {"num_head_channels": 32, "model_channels": 32, "channel_mult": [1, 2, 2, 2]}
    assert unet_design(params).heads == (1, 2, 2, 2)


def test_the_first_stage_is_named_by_its_factor():
    assert first_stage_design(MINI_PARAMS).name == "vq-f4"
    assert first_stage_design(MINI_PARAMS).latent_shape == (3, 64, 64)


def test_the_schedule_is_linear_in_the_root_of_beta():
    import diffusers

    scheduler = diffusers.DDPMScheduler(1000, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    assert np.allclose(schedule_of(MINI_PARAMS).alpha_bars(), scheduler.alphas_cumprod, rtol=1e-5)


def test_a_config_that_is_silent_about_the_schedule_has_the_defaults_of_compvis():
    assert schedule_of({}).alpha_bars()[0] == pytest.approx(1 - 1e-4)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert schedule_of({"linear_start": "1e-4"}).linear_start == 1e-4


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("unet_config/params/num_res_blocks", 1, "4 levels of num_res_blocks . 1 = 2 upsampling blocks, 8 in all.* 12"),
        (
            "unet_config/params/num_res_blocks",
            [2, 2, 2, 2],
            r"num_res_blocks must be a whole number from 1 to 100, got \[2, 2, 2, 2\]",
        ),
        ("unet_config/params/use_spatial_transformer", False, "only use_spatial_transformer: True is supported with a"),
        ("unet_config/params/use_spatial_transformer", ..., "only use_spatial_transformer: True"),
        ("unet_config/params/resblock_updown", True, "only resblock_updown: False"),
        ("unet_config/params/num_classes", 1000, "num_classes: 1000, but only num_classes: None"),
        ("unet_config/params/context_dim", None, "only a unet with cross-attention"),
        ("unet_config/params/num_heads", ..., "num_heads or num_head_channels"),
        ("unet_config/params/model_channels", ..., "no model_channels in model.params.unet_config.params"),
        ("unet_config/target", "a.Other", "unet_config target Other, but only UNetModel"),
        ("unet_config", ..., "no unet_config in model.params"),
        ("conditioning_key", "concat", "conditioned by 'concat'"),
        (
            "first_stage_config/target",
            "ldm.models.autoencoder.IdentityFirstStage",
            "target IdentityFirstStage, but only",
        ),
        ("first_stage_config/params/ddconfig/attn_resolutions", [32], r"only attn_resolutions: \[\]"),
        ("first_stage_config/params/ddconfig/double_z", True, "only double_z: False is supported for VQModelInterface"),
        ("cond_stage_config/target", "ldm.modules.encoders.modules.BERTEmbedder", "target BERTEmbedder, but only"),
        ("cond_stage_config", "__is_unconditional__", "only use_spatial_transformer: False is supported without"),
        ("cond_stage_config", "__is_first_stage__", "target __is_first_stage__, but only SSLEmbedder"),
        ("beta_schedule", "cosine", "only beta_schedule: linear"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(path, value, message):
    params = changed(path, value)
    with pytest.raises(ValueError, match=message):
        for read in READERS:
            read(params)


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("unet_config/params", [1], "a mapping of options"),
        ("unet_config/params/channel_mult", 3, "a list of whole numbers from 1 to 1000000"),
        ("unet_config/params/channel_mult", [], "a list of whole numbers from 1 to 1000000"),
        ("unet_config/params/channel_mult", ["a", "b"], "a list of whole numbers from 1 to 1000000"),
        ("unet_config/params/attention_resolutions", None, "a list, empty or of whole numbers from 1 to 1000000"),
        ("unet_config/params/model_channels", "abc", "a whole number from 1 to 1000000"),
        ("unet_config/params/model_channels", True, "a whole number from 1 to 1000000"),
        ("unet_config/params/context_dim", [512], "a whole number from 1 to 1000000"),
        ("unet_config/params/num_heads", 0, "a whole number from 1 to 1000000"),
        ("unet_config/params/num_heads", "one", "a whole number from 1 to 1000000"),
        ("unet_config/params/num_head_channels", 1.5, "a whole number from 1 to 1000000"),
        ("unet_config/params/transformer_depth", "x", "a whole number from 1 to 100"),
        ("unet_config/params/transformer_depth", 10**9, "a whole number from 1 to 100"),
        ("first_stage_config/params", "x", "a mapping of options"),
        ("first_stage_config/params/ddconfig", None, "a mapping of options"),
        ("first_stage_config/params/ddconfig/ch_mult", None, "a list of whole numbers from 1 to 1000000"),
        ("first_stage_config/params/ddconfig/ch", "q", "a whole number from 1 to 1000000"),
        ("first_stage_config/params/embed_dim", None, "a whole number from 1 to 1000000"),
        ("cond_stage_config", "SSLEmbedder", "a mapping of options"),
        ("cond_stage_config/params/patch_embed_dim", "x", "a whole number from 1 to 1000000"),
        ("cond_stage_config/params/normalize_ssl", None, "true or false"),
        ("linear_start", None, "a number above 0 and below 1"),
        ("linear_start", "x", "a number above 0 and below 1"),
        ("linear_end", -1, "a number above 0 and below 1"),
        ("timesteps", 0, "a whole number from 1 to 1000000"),
        ("timesteps", 10**12, "a whole number from 1 to 1000000"),
        ("scale_factor", None, "a finite number above 0"),
        ("scale_factor", float("inf"), "a finite number above 0"),
        ("use_ema", "no", "true or false"),
    ],
)
def test_an_option_of_another_kind_is_refused_with_its_path_and_value(path, value, kind):
    params = changed(path, value)
    message = f"model.params.{path.replace('/', '.')} must be {kind}, got {value!r}; correct it in the config"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        for read in READERS:
            read(params)


@pytest.mark.parametrize(
    ("option", "value"), [("num_heads", 7), ("num_head_channels", 48), ("num_head_channels", 1024)]
)
def test_heads_that_do_not_divide_the_channels_are_refused(option, value):
    with pytest.raises(
        ValueError, match=f"^{option} of the unet must divide .*got {value} for 64 channels at level 2 "
    ):
        unet_design(changed(f"unet_config/params/{option}", value))


@pytest.mark.parametrize("path", ["unet_config/params/model_channels", "first_stage_config/params/ddconfig/ch"])
def test_channels_that_group_norm_cannot_divide_are_refused(path):
    with pytest.raises(ValueError, match=r"multiple of 32, .*got 48"):
        for read in READERS:
            read(changed(path, 48))


@pytest.mark.parametrize(
    "path", ["unet_config", "unet_config/target", "unet_config/params/dims", "unet_config/params/channel_mult",
             "conditioning_key", "beta_schedule", "first_stage_config/params/ddconfig/double_z"],
)  # fmt: skip
def test_a_value_of_gigabytes_made_of_aliases_is_not_printed(path):
    value = ["x"] * 9
    for _ in range(40):
        value = [value] * 9
    with pytest.raises(ValueError) as error:
        for read in READERS:
            read(changed(path, value))
    assert len(str(error.value)) < 2000


def test_heads_need_not_divide_the_channels_of_a_level_without_attention():
    assert unet_design(changed("unet_config/params/num_head_channels", 64 // 2)).attends(0) is False
    assert unet_design(changed("unet_config/params/num_heads", 64 // 2)).heads[0] == 32


def test_a_unet_may_attend_in_the_middle_alone():
    assert unet_design(changed("unet_config/params/attention_resolutions", [])).attention_resolutions == ()


def test_a_conditioning_stage_without_params_has_its_defaults():
    assert conditioning_design(changed("cond_stage_config/params", None)).patch_embed_dim == 384
