"""Values of options that hold for all stores, or for each by its name."""

import click
import pytest

from pathseg.extract.config import ExtractConfig, ViTConfig
from pathseg.extract.datasets.registry import DatasetOptions
from pathseg.store.blocks import parse_selection
from pathseg.store.runtime.flags import flags_of, parse_by_store, words_of
from pathseg.train.predict.config import PredictConfig


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4-6", (4, 5, 6)),
        ("0,4-6", (0, 4, 5, 6)),
        ("last", "last"),
        ("A:4-6,B:last", {"A": (4, 5, 6), "B": "last"}),
        ("A:0,4-6,B:2", {"A": (0, 4, 5, 6), "B": (2,)}),
        ("my store:all", {"my store": "all"}),
    ],
)
def test_a_value_holds_for_all_stores_or_for_the_one_named_before_it(text, value):
    assert parse_by_store(text, parse=parse_selection) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4-6,B:last", "names a store for some values only; write A:…,B:…"),
        ("A:1,A:2", "names the store A twice"),
        ("A:1,B:x", "cannot read 'x' as blocks"),
        ("A:,B:1", "cannot read '' as blocks"),
    ],
)
def test_a_value_that_cannot_be_read_is_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_by_store(text, parse=parse_selection)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        ExtractConfig(),
        ExtractConfig(t=(10, 50), blocks=(0, 4, 5, 6), layout="native", packing="int8", seed=3, surroundings=2),
        ExtractConfig(blocks="last"),
        DatasetOptions(classes=("a b", "c"), mpp=0.25, windows="all", views="flips", instances=True, brush_um=2.5),
        ViTConfig(mean=(0.1, 0.2, 0.3), model_args=("sizes=[1,2]", "depth=3")),
        PredictConfig(formats=("geojson", "review"), objects_as="detections", simplify=0.0),
    ],
)
def test_the_words_of_a_configuration_are_read_as_the_same_configuration(config):
    command = click.command()(flags_of(type(config))(lambda **values: None))
    assert type(config)(**command.make_context("command", words_of(config)).params) == config


def test_values_at_their_default_take_no_words():
    assert words_of(ExtractConfig()) == words_of(DatasetOptions()) == words_of(PredictConfig()) == []
