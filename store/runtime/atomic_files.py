"""Atomic file writes: a file has its final name only once it is complete and on disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"  # suffix of the temporary name, in the same folder


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; what was there before stays until then. The folder is created if missing."""
    try:
        with atomic_path(path) as partial:
            partial.write_bytes(content)
    except OSError as e:
        if e.errno and not e.filename:  # as of a full disk
            e.filename = str(path)
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path for a writer that needs one; what was written there is renamed to `path` at the end.

    Files are flushed to the disk before the rename. The writer may also create a folder: then the old folder is deleted
    just before the rename. A file never replaces a folder: then IsADirectoryError is raised. After an error, the
    temporary file or folder is deleted and `path` is as it was. The temporary name is the same each time, so what a
    killed process left is replaced; two processes must not write the same path at once.
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.parent.mkdir(parents=True, exist_ok=True)
    _delete(partial)
    try:
        yield partial
        if partial.is_file():
            _flush(partial)
        if path.is_dir() and not partial.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder lies where this file should; move it away", str(path))
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    except BaseException:
        _delete(partial)
        raise


def _flush(path: Path) -> None:
    """Flush a file's content to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
