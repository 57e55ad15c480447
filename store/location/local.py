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

try:
    import fcntl
except ImportError:  # Windows has no such lock; there two writers are not told apart
    fcntl = None

NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # NFS refuses them on a folder
RECORDS = "_done"  # the folder whose lock says that somebody writes; the root's, that the description changes
PARTIAL = ".partial"  # the suffix of what is being written, here and by zarr; nothing with its final name is unfinished


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
            with _new(partial) as file:
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
        with _folder(self.root) as folder:
            _lock(folder)
            yield

    @contextmanager
    def writer_lock(self) -> Iterator[bool]:
        """Kernel locks on folders: they go with the process, however that ends, and leave no file."""
        with _folder(self.root / RECORDS) as folder:
            alone = _lock(folder, wait=False)
            if alone:
                with self.metadata_lock():
                    self._sweep()
            _lock(folder, shared=True)
            yield alone is not False

    def _sweep(self) -> None:
        for name in [name for name in self.names() if name.endswith(PARTIAL)]:
            self.remove(name)


def _new(path: Path) -> BufferedIOBase:
    """A new file, its folder made if need be."""
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


@contextmanager
def folder_lock(path: Path) -> Iterator[bool]:
    """Take a folder, which is made if need be, for a time; gives False when another process has it."""
    with _folder(path) as folder:
        yield _lock(folder, wait=False) is not False


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder, which is made if need be; none where folders cannot be locked, nor opened."""
    path.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield -1
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(folder: int, *, shared: bool = False, wait: bool = True) -> bool | None:
    """Lock a folder until it is closed. False when somebody else has it, None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(folder, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise
        return None
    return True
