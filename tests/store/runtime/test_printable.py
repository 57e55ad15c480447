import pytest

from pathseg.store.runtime.printable import printable


@pytest.mark.parametrize("text", ["plain", "two\nlines", "Drüse 腺 غدة می\u200cخواهم", "µm² ± −"])
def test_text_in_any_script_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"), ("a\rb", r"a\rb"), ("\u202egnp", r"\u202egnp"), ("\udc80", r"\udc80"),
        ("\x9b", r"\x9b"),
    ],
)  # fmt: skip
def test_what_a_terminal_would_obey_becomes_an_escape(text, shown):
    assert printable(text) == shown
