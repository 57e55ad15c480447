"""A lock between processes, for the time that one of them writes a file or a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: processes do not notice each other there
    fcntl = None  # type: ignore[assignment]

LOCKS_UNSUPPORTED = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock on a file that exists for the lock alone; gives False, without `wait`, while another process has it.

    The kernel holds the lock, so it ends with its process, and the file, which then stays, is taken over. Locks hold
    between machines where the file system passes on `flock`, as NFS (with its lock service) and Lustre (mounted with
    `flock`) do. Where it knows no locks, True is given and nothing is locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield True
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            held = _flock(descriptor, wait=wait)
            if held and not _is_at(descriptor, path):  # removed by the process that held it while this one waited
                continue
            try:
                yield held
            finally:
                if held:
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _flock(descriptor: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as e:
        if e.errno not in LOCKS_UNSUPPORTED:
            raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
