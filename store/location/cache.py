"""A cache on this machine's disk for what is read from a store far away."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import platformdirs

from pathseg.store.records import checksum

SHARE = 0.5  # of the disk space that is free or already the cache's


class ReadCache:
    """Arrays as they were read, one file each, found by name and checksum: what does not fit its checksum is not used.

    A name with its checksum always means the same bytes, so nothing here goes out of date. When the cache is full,
    what was last used before this process began goes, longest unused first; what was used since stays, and the rest
    is read from afar: training takes all images in ever new orders, so to put one out for another gains nothing.
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int | None = None) -> None:
        """By default in the user's cache folder, and as large as half of the disk space that it finds."""
        self.folder = folder or platformdirs.user_cache_path("pathseg", appauthor=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        used = sum(size for _, size, _ in self._files())
        self.limit_bytes = limit_bytes or int(SHARE * (shutil.disk_usage(self.folder).free + used))
        os.utime(self.folder)
        self._opened = self.folder.stat().st_mtime  # by the clock of the file system, as the files' own times
        self._room = 0  # bytes that may be written before the folder is looked through again
        self._too_large = float("inf")  # bytes for which there was no room

    def get(self, name: str, crc: int, *, shape: Sequence[int], dtype: np.dtype) -> np.ndarray | None:
        """What was kept under a name with this CRC-32C; None, and gone, when it is not just that."""
        path = self._path(name, crc)
        try:
            values = np.fromfile(path, dtype)
            if values.size == np.prod(shape) and checksum(values) == crc:
                os.utime(path)
                return values.reshape(shape)
            path.unlink()
        except OSError:  # not there, or just taken away by another process
            pass
        return None

    def put(self, name: str, crc: int, values: np.ndarray) -> None:
        """Keep an array if there is room. A disk that does not take it is no error: the store can be read again."""
        if values.nbytes >= self._too_large or not self._make_room(values.nbytes):
            return
        path = self._path(name, crc)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            values.tofile(partial)
            partial.replace(path)
        except OSError:
            self._too_large = 0
            with contextlib.suppress(OSError):
                partial.unlink()

    def _path(self, name: str, crc: int) -> Path:
        return self.folder / f"{name}-{crc:08x}"

    def _make_room(self, size_bytes: int) -> bool:
        if size_bytes > self._room:
            files = sorted(self._files())
            used = sum(size for _, size, _ in files)
            for used_at, size, path in files:
                if used + size_bytes <= self.limit_bytes or used_at >= self._opened:
                    break
                with contextlib.suppress(OSError):
                    path.unlink()
                used -= size
            # a share at a time, so that several processes with one folder keep the limit together
            self._room = min(self.limit_bytes - used, max(size_bytes, self.limit_bytes // 20))
        if size_bytes > self._room:
            self._too_large = size_bytes
            return False
        self._room -= size_bytes
        return True

    def _files(self) -> list[tuple[float, int, Path]]:
        """When it was last used, bytes and path of every file."""
        files = []
        for base, _, names in os.walk(self.folder):
            for name in names:
                path = Path(base, name)
                with contextlib.suppress(OSError):
                    state = path.stat()
                    files.append((state.st_mtime, state.st_size, path))
        return files


def cache_for(store: str | os.PathLike[str], folder: Path | None = None) -> ReadCache | None:
    """A cache for a store with an address such as s3://bucket/prefix, none for one in a folder."""
    return ReadCache(folder) if "://" in os.fspath(store) else None
