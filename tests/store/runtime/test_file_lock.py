import subprocess
import sys
import time

from pathseg.store.runtime.file_lock import file_lock

HOLD = """
import sys, time
from pathlib import Path
from pathseg.store.runtime.file_lock import file_lock
with file_lock(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    path = tmp_path / "a.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with file_lock(path, wait=False) as alone:
            assert not alone
        other.kill()
    started = time.monotonic()
    with file_lock(path, wait=True) as alone:
        assert alone
    assert time.monotonic() - started < 10


def test_the_lock_leaves_no_file(tmp_path):
    with file_lock(tmp_path / "new" / "a.lock", wait=True):
        pass
    assert not list((tmp_path / "new").iterdir())
