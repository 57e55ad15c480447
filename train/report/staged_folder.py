"""New files for a folder that people read from: written beside the old ones, taking their place together at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

PARTIAL = ".partial"


class Edition:
    """The next state of a folder: `add` files, then `publish`. What was there stays whole until then.

    Used in a `with` block: what is not published by its end goes, and so does what a killed edition left.
    """

    def __init__(self, folder: Path, *, ours: Sequence[str]) -> None:
        """folder is made if need be; ours: patterns of names that an edition may remove."""
        self.folder = folder
        self._ours = tuple(ours)
        self._added: list[str] = []

    def __enter__(self) -> Edition:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._discard()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._discard()

    def add(self, name: str, content: bytes) -> None:
        """Write a file of the new edition under a temporary name; a letter that is odd in file names becomes `_`.

        Adding a name twice keeps the second.
        """
        name = "".join(letter if letter.isalnum() or letter in "-_.+=," else "_" for letter in name)
        (self.folder / f"{name}{PARTIAL}").write_bytes(content)
        if name not in self._added:
            self._added.append(name)

    def publish(self) -> None:
        """Give all added files their names, in the order they were added, then remove older files that are ours."""
        for name in self._added:
            (self.folder / f"{name}{PARTIAL}").replace(self.folder / name)
        for pattern in self._ours:
            for path in sorted(self.folder.glob(pattern)):
                if path.name not in self._added:
                    path.unlink()

    def _discard(self) -> None:
        for pattern in self._ours:
            for path in self.folder.glob(f"{pattern}{PARTIAL}"):
                path.unlink()
