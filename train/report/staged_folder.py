"""A folder whose files are replaced together: new ones are written under temporary names and renamed at the end."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from pathseg.store.runtime.file_lock import file_lock

PARTIAL = ".partial"
LOCK = ".lock"
MAX_BYTES = 200  # of a file name without suffix; file systems take 255


def file_name(name: str) -> str:
    """Return a name for a file: letters that are unsafe there become `_`, long names are cut.

    A name that was changed gets a digest of the original, so that no two names give one file.
    """
    safe = "".join(
        letter if letter.isalnum() or letter in "-_.+=," else "_" for letter in unicodedata.normalize("NFC", name)
    )
    stem, dot, suffix = safe.rpartition(".")
    stem = stem.encode()[:MAX_BYTES].decode(errors="ignore")
    safe = f"{stem}{dot}{suffix}"
    if safe == name:
        return name
    return f"{stem}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}{dot}{suffix}"


class StagedFolder:
    """The next state of a folder: `add` files, then `publish`; until then the old files stay as they are.

    Used in a `with` block, whose end removes files that were not published, also those of an earlier killed process.
    Another process that stages the same folder waits at the start of the block.
    """

    def __init__(self, folder: Path, *, owned: Sequence[str]) -> None:
        """folder: made if it is missing. owned: patterns of the file names that `publish` may remove."""
        self.folder = folder
        self._owned = tuple(owned)
        self._added: list[str] = []
        self._lock = ExitStack()

    def __enter__(self) -> StagedFolder:
        self._lock.enter_context(file_lock(self.folder / LOCK, wait=True))
        self._remove_partial()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._remove_partial()

    def add(self, name: str, content: bytes) -> None:
        """Write a file under a temporary name, named as `file_name` says; adding a name twice keeps the second."""
        name = file_name(name)
        (self.folder / f"{name}{PARTIAL}").write_bytes(content)
        if name not in self._added:
            self._added.append(name)

    def publish(self) -> None:
        """Rename all added files, in the order they were added, then remove older files that are owned."""
        for name in self._added:
            (self.folder / f"{name}{PARTIAL}").replace(self.folder / name)
        for pattern in self._owned:
            for path in sorted(self.folder.glob(pattern)):
                if path.name not in self._added:
                    path.unlink()

    def _remove_partial(self) -> None:
        for pattern in self._owned:
            for path in self.folder.glob(f"{pattern}{PARTIAL}"):
                path.unlink()
