"""Read cache on the local disk for stores in S3."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import platformdirs

from pathseg.store.errors import StoreError
from pathseg.store.records import checksum
from pathseg.store.runtime.regular_files import open_file

ENTRIES = "s3-reads"  # sub-folder of the cache folder, which may hold other things
NOT_KEPT = "what is read from S3 is not kept on the local disk"
FILE = re.compile(r"[0-9]+-[0-9a-f]{8}(\.[0-9a-f]{32}\.partial)?")  # index and checksum; while it is being written
DISK_SHARE = 0.5  # default limit, as a share of the disk space that is free or used by the cache


class CacheUnavailable(StoreError):
    """There is no folder in which a cache could be."""


class ReadCache:
    """Arrays as they were read, one file each, found by name and checksum; a file that does not fit it is not used.

    They lie in a sub-folder of the cache folder. Other files, there or beside it, are neither counted nor deleted.

    A name with its checksum always stands for the same bytes, so entries never go out of date. When the cache is full,
    files that were last used before this process opened it are deleted, least recently used first; files used since
    stay, and further arrays are not cached: training reads all images in random order, so evicting one for another
    gains nothing.
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int | None = None) -> None:
        """folder: the user's cache folder by default. limit_bytes: by default half of the free disk space.

        Raises CacheUnavailable for a folder that cannot be made or written, and where the user's is not known.
        """
        self._arguments = folder, limit_bytes
        self.folder = folder or user_cache_folder()
        self._entries = self.folder / ENTRIES
        try:
            self._entries.mkdir(parents=True, exist_ok=True)
            used = sum(size for _, size, _ in self._files())
            self.limit_bytes = limit_bytes or int(DISK_SHARE * (shutil.disk_usage(self.folder).free + used))
            os.utime(self._entries)
            self._opened_at = self._entries.stat().st_mtime  # by the clock of the file system, as the files' own times
            if not os.access(self._entries, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as e:
            way_out = (
                "set XDG_CACHE_HOME, or pass --cache-dir to a training command"
                if folder is None
                else ("pass another --cache-dir")
            )
            raise CacheUnavailable(
                f"the cache folder {self._entries} cannot be written ({e.strerror or e}); {way_out}"
            ) from e
        self._granted_bytes = 0  # that may be written before the folder is listed again
        self._too_large_bytes = float("inf")  # size of an array that did not fit

    def __reduce__(self) -> tuple[Callable, tuple]:
        """Pickle the arguments only: another process takes its own default folder and limit.

        Where it cannot, it gets None in place of the cache, and a warning.
        """
        return _unpickled, self._arguments

    def get(self, name: str, crc: int, *, shape: Sequence[int], dtype: np.dtype) -> np.ndarray | None:
        """Return the array cached under a name with this CRC-32C, None when there is none; delete a damaged one."""
        path = self._path(name, crc)
        try:
            with open_file(path) as file:
                values = np.fromfile(file, dtype)
            if values.size == np.prod(shape) and checksum(values) == crc:
                os.utime(path)
                return values.reshape(shape)
            path.unlink()
        except OSError:  # not cached, or just deleted by another process
            pass
        return None

    def put(self, name: str, crc: int, values: np.ndarray) -> None:
        """Cache an array if it fits. A failed write is no error: the store can be read again."""
        if values.nbytes >= self._too_large_bytes or not self._grant(values.nbytes):
            return
        path = self._path(name, crc)
        partial_path = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            partial_path.parent.mkdir(parents=True, exist_ok=True)
            values.tofile(partial_path)
            partial_path.replace(path)
        except OSError:
            self._too_large_bytes = 0
            with contextlib.suppress(OSError):
                partial_path.unlink()

    def _path(self, name: str, crc: int) -> Path:
        return self._entries / f"{name}-{crc:08x}"

    def _grant(self, size_bytes: int) -> bool:
        """Return whether so many bytes may be written, after deleting old files if need be."""
        if size_bytes > self._granted_bytes:
            files = sorted(self._files())
            used = sum(size for _, size, _ in files)
            for used_at, size, path in files:
                if used + size_bytes <= self.limit_bytes or used_at >= self._opened_at:
                    break
                with contextlib.suppress(OSError):
                    path.unlink()
                used -= size
            # a share at a time, so that several processes with one folder keep the limit together
            self._granted_bytes = min(self.limit_bytes - used, max(size_bytes, self.limit_bytes // 20))
        if size_bytes > self._granted_bytes:
            self._too_large_bytes = size_bytes
            return False
        self._granted_bytes -= size_bytes
        return True

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return time of last use, bytes and path of every file of the cache; what others put there is not counted."""
        files = []
        for base, _, names in os.walk(self._entries):
            for name in filter(FILE.fullmatch, names):
                path = Path(base, name)
                with contextlib.suppress(OSError):
                    state = path.lstat()
                    if stat.S_ISREG(state.st_mode):
                        files.append((state.st_mtime, state.st_size, path))
        return files


def cache_for(
    store: str | os.PathLike[str], folder: Path | None = None, *, on_note: Callable[[str], object] = warnings.warn
) -> ReadCache | None:
    """Return a read cache for a store with a URL such as s3://bucket/prefix, None for one in a local folder.

    Also None where there can be no cache. on_note: called with a line that says so; by default it is a warning.
    """
    if "://" not in os.fspath(store):
        return None
    try:
        return ReadCache(folder)
    except CacheUnavailable as e:
        on_note(f"{NOT_KEPT}: {e}")
        return None


def user_cache_folder() -> Path:
    """Return `<user cache dir>/pathseg`. Raises CacheUnavailable where the user has no known home folder."""
    try:
        return platformdirs.user_cache_path("pathseg", appauthor=False)
    except RuntimeError as e:
        raise CacheUnavailable(
            "the user's cache folder is not known because HOME is not set; set HOME or XDG_CACHE_HOME, or pass "
            "--cache-dir to a training command"
        ) from e


def _unpickled(folder: Path | None, limit_bytes: int | None) -> ReadCache | None:
    """Open the cache that another process has sent."""
    try:
        return ReadCache(folder, limit_bytes=limit_bytes)
    except CacheUnavailable as e:
        warnings.warn(f"{NOT_KEPT}: {e}", stacklevel=2)
        return None
