import os

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
