"""Errors of the feature store."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNREADABLE = (  # what a disk with bad sectors answers, and what a folder, pipe or loop of links in place of a file does
    errno.EIO,
    errno.EBADMSG,
    errno.ENODATA,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ESPIPE,
    *([errno.EUCLEAN] if hasattr(errno, "EUCLEAN") else []),
)


class StoreError(Exception):
    """The store cannot be used; the message names the store, the reason and the way out."""


class KeyMismatch(StoreError):
    """The store holds features of another model, data set or setting than the requested ones."""


class Incomplete(StoreError):
    """The requested images or blocks are not in the store yet."""


class Damaged(StoreError):
    """The content of the store is not what was written."""


@contextmanager
def unreadable_as_damage(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise Damaged where the disk cannot read a file, or something else lies there; other errors pass."""
    try:
        yield
    except FileNotFoundError as e:
        if Path(path).is_symlink():
            raise Damaged(f"{path} is a link to {Path(path).readlink()}, which is not there") from e
        raise
    except OSError as e:
        if e.errno not in UNREADABLE:
            raise
        raise Damaged(f"{path} cannot be read: {e.strerror}") from e
