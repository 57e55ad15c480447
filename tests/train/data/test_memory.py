import pytest
import torch

from pathseg.train.data import memory
from pathseg.train.data.memory import free_machine_memory, rooms

CPU = torch.device("cpu")
GB = 2**30


@pytest.mark.parametrize(
    ("allowed", "gpu", "machine"), [(None, 50, 500), (30, 30, 0), (80, 50, 30), (0, 0, 0)], ids=str
)
def test_a_gpu_is_filled_first_and_never_by_more_than_half(monkeypatch, allowed, gpu, machine):
    monkeypatch.setattr(memory, "free_memory", lambda device: 100 if device.type == "cuda" else 1000)
    assert rooms(torch.device("cuda"), allowed) == {torch.device("cuda"): gpu, CPU: machine}


def test_a_cpu_may_be_given_more_than_half(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    assert (rooms(CPU, None), rooms(CPU, 900)) == ({CPU: 500}, {CPU: 900})


@pytest.fixture
def system(tmp_path):
    """A function that writes the files in which a Linux system says what memory it has, below one folder."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


MEMINFO = (
    "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   16777216 kB\nHugePages_Total:       0\n"
)


def group(root, name, *, limit, used, stat="anon 5\n"):
    folder = root / "sys/fs/cgroup" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in {"memory.max": limit, "memory.current": used, "memory.stat": stat}.items():
        (folder / file).write_text(f"{text}\n")


def test_files_that_the_system_holds_in_memory_are_free(system):
    assert free_machine_memory(system(proc__meminfo=MEMINFO)) == 16 * GB  # MemAvailable, not MemFree


def test_a_control_group_allows_less(system):
    root = system(proc__meminfo=MEMINFO, proc__self__cgroup="9:memory:/old\n0::/job/step\n")
    group(root, "job/step", limit=8 * GB, used=3 * GB)
    assert free_machine_memory(root) == 5 * GB


def test_files_that_a_control_group_holds_in_memory_are_free(system):
    root = system(proc__meminfo=MEMINFO, proc__self__cgroup="0::/\n")
    group(root, "", limit=8 * GB, used=8 * GB, stat=f"anon {GB}\ninactive_file {4 * GB}\nactive_file {2 * GB}")
    assert free_machine_memory(root) == 6 * GB


def test_the_groups_above_count_and_those_without_a_limit_do_not(system):
    root = system(proc__meminfo=MEMINFO, proc__self__cgroup="0::/job/step\n")
    group(root, "job/step", limit="max", used=3 * GB)
    group(root, "job", limit=4 * GB, used=3 * GB)
    assert free_machine_memory(root) == GB


def test_a_control_group_that_is_full_leaves_nothing(system):
    root = system(proc__meminfo=MEMINFO, proc__self__cgroup="0::/a\n")
    group(root, "a", limit=GB, used=GB + 1)
    assert free_machine_memory(root) == 0


@pytest.mark.parametrize("text", [None, "MemTotal: 5 kB\n"])
def test_a_system_without_such_files_says_what_is_not_used(system, monkeypatch, text):
    root = system(**{} if text is None else {"proc__meminfo": text})
    monkeypatch.setattr(memory.os, "sysconf", {"SC_AVPHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free_machine_memory(root) == 3 * 4096
