"""A store in a local folder."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from pathseg.store.errors import StoreError, unreadable_as_damage
from pathseg.store.format.names import FOLDER, HALF_WRITTEN, SUBFOLDER
from pathseg.store.runtime.atomic_files import PARTIAL
from pathseg.store.runtime.regular_files import open_file, read_file
from pathseg.store.runtime.workspace import expand_home

try:
    import fcntl
except ImportError:  # Windows has no such lock: two writers do not notice each other there
    fcntl = None  # type: ignore[assignment]

LOCKS_UNSUPPORTED = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # on folders, as on NFS
POLL_S = 0.1  # between attempts to get a lock that another run holds for a moment


class LocalFolder:
    """A `Location` on a local (or mounted) file system."""

    concurrency, min_concurrent_bytes = 4, 2**25  # below that, starting threads takes longer than they save

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.root = expand_home(path).resolve()

    def __str__(self) -> str:
        return str(self.root)

    def zarr(self, *, read_only: bool) -> LocalStore:
        return _FlushedLocalStore(self.root, read_only=read_only)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        with unreadable_as_damage(self.root / name):
            return read_file(self.root / name)

    def write(self, name: str, data: bytes) -> None:
        with self.create(name) as file:
            file.write(data)

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        data = change(self.read(name) if self.exists(name) else None)
        if data is not None:
            self.write(name, data)

    @contextmanager
    def open(self, name: str, start: int = 0, size_bytes: int | None = None) -> Iterator[BufferedIOBase]:
        # thousands a second: making a Path takes a tenth of the time of reading a small chunk
        path = os.path.join(self.root, name)  # noqa: PTH118
        with unreadable_as_damage(path), open_file(path) as file:
            file.seek(start if start >= 0 else max(0, start + file.seek(0, os.SEEK_END)))
            yield file

    @contextmanager
    def create(self, name: str) -> Iterator[BufferedIOBase]:
        target = self._writable(name)
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with _create(partial) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        self._writable(name).unlink(missing_ok=True)

    def obstacle(self, name: str) -> str | None:
        path = self.root / name
        try:
            folder = path.parent.resolve()
        except (OSError, RuntimeError):
            return f"{path.parent} is a loop of links; replace it by the folder"
        if not folder.is_relative_to(self.root):
            return f"it lies outside of the store, in {folder}, where pathseg changes nothing; bring that folder back"
        if path.is_dir() and not path.is_symlink():
            return "a folder lies where this file should; move it away"
        above = next(above for above in path.parents if above.exists() or above == self.root)
        if above.exists() and not above.is_dir():
            return f"{above} is a file where a folder should be; move it away"
        return None

    def _writable(self, name: str) -> Path:
        """Return the path of a file that may be written or removed. Raises StoreError."""
        if obstacle := self.obstacle(name):
            raise StoreError(f"{self.root / name} cannot be changed: {obstacle}")
        return self.root / name

    def flush(self, names: Iterable[str]) -> None:
        if fcntl is None:  # Windows cannot open folders, and flushes names with the files
            return
        above: set[str] = set()
        for name in names:
            while name and (name := name.rpartition("/")[0]) not in above:
                above.add(name)
        folders = [self.root.parent, *(self.root / name for name in above)]
        with ThreadPoolExecutor(self.concurrency) as pool:  # each thread takes its share: there are many small folders
            list(pool.map(_flush_folders, (folders[i :: self.concurrency] for i in range(self.concurrency))))

    def names(self, folder: str = "") -> Iterator[str]:
        """List files; of linked folders only those that have a name of the store's own, such as `t50/block04`."""
        top, followed = len(str(self.root)) + 1, set[Path]()  # each target once, or links in a circle would not end
        for base, folders, files in os.walk(self.root / folder, followlinks=True, onerror=_raise_unless_gone):
            prefix = f"{base[top:]}/" if len(base) > top else ""
            for name in [name for name in folders if Path(base, name).is_symlink()]:
                target = Path(base, name).resolve()
                if SUBFOLDER.fullmatch(f"{prefix}{name}") and target not in followed:
                    followed.add(target)
                else:
                    folders.remove(name)
                    files.append(name)
            yield from (f"{prefix}{file}" for file in files)

    def sizes(self) -> dict[str, int]:
        sizes = {}
        for name in self.names():
            with suppress(FileNotFoundError):  # a dead link, or just renamed by another run
                sizes[name] = (self.root / name).stat().st_size
        return sizes

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
    def writer_lock(self, *, exclusive: bool = False) -> Iterator[bool]:
        """Lock `_done` while a run writes, the root while metadata change: kernel locks, which end with the process."""
        with _opened(self.root / FOLDER) as descriptor:
            if exclusive:
                alone = _lock(descriptor, wait=False)
                if alone:
                    with self.metadata_lock():
                        self._remove_partial_files()
            else:
                alone = self._share_writer_lock(descriptor)
            yield alone is not False

    def _share_writer_lock(self, descriptor: int) -> bool | None:
        """Lock an open `_done` as one of the runs that write; return what `_lock` does for the first of them.

        Runs that start together take it one after the other, so that one of them is the first: the kernel exchanges an
        exclusive lock for a shared one in two steps, and a run that waited in the kernel would make others second.
        """
        while True:
            with self.metadata_lock():
                if _lock(descriptor, shared=True, wait=False) is not False:  # else it is held exclusive
                    alone = _lock(descriptor, wait=False)
                    if alone:
                        self._remove_partial_files()
                    if _lock(descriptor, shared=True, wait=False) is not False:
                        return alone
            time.sleep(POLL_S)

    def _remove_partial_files(self) -> None:
        for name in [name for name in self.names() if HALF_WRITTEN.fullmatch(name)]:
            if self.obstacle(name) is None:
                self.remove(name)


class RegularFilesStore(LocalStore):
    """Zarr's local store, which reads files alone: a chunk that is a named pipe raises OSError instead of waiting."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError), open_file(self.root / key):
            return await super().get(key, prototype, byte_range)
        return None


class _FlushedLocalStore(RegularFilesStore):
    """The same, writing as `LocalFolder.write` does: inside of the folder and flushed to the disk."""

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await asyncio.to_thread(LocalFolder(self.root).write, key, value.to_bytes())


def _flush_folders(paths: Iterable[Path]) -> None:
    for path in paths:
        _flush_folder(path)


def _flush_folder(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (PermissionError, FileNotFoundError):  # above the store; Zarr has not written a chunk of fill values
        return
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in LOCKS_UNSUPPORTED:  # file systems that cannot lock folders may not flush them either
            raise
    finally:
        os.close(descriptor)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


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
