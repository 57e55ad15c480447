"""Where a store lies: a local folder, small files in it written whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from zarr.storage import LocalStore

from pathseg.store.errors import StoreError

PARTIAL = ".partial"  # the suffix of what is being written; nothing with its final name is unfinished


class Location:
    """A folder that holds a store. Names are relative, with forward slashes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if "://" in str(path):
            raise StoreError(f"cannot open {path}: a store is a local folder; pass a path")
        self.root = Path(path).expanduser().resolve()

    def __str__(self) -> str:
        return str(self.root)

    def zarr(self, *, read_only: bool) -> LocalStore:
        """The zarr store behind it."""
        return LocalStore(self.root, read_only=read_only)

    def exists(self, name: str = "zarr.json") -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError."""
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write a small file: it has its final name only once it is whole and on the disk."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def names(self, folder: str) -> Iterator[str]:
        """All files below a folder, as names from the root. Nothing when there is no such folder."""
        for base, _, files in os.walk(self.root / folder):
            relative = Path(base).relative_to(self.root).as_posix()
            yield from (f"{relative}/{file}" for file in files)

    def sweep(self) -> int:
        """Remove what an interrupted run left half written; how many files."""
        stray = [name for name in self.names(".") if name.endswith(PARTIAL)]
        for name in stray:
            (self.root / name).unlink(missing_ok=True)
        return len(stray)

    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum((self.root / name).stat().st_size for name in self.names("."))

    def free_bytes(self) -> int:
        """Free bytes on the file system that holds (or will hold) it."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free
