import errno
import os
from pathlib import Path

import pytest

from pathseg.store.runtime.regular_files import read_file


def test_the_content_of_a_file_and_of_a_linked_one_is_returned(tmp_path):
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "link").symlink_to("a")
    assert [read_file(tmp_path / name) for name in ("a", "link")] == [b"text"] * 2


def test_a_pipe_without_a_writer_and_a_device_without_an_end_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(OSError, match=rf"named pipe or a device.*{name}"):
            read_file(tmp_path / name)


def test_a_folder_is_refused_as_such(tmp_path):
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read, as of Linux")
def test_what_the_disk_cannot_read_is_named(tmp_path):
    (tmp_path / "file").symlink_to("/proc/self/mem")  # address 0 is not there: EIO, as of a bad sector
    with pytest.raises(OSError, match="file") as error:
        read_file(tmp_path / "file")
    assert error.value.errno == errno.EIO and error.value.filename == str(tmp_path / "file")
