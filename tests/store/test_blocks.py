import pytest

from pathseg.store.blocks import array_name, format_blocks, parse_blocks


@pytest.mark.parametrize(
    ("text", "blocks"),
    [("4-6", (4, 5, 6)), ("0,4-6", (0, 4, 5, 6)), ("12", (12,)), ("6,4,5,5", (4, 5, 6)), ("all", tuple(range(13)))],
)
def test_a_selection_reads_as_ascending_numbers(text, blocks):
    assert parse_blocks(text) == blocks


@pytest.mark.parametrize("text", ["", "13", "4-13", "6-4", "a", "-1", "4--6", "4-", "1.5"])
def test_what_is_no_selection_is_refused(text):
    with pytest.raises(ValueError, match="blocks"):
        parse_blocks(text)


@pytest.mark.parametrize(("blocks", "text"), [((4, 5, 6), "4-6"), ((0, 4, 5, 6), "0,4-6"), ((3,), "3"), ((), "")])
def test_a_selection_is_written_short(blocks, text):
    assert format_blocks(blocks) == text


def test_arrays_are_named_as_the_interface_says():
    assert array_name(50, 4) == "t50/block04"
    assert array_name(200, 12) == "t200/block12"
