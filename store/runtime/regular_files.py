"""Opening files for reading, and nothing else: reading a named pipe or a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file for reading. Raises OSError, with the number ESPIPE for a named pipe, a device or a socket."""
    return open(path, "rb", opener=_open_regular)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file. Raises as `open_file`, and OSError naming a file that the disk cannot read."""
    with errors_naming(path), open_file(path) as file:
        return file.read()


@contextmanager
def errors_naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let each OSError inside name a file: errors of reading, as of a broken disk, and some libraries' name none."""
    try:
        yield
    except OSError as e:
        if e.errno is None:  # safetensors' have a text alone
            raise OSError(errno.EIO, str(e), os.fspath(path)) from e
        e.filename = e.filename or os.fspath(path)
        raise


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # or opening a pipe would wait for a writer
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # `open` itself refuses a folder
        return descriptor
    os.close(descriptor)
    raise OSError(errno.ESPIPE, "a named pipe or a device lies where a file should; replace it", path)
