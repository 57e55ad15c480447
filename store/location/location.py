"""Where a store lies: a folder or a prefix in S3, its small files written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import BufferedIOBase
from typing import Protocol

from zarr.abc.store import Store

from pathseg.store.errors import StoreError


class Location(Protocol):
    """A place for files. Names are relative, with forward slashes; `str()` of it is what a user would write.

    Reads and writes overlap well up to `concurrency` of them, unless they are of less than `min_concurrent_bytes` together.
    """

    concurrency: int
    min_concurrent_bytes: int

    def zarr(self, *, read_only: bool) -> Store:
        """The Zarr store over it."""

    def exists(self, name: str) -> bool:
        """Whether a file is there."""

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file: it has its final name only once it is whole."""

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Write what `change` makes of a small file's bytes, None: it is not there, it stays as it is.

        What others change at the same time is not lost: on a disk within `changing`, in S3 `change` is asked again.
        """

    def open(self, name: str, start: int = 0, size_bytes: int | None = None) -> AbstractContextManager[BufferedIOBase]:
        """A file to read from, from a place on, of which no more than that is wanted. Raises FileNotFoundError."""

    def create(self, name: str) -> AbstractContextManager[BufferedIOBase]:
        """A file to write to, which has its final name only once the `with` block has ended well."""

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""

    def names(self, folder: str = "") -> Iterator[str]:
        """All files below a folder, as names from the root. Nothing when there is no such folder."""

    def sizes(self) -> dict[str, int]:
        """Bytes of each file by name."""

    def free_bytes(self) -> int | None:
        """Free bytes, None where there is no such limit."""

    def metadata_lock(self) -> AbstractContextManager[None]:
        """For the short time in which the store's own description is changed: where it can be, by nobody else."""

    def writer_lock(self) -> AbstractContextManager[bool]:
        """For the time of a run that writes: sweep what a killed run left. Gives False when another run is writing."""


def open_location(path: str | os.PathLike[str] | Location) -> Location:
    """A local path, or `s3://bucket/prefix`. Raises StoreError for another kind of address."""
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
