"""A store in a local folder."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zarr.storage import LocalStore

try:
    import fcntl
except ImportError:  # Windows has no such lock; there two writers are not told apart
    fcntl = None

PARTIAL = ".partial"  # the suffix of what is being written, here and by zarr; nothing with its final name is unfinished


class LocalFolder:
    """A `Location` on a local (or mounted) file system."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.root = Path(path).expanduser().resolve()

    def __str__(self) -> str:
        return str(self.root)

    def zarr(self, *, read_only: bool) -> LocalStore:
        return LocalStore(self.root, read_only=read_only)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
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

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def names(self, folder: str = "") -> Iterator[str]:
        top = len(str(self.root)) + 1
        for base, _, files in os.walk(self.root / folder):
            prefix = f"{base[top:]}/" if len(base) > top else ""
            yield from (f"{prefix}{file}" for file in files)

    def sizes(self) -> dict[str, int]:
        return {name: (self.root / name).stat().st_size for name in self.names()}

    def free_bytes(self) -> int:
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """A kernel lock on the folder itself: it goes with the process, however that ends, and leaves no file."""
        if fcntl is None:
            yield True
            return
        folder = os.open(self.root, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                alone = False
            if alone:
                self._sweep()
            fcntl.flock(folder, fcntl.LOCK_SH)
            yield alone
        finally:
            os.close(folder)

    def _sweep(self) -> None:
        for name in [name for name in self.names() if name.endswith(PARTIAL)]:
            self.remove(name)
