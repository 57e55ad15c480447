"""The location of a store: a local folder or a prefix in S3, with atomic writes of small files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from io import BufferedIOBase
from typing import Protocol

from zarr.abc.store import Store

from pathseg.store.errors import StoreError


class Location(Protocol):
    """Files below a folder or URL prefix. Names are relative, with forward slashes; `str()` gives the path or URL.

    concurrency: how many reads or writes to run at the same time. min_concurrent_bytes: total size from which threads
    pay off.
    """

    concurrency: int
    min_concurrent_bytes: int

    def zarr(self, *, read_only: bool) -> Store:
        """Return a Zarr store of these files."""

    def exists(self, name: str) -> bool:
        """Return whether a file exists."""

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Raises FileNotFoundError, Damaged where the disk cannot read it."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: it has its final name only once it is complete, on disk."""

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace the bytes of a small file (None where there is none) by `change` of them (None: leave it unchanged).

        Changes that others make at the same time are not lost: locally within `metadata_lock`; in S3 `change` is called
        again on their result.
        """

    def open(self, name: str, start: int = 0, size_bytes: int | None = None) -> AbstractContextManager[BufferedIOBase]:
        """Open a file for reading from byte `start`, at most `size_bytes` of it. Raises FileNotFoundError.

        A negative `start` counts from the end, or is the first byte of a file with fewer; then without `size_bytes`.
        """

    def create(self, name: str) -> AbstractContextManager[BufferedIOBase]:
        """Open a file for writing; it has its final name only once the `with` block has ended without an error.

        Its bytes are on disk by then, its name after `flush`.
        """

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def obstacle(self, name: str) -> str | None:
        """Return why a file can neither be written nor removed, with the way out; None where it can.

        A folder lies there, or a link leads out of the store. `write`, `create` and `remove` raise StoreError then.
        """

    def flush(self, names: Iterable[str]) -> None:
        """Flush the folders of files that were written to the disk, so that a power failure does not undo them."""

    def names(self, folder: str = "") -> Iterator[str]:
        """List all files below a folder, as names from the root; none when there is no such folder."""

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file by name."""

    def free_bytes(self) -> int | None:
        """Return the free bytes, None where there is no such limit."""

    def metadata_lock(self) -> AbstractContextManager[None]:
        """Lock the descriptions of the store while they are changed; waits for others. S3 has no locks."""

    def writer_lock(self, *, exclusive: bool = False) -> AbstractContextManager[bool]:
        """Hold during a run that writes; gives False when another run is writing to the store.

        Otherwise removes the half-written files of killed runs first. Runs that write share the lock; they wait while
        it is held `exclusive`, which itself does not wait. S3 has no locks: always True.
        """


def open_location(path: str | os.PathLike[str] | Location) -> Location:
    """Return the location of a local path or `s3://bucket/prefix`. Raises StoreError for another kind of URL."""
    if not isinstance(path, str | os.PathLike):
        return path
    kind, separator, _ = os.fspath(path).partition("://")
    if not separator:
        from pathseg.store.location.local import LocalFolder

        return LocalFolder(path)
    if kind == "s3":
        from pathseg.store.location.s3 import S3Prefix

        return S3Prefix(os.fspath(path))
    raise StoreError(f"cannot open {path}: a store is a local folder or s3://bucket/prefix")
