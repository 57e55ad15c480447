import pytest

from pathseg.train.predict.config import DEFAULT_FORMATS, FORMATS, PredictConfig, parse_formats


def test_formats_come_in_the_order_of_the_table():
    assert parse_formats("geojson, mask") == ("mask", "geojson")
    assert set(DEFAULT_FORMATS) < set(FORMATS)


def test_an_unknown_format_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"'svg' is no format; choose from mask, overlay, geojson, probabilities"):
        parse_formats("mask,svg")


@pytest.mark.parametrize(
    "change", [{"overlap": 0}, {"smallest": -1}, {"simplify": -1.0}, {"outline": 10}, {"batch_size": 0}], ids=str
)
def test_a_number_out_of_range_is_named(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name} must.*{value}"):
        PredictConfig(**change)
