"""Values of options that hold for all stores, or for each by its name."""

import pytest

from pathseg.store.blocks import parse_selection
from pathseg.store.runtime.flags import parse_by_store


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
