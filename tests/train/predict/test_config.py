import pytest

from pathseg.train.predict.config import PredictConfig


def test_an_unknown_format_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"'svg'.*mask, overlay, geojson, review, probabilities"):
        PredictConfig(formats=("mask", "svg"))


@pytest.mark.parametrize(
    "change",
    [{"overlap": 0}, {"smallest": -1}, {"simplify": -1.0}, {"outline": 10}, {"batch_size": 0}, {"formats": ()}],
    ids=str,
)
def test_a_setting_out_of_range_is_named_with_its_value(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError) as caught:
        PredictConfig(**change)
    assert name in str(caught.value)
    assert str(value) in str(caught.value)
