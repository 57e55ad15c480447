import dataclasses
import json

import pytest

from pathseg.extract.config import ExtractConfig
from pathseg.train.config import HeadConfig


def test_a_head_configuration_comes_back_equal_through_json():
    config = HeadConfig(t=10, blocks=(4, 5), lr=1e-3, seed=3)
    assert HeadConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="'momentum'"):
        HeadConfig.from_dict({"momentum": 0.9})


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


def test_run_names_tell_settings_apart(toy_key):
    names = {
        config.run_name(key)
        for key in (toy_key(), toy_key(condition="none"), toy_key(model="hipt"))
        for config in (
            HeadConfig(),
            HeadConfig(t=10),
            HeadConfig(lr=1e-3),
            HeadConfig(seed=1),
            HeadConfig(blocks=(4,)),
            HeadConfig(head="linear"),
            HeadConfig(epochs=3),
            HeadConfig(class_weights="balanced"),
        )
    }
    assert len(names) == 24


@pytest.mark.parametrize("wrong", [{"t": ()}, {"t": (50, 50)}, {"batch_size": 0}])
def test_an_extraction_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"got|different"):
        ExtractConfig(**wrong)
