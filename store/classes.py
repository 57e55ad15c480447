"""Class names and codes: which class is the background."""

from __future__ import annotations

from collections.abc import Sequence


def background_code(classes: Sequence[str]) -> int | None:
    """Return the code of the class that is named `background` (case and surrounding blanks aside), None without one.

    For what people name themselves: the classes of a folder of images and those of stores of format 1. Everything
    else reads `Contents.background`.
    """
    names = [name.strip().lower() for name in classes]
    return names.index("background") if "background" in names else None


def object_class(classes: Sequence[str], *, background: int | None, ignore: int | None) -> int | None:
    """Return the code of the only class beside background and the ignored one, None where there are none or several.

    Object scores (GlaS) count the connected components of this class. Without a background there is none.
    """
    if background is None:
        return None
    others = [code for code in range(len(classes)) if code not in (background, ignore)]
    return others[0] if len(others) == 1 else None
