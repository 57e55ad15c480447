import pytest

from pathseg.store.blocks import array_name, format_blocks, parse_blocks, parse_selection, select_blocks


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("4-6", (4, 5, 6)),
        ("0,4-6", (0, 4, 5, 6)),
        ("12", (12,)),
        ("6,4,5,5", (4, 5, 6)),
        ("5,11,17,23", (5, 11, 17, 23)),
    ],
)
def test_a_selection_reads_as_ascending_numbers(text, blocks):
    assert parse_blocks(text) == blocks


@pytest.mark.parametrize("text", ["", "100", "4-100", "6-4", "a", "all", "-1", "4--6", "4-", "1.5"])
def test_what_is_no_selection_is_refused(text):
    with pytest.raises(ValueError, match="blocks"):
        parse_blocks(text)


@pytest.mark.parametrize(
    ("text", "blocks"), [("all", (2, 5, 8)), (" last", (8,)), ("4-6", (4, 5, 6))]
)  # of a store with blocks 2, 5 and 8
def test_all_and_last_are_those_that_there_are(text, blocks):
    assert select_blocks(parse_selection(text), [8, 2, 5]) == blocks


@pytest.mark.parametrize(("blocks", "text"), [((4, 5, 6), "4-6"), ((0, 4, 5, 6), "0,4-6"), ((3,), "3"), ((), "")])
def test_a_selection_is_written_short(blocks, text):
    assert format_blocks(blocks) == text


def test_arrays_are_named_as_the_interface_says():
    assert array_name(50, 4) == "t50/block04"
    assert array_name(200, 12) == "t200/block12"
