"""A store in a local folder."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from zarr.storage import LocalStore

from pathseg.store.records import FOLDER
from pathseg.store.runtime.atomic_files import PARTIAL

try:
    import fcntl
except ImportError:  # Windows has no such lock: two writers do not notice each other there
    fcntl = None  # type: ignore[assignment]

LOCKS_UNSUPPORTED = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # on folders, as on NFS


class LocalFolder:
    """A `Location` on a local (or mounted) file system."""

    concurrency, min_concurrent_bytes = 4, 2**25  # below that, starting threads takes longer than they save

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
        with self.create(name) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        data = change(self.read(name) if self.exists(name) else None)
        if data is not None:
            self.write(name, data)

    def open(self, name: str, start: int = 0, size_bytes: int | None = None) -> BufferedIOBase:
        file = (self.root / name).open("rb")
        file.seek(start)
        return file

    @contextmanager
    def create(self, name: str) -> Iterator[BufferedIOBase]:
        target = self.root / name
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with _create(partial) as file:
                yield file
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
    def metadata_lock(self) -> Iterator[None]:
        with _opened(self.root) as descriptor:
            _lock(descriptor)
            yield

    @contextmanager
    def writer_lock(self) -> Iterator[bool]:
        """Lock `_done` while a run writes, the root while metadata change: kernel locks, which end with the process."""
        with _opened(self.root / FOLDER) as descriptor:
            alone = _lock(descriptor, wait=False)
            if alone:
                with self.metadata_lock():
                    self._remove_partial_files()
            _lock(descriptor, shared=True)
            yield alone is not False

    def _remove_partial_files(self) -> None:
        for name in [name for name in self.names() if name.endswith(PARTIAL)]:
            self.remove(name)


def _create(path: Path) -> BufferedIOBase:
    """Create a file, and its folder if it is missing."""
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


@contextmanager
def folder_lock(path: Path) -> Iterator[bool]:
    """Lock a folder, which is created if missing; gives False when another process holds the lock."""
    with _opened(path) as descriptor:
        yield _lock(descriptor, wait=False) is not False


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a folder, which is created if missing; -1 on systems where folders cannot be opened and locked."""
    path.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield -1
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool | None:
    """Lock an open folder until it is closed. False when another process holds it, None where locks are unsupported."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as e:
        if e.errno not in LOCKS_UNSUPPORTED:
            raise
        return None
    return True
