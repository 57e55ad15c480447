"""Runs of stage one that are killed, interrupted, out of space or doubled: nothing lost, nothing computed twice."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pathseg.store.verify import Verification

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked, which this system cannot do"),
]

MB = 2**20
DEFAULT = {"images": 10, "t": [10, 50], "layout": "native", "per_unit": 1}
RECORD = re.compile(r"_done/t(\d+)/[\d,-]+/(\d{6})\.json")


class Runs:
    """Starts runs of stage one in processes of their own, one at a time."""

    def __init__(self):
        script = Path(__file__).parents[1] / "crash_writer.py"
        self._server = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._server.stdout.readline() == "ready\n"

    def start(self, order):
        self._server.stdin.write(json.dumps(order) + "\n")
        self._pid = int(self._server.stdout.readline())

    def signal(self, number):
        """Send a signal unless the run has ended."""
        if not select.select([self._server.stdout], [], [], 0)[0]:
            os.kill(self._pid, number)

    def wait(self):
        """Exit code (negative: the signal that ended it) and peak memory in bytes."""
        code, peak = map(int, self._server.stdout.readline().split())
        return code, peak

    def run(self, order):
        self.start(order)
        return self.wait()

    def close(self):
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


@pytest.fixture(scope="module")
def runs():
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def others():
    others = Runs()
    yield others
    others.close()


@pytest.fixture
def order(tmp_path):
    """A small run; `order(name, ...)` names its store and log."""

    def make(name, **changes):
        return {"store": str(tmp_path / f"{name}.zarr"), "log": str(tmp_path / f"{name}.log"), **DEFAULT, **changes}

    return make


@pytest.fixture(scope="module")
def whole_files(runs, tmp_path_factory):
    """Name and bytes of every file of a store that was made without interruption."""
    made = {}

    def files(**changes):
        if (make := str(changes)) not in made:
            folder = tmp_path_factory.mktemp("whole")
            order = {"store": str(folder / "whole.zarr"), "log": str(folder / "whole.log"), **DEFAULT, **changes}
            assert runs.run(order)[0] == 0
            made[make] = files_of(order)
        return made[make]

    return files


def files_of(order):
    folder = Path(order["store"])
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def computed(order):
    """What the log says was computed: (image, t) for each forward pass."""
    path = Path(order["log"])
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


def recorded(order):
    """(image, t) of every image that has a completion record, as the names of the files have it."""
    folder, per_unit = Path(order["store"]), order["per_unit"]
    found = [RECORD.fullmatch(str(path.relative_to(folder))) for path in folder.glob("_done/t*/*/*.json")]
    units = [(int(match[1]), int(match[2])) for match in found if match]
    return {(image, t) for t, unit in units for image in range(unit * per_unit, (unit + 1) * per_unit)}


def error_of(order):
    """The last line of what a run that failed had to say."""
    return Path(order["log"]).with_suffix(".err").read_text().strip().splitlines()[-1]


def wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError


def kill_until_done(runs, order, rng, longest):
    """Start the run again and again, killing it after up to `longest` seconds; how often it was killed."""
    kills = 0
    while True:
        finished, before = recorded(order), len(computed(order))
        runs.start(order)
        time.sleep(rng.uniform(0, longest))
        runs.signal(signal.SIGKILL)
        code, _ = runs.wait()
        again = finished & set(computed(order)[before:])
        assert not again, "finished work was computed again"
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, error_of(order)
        kills += 1
        longest *= 1.02  # or a slow machine would never get through the start


def kill_runs(runs, order, whole_files, wanted, seed):
    """At least `wanted` kills over several stores of each make; every one ends as the uninterrupted store."""
    rng, kills, turn = np.random.default_rng(seed), 0, 0
    makes = [{}, {"layout": "grid", "t": [50]}, {"per_unit": 5}]
    while kills < wanted:
        make = makes[turn % len(makes)]
        cut, whole = order(f"cut{turn}", **make), whole_files(**make)
        kills += kill_until_done(runs, cut, rng, longest=0.4)
        assert files_of(cut) == whole
        assert set(computed(cut)) == {(image, t) for image in range(cut["images"]) for t in cut["t"]}
        assert Verification(cut["store"]).run() == []
        shutil.rmtree(cut["store"])
        turn += 1
    return kills


def test_killed_at_random_moments_a_store_ends_as_if_nothing_had_happened(runs, order, whole_files):
    assert kill_runs(runs, order, whole_files, wanted=4, seed=0) >= 4


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_many_kills_leave_no_trace(runs, order, whole_files, kills):
    assert kill_runs(runs, order, whole_files, wanted=kills, seed=1) >= kills


def kill_growths(runs, order, whole_files, wanted, seed):
    """At least `wanted` kills of runs that add images to a store and change its masks; see `kill_runs`."""
    rng, kills, turn = np.random.default_rng(seed), 0, 0
    while kills < wanted:
        per_unit = (1, 5)[turn % 2]
        grown = order(f"grown{turn}", per_unit=per_unit, classes=3)
        assert runs.run(grown | {"images": 5, "classes": 2})[0] == 0, error_of(grown)
        kills += kill_until_done(runs, grown, rng, longest=0.4)
        kept = {name: data for name, data in files_of(grown).items() if not name.startswith("_done/replaced/")}
        assert kept == whole_files(per_unit=per_unit, classes=3)
        assert sorted(computed(grown)[: 5 * 2]) == [(image, t) for image in range(5) for t in grown["t"]]
        assert {image for image, _ in computed(grown)[5 * 2 :]} == set(range(5, 10)), (
            "stored features were computed again"
        )
        assert Verification(grown["store"]).run() == []
        turn += 1
    return kills


@pytest.mark.parametrize("kills", [2, 20])
def test_a_store_killed_while_it_grows_ends_as_one_made_at_once(runs, order, whole_files, kills):
    assert kill_growths(runs, order, whole_files, wanted=kills, seed=2) >= kills


def test_an_interrupted_run_fails_and_the_next_goes_on(runs, order, whole_files):
    cut = order("cut")
    runs.start(cut)
    wait_for(lambda: len(computed(cut)) > 4)
    runs.signal(signal.SIGINT)
    code, _ = runs.wait()
    assert code == 1
    assert error_of(cut) == "KeyboardInterrupt"
    finished = recorded(cut)
    assert 0 < len(finished) < 20
    before = len(computed(cut))
    assert runs.run(cut)[0] == 0
    assert not finished & set(computed(cut)[before:])
    assert files_of(cut) == whole_files()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system takes root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free_bytes", [50_000, 1_000_000, 3_000_000])
def test_on_a_full_disk_a_run_says_so_and_goes_on_once_there_is_space(runs, order, whole_files, small_disk, free_bytes):
    cut = order("cut")
    cut |= {"store": str(small_disk / "cut.zarr")}
    assert runs.run(cut | {"free_bytes": free_bytes})[0] == 1
    assert error_of(cut) == "OSError: [Errno 28] No space left on device"
    assert {finding.kind for finding in Verification(cut["store"]).run()} <= {"missing", "stray"}
    assert not any(name.endswith(".partial") for name in files_of(cut))
    (small_disk / "ballast").unlink()
    finished, before = recorded(cut), len(computed(cut))
    assert runs.run(cut)[0] == 0
    assert not finished & set(computed(cut)[before:])
    assert files_of(cut) == whole_files()


@pytest.fixture
def mounted(tmp_path):
    """A folder that can be taken away while it is in use, and brought back: `mounted.away()`, `mounted.back()`."""
    disk = Mounted(tmp_path)
    try:
        disk.back()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a folder takes root on Linux")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.folder)], capture_output=True)  # a test may have left it away


class Mounted:
    def __init__(self, folder):
        self._there, self.folder = folder / "there", folder / "mounted"
        self._there.mkdir()
        self.folder.mkdir()

    def back(self):
        subprocess.run(["mount", "--bind", str(self._there), str(self.folder)], check=True, capture_output=True)

    def away(self):
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def test_when_the_disk_is_lost_a_run_says_so_and_goes_on_once_it_is_back(runs, order, whole_files, mounted):
    cut = order("cut", images=30)
    cut |= {"store": str(mounted.folder / "cut.zarr")}
    runs.start(cut)
    wait_for(lambda: len(recorded(cut)) > 4)
    mounted.away()
    assert runs.wait()[0] == 1
    store = re.escape(cut["store"])
    assert re.fullmatch(rf"pathseg.store.errors.StoreError: {store} is no longer there; .* run again", error_of(cut))
    mounted.back()
    finished, before = recorded(cut), len(computed(cut))
    assert 4 < len(finished) < 60
    assert {finding.kind for finding in Verification(cut["store"]).run()} <= {"missing", "stray"}
    assert runs.run(cut)[0] == 0
    assert not finished & set(computed(cut)[before:])
    assert files_of(cut) == whole_files(images=30)


def test_a_quota_that_is_too_small_harms_nothing(runs, order, whole_files):
    cut = order("cut")
    assert runs.run(cut | {"limit": 50_000})[0] == 1  # below the largest block of an image
    assert error_of(cut) == "OSError: [Errno 27] File too large"
    assert recorded(cut) == set()
    assert runs.run(cut)[0] == 0
    assert files_of(cut) == whole_files()


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_two_runs_that_start_at_once_share_the_work(runs, others, order, whole_files, turn):
    one = order("shared", images=40)
    other = one | {"log": one["log"].replace("shared", "other")}
    runs.start(one)
    others.start(other)
    assert (runs.wait()[0], others.wait()[0]) == (0, 0), (error_of(one), error_of(other))
    assert files_of(one) == whole_files(images=40)
    assert 80 <= len(computed(one)) + len(computed(other)) < 120  # 40 images at 2 timesteps; a few are done twice


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_when_one_of_two_runs_is_killed_the_other_ends_the_work(runs, others, order, whole_files, turn):
    one = order("shared", images=40)
    other = one | {"log": one["log"].replace("shared", "other")}
    runs.start(one)
    others.start(other)
    time.sleep(np.random.default_rng(turn).uniform(0.05, 0.5))
    runs.signal(signal.SIGKILL)
    runs.wait()
    assert others.wait()[0] == 0
    assert runs.run(one)[0] == 0  # sweeps what the killed one left
    assert files_of(one) == whole_files(images=40)


def test_memory_does_not_grow_with_the_number_of_images(runs, order):
    few, many = order("few", images=10, t=[50]), order("many", images=100, t=[50])
    peaks = [runs.run(few), runs.run(many)]
    assert [code for code, _ in peaks] == [0, 0]
    assert peaks[1][1] - peaks[0][1] < 30 * MB  # 90 more images and their features are 58 MB


@pytest.mark.parametrize(
    ("damaged", "work"), [("images/c/3/0/0/0", []), ("masks/c/0/0/0", []), ("t50/block05/c/3/0/0/0/0", [(3, 50)])]
)
def test_what_repair_dropped_is_made_again_and_nothing_else(runs, order, damaged, work):
    whole = order("whole")
    assert runs.run(whole)[0] == 0
    before, already = files_of(whole), computed(whole)
    path = Path(whole["store"]) / damaged
    path.write_bytes(path.read_bytes()[:-1])
    check = Verification(whole["store"])
    assert check.run()
    check.repair()
    assert runs.run(whole)[0] == 0
    assert files_of(whole) == before
    assert computed(whole)[len(already) :] == work
