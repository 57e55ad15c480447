from types import SimpleNamespace

import pytest

from pathseg.store.runtime import memory
from pathseg.store.runtime.memory import cgroup_limits, free_machine_memory

GB = 2**30


@pytest.fixture
def system(tmp_path):
    """A function that writes files of /proc and /sys below one folder."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def group(root, name, *, limit, used, stat="anon 5\n"):
    folder = root / "sys/fs/cgroup" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in {"memory.max": limit, "memory.current": used, "memory.stat": stat}.items():
        (folder / file).write_text(f"{text}\n")


def test_a_control_group_allows_less_than_the_machine_has(system):
    root = system(proc__self__cgroup="9:memory:/old\n0::/job/step\n")
    group(root, "job/step", limit=8 * GB, used=3 * GB)
    assert cgroup_limits(root) == [5 * GB]


def test_page_cache_of_a_control_group_is_free(system):
    root = system(proc__self__cgroup="0::/\n")
    group(root, "", limit=8 * GB, used=8 * GB, stat=f"anon {GB}\ninactive_file {4 * GB}\nactive_file {2 * GB}")
    assert cgroup_limits(root) == [6 * GB]


def test_file_names_that_a_control_group_keeps_are_free(system):
    root = system(proc__self__cgroup="0::/\n")
    group(root, "", limit=2 * GB, used=2 * GB, stat=f"anon {GB}\nslab_reclaimable {GB}\nslab_unreclaimable 5")
    assert cgroup_limits(root) == [GB]


def test_the_groups_above_count_and_those_without_a_limit_do_not(system):
    root = system(proc__self__cgroup="0::/job/step\n")
    group(root, "job/step", limit="max", used=3 * GB)
    group(root, "job", limit=4 * GB, used=3 * GB)
    assert cgroup_limits(root) == [GB]


def test_a_control_group_that_is_full_leaves_nothing(system):
    root = system(proc__self__cgroup="0::/a\n")
    group(root, "a", limit=GB, used=GB + 1)
    assert cgroup_limits(root) == [0]


def test_a_system_without_control_groups_has_no_such_limit(tmp_path):
    assert cgroup_limits(tmp_path) == []


@pytest.mark.parametrize(("limits", "free"), [([], 7), ([5, 9], 5)])
def test_free_machine_memory_is_the_least_of_machine_and_control_groups(monkeypatch, limits, free):
    monkeypatch.setattr(memory, "cgroup_limits", lambda: limits)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=7))
    assert free_machine_memory() == free
