"""What a run's files must hold: what is missing or of the wrong kind is named."""

import pytest

from pathseg.train.runs.expected import NUMBER, OBJECT, OBJECTS, SIZE, TEXT, WHOLE, check

TABLE = {"a": OBJECT, "a.*": OBJECT, "a.*.b": OBJECTS, "a.*.b.*.c": NUMBER, "d?": TEXT}
RIGHT = {"a": {"x": {"b": [{"c": 1}, {"c": 0.5}]}}}


def test_what_has_everything_passes():
    check({**RIGHT, "d": "text", "more": [1]}, TABLE, where="f.json")


def test_what_may_be_missing_may_be_missing():
    check(RIGHT, TABLE, where="f.json")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "f.json lacks a;"),
        ({"a": []}, "f.json is damaged: a must be an object, got \\[\\];"),
        ({"a": {"x": 1}}, "a.x must be an object, got 1"),
        ({"a": {"x": {}}}, "f.json lacks a.x.b;"),
        ({"a": {"x": {"b": [1]}}}, "a.x.b must be a list of objects"),
        ({"a": {"x": {"b": [{"c": 1}, {}]}}}, "f.json lacks a.x.b.1.c;"),
        ({"a": {"x": {"b": [{"c": "many"}]}}}, "a.x.b.0.c must be a number, got 'many'"),
        ({**RIGHT, "d": None}, "d must be text, got None"),
    ],
)
def test_file_and_key_are_named(value, words):
    with pytest.raises(ValueError, match=words):
        check(value, TABLE, where="f.json")


def test_all_that_is_missing_is_named_at_once():
    with pytest.raises(ValueError, match="lacks a, b;"):
        check({}, {"a": TEXT, "b": TEXT}, where="f.json")


def test_a_long_value_is_cut_short():
    with pytest.raises(ValueError, match=r"got 'x+\.\.\.;"):
        check({"a": "x" * 1000}, {"a": WHOLE}, where="f.json")


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf")])
def test_what_looks_like_a_number_but_is_none_is_refused(value):
    assert not NUMBER.holds(value)


@pytest.mark.parametrize("value", [[256], [256, 0], [256.0, 256], "ab", None])
def test_a_size_is_two_whole_numbers_above_zero(value):
    assert SIZE.holds([256, 512]) and not SIZE.holds(value)
