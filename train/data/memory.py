"""Memory that is still free, as far as the system says, and what of it features may fill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

CPU = torch.device("cpu")
KEEP_SHARE = 0.5  # of the memory that is free at the start
FILE_CACHE = ("inactive_file", "active_file")  # what a control group has read and can give back, in its memory.stat


def rooms(device: torch.device, memory_bytes: int | None) -> dict[torch.device, int]:
    """Bytes that may be kept in each place, the first to fill first: half of what is free there, or so many in all.

    A GPU's memory is never filled by more than half, whatever is allowed: the heads need the rest.
    """
    machine = int(free_memory(CPU) * KEEP_SHARE) if memory_bytes is None else memory_bytes
    if device.type != "cuda":  # what other devices have is the machine's memory
        return {device: machine}
    gpu = int(free_memory(device) * KEEP_SHARE)
    if memory_bytes is None:
        return {device: gpu, CPU: machine}
    return {device: min(gpu, machine), CPU: max(0, machine - gpu)}


def free_memory(device: torch.device) -> int:
    """Bytes of the device's memory that are free, as far as the system says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_machine_memory()


def free_machine_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take: what the machine has, at most what its control groups (v2) allow.

    Files that the system holds in memory count as free, since it gives them up: after an extraction they fill most of
    it. Where nothing says so, only memory that is not used at all counts. root: where /proc and /sys lie.
    """
    available = _available(root)
    return max(0, min([_unused() if available is None else available, *_allowed(root)]))


def _available(root: Path) -> int | None:
    """What Linux says can be had without swapping; None where it does not say."""
    try:
        return _numbers(root / "proc/meminfo")["MemAvailable:"] * 2**10
    except (OSError, KeyError):
        return None


def _unused() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30  # a system that does not say: assume a small one


def _allowed(root: Path) -> Iterator[int]:
    """What each control group from the process's own up to the root of them still allows, where it has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for own in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        for name in (own, *map(str, PurePosixPath(own).parents)):
            group = root / "sys/fs/cgroup" / name
            try:
                limit, used = (int((group / file).read_text()) for file in ("memory.max", "memory.current"))
                stat = _numbers(group / "memory.stat")
            except (OSError, ValueError):  # no such file, as in the root; or no limit, "max"
                continue
            yield limit - used + sum(stat.get(kind, 0) for kind in FILE_CACHE)


def _numbers(path: Path) -> dict[str, int]:
    """What a file says in lines of a name and a number. Raises OSError when it cannot be read."""
    words = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1}
