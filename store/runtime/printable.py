"""Foreign text: names of files to compare, names and messages of other libraries for terminals and pages."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # invisible letters that Persian and Indian scripts are written with


def printable(text: str) -> str:
    r"""Return a text with every letter that is not printable as its escape (`\x1b`, `\u202e`); line ends stay.

    So no name can send a terminal commands or turn the direction of the text around it.
    """
    if text.isprintable():  # much faster, of a picture in the page too
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" or letter in JOINERS
        else letter.encode("unicode_escape").decode()
        for letter in text
    )  # fmt: skip


def composed(name: str) -> str:
    """Return a name in composed Unicode (NFC), in which names are compared: file systems differ in the form."""
    return unicodedata.normalize("NFC", name)
