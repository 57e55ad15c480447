from typing import get_args, get_type_hints

import pytest

from pathseg.extract.config import ExtractConfig
from pathseg.train.config import HEAD_DEFAULTS, BaselineConfig, HeadConfig
from pathseg.train.heads.registry import BASELINES, HEADS


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"patience": -1},
        {"val_fraction": 0},
        {"val_fraction": 1},
        {"blocks": ()},
        {"min_object_px": -1},
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=name) as caught:
        HeadConfig(**wrong)
    assert str(value) in str(caught.value)


def test_run_names_tell_stores_and_settings_apart():
    names = {
        config.run_name(store)
        for store in ("glas-mini", "glas-mini-native", "glas-hipt")
        for config in (
            HeadConfig(),
            HeadConfig(t=10),
            HeadConfig(lr=1e-3),
            HeadConfig(seed=1),
            HeadConfig(blocks=(4,)),
            HeadConfig(head_type="linear"),
            HeadConfig(epochs=3),
            HeadConfig(class_weights="balanced"),
        )
    }
    assert len(names) == 24


@pytest.mark.parametrize("wrong", [{"t": ()}, {"t": (50, 50)}, {"batch_size": 0}])
def test_an_extraction_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"got|different"):
        ExtractConfig(**wrong)


@pytest.mark.parametrize(
    ("head_type", "lr", "epochs"),
    [("fcn", 1e-4, 20), ("scalar-mix", 1e-4, 20), ("linear", 1e-4, 20), ("pixel-ensemble", 1e-3, 100)],
)
def test_each_head_has_its_own_rate_and_epochs(head_type, lr, epochs):
    # the paper's rate for its head, DDPMSeg's for its networks
    config = HeadConfig(head_type=head_type)
    assert (config.lr, config.epochs) == (lr, epochs)
    assert (HeadConfig(head_type=head_type, lr=0.5, epochs=3).lr, HeadConfig(head_type=head_type, epochs=3).epochs) == (
        0.5,
        3,
    )


def test_every_head_says_how_it_learns():
    assert set(HEAD_DEFAULTS) == set(HEADS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"head_type": "fcn", "pixels": 5},
        {"head_type": "pixel-ensemble", "augment": "flips"},
        {"head_type": "pixel-ensemble", "patience": 3},
        {"head_type": "pixel-ensemble", "precision": "bfloat16"},
        {"head_type": "linear", "image_in_head": True},
    ],
)
def test_a_setting_that_means_nothing_to_a_head_is_refused(wrong):
    with pytest.raises(ValueError, match=f"does not apply to head {wrong['head_type']}"):
        HeadConfig(**wrong)


def test_baselines_start_from_other_names_for_other_weights():
    names = {BaselineConfig(weights=weights).run_name("toy") for weights in ("imagenet", "none")}
    assert names == {"toy-res-unet-imagenet-lr0.0001-s0", "toy-res-unet-none-lr0.0001-s0"}


def test_every_baseline_of_the_configuration_is_there():
    assert get_args(get_type_hints(BaselineConfig)["network"]) == tuple(BASELINES)
