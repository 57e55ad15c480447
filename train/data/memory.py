"""Free memory of the machine and of a GPU, and how much of it cached features may fill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil
import torch

CPU = torch.device("cpu")
KEEP_SHARE = 0.5  # of the memory that is free at the start
FILE_CACHE = ("inactive_file", "active_file")  # reclaimable page cache of a control group, in its memory.stat


def keep_limits(device: torch.device, memory_bytes: int | None) -> dict[torch.device, int]:
    """Return the bytes of features that may be kept in the memory of each device, the first to be filled first.

    Half of what is free on each, or `memory_bytes` in all. A GPU's memory is never filled by more than half: the heads
    need the rest. Batches are not counted: those that are read ahead, as stored, and of layers that are stored scaled
    one more in float32, the one in use.
    """
    machine = int(free_memory(CPU) * KEEP_SHARE) if memory_bytes is None else memory_bytes
    if device.type != "cuda":  # other accelerators share the machine's memory
        return {device: machine}
    gpu = int(free_memory(device) * KEEP_SHARE)
    if memory_bytes is None:
        return {device: gpu, CPU: machine}
    return {device: min(gpu, machine), CPU: max(0, machine - gpu)}


def free_memory(device: torch.device) -> int:
    """Return the bytes of the device's memory that are free, of a GPU with those that PyTorch holds unused."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([psutil.virtual_memory().available, *cgroup_limits()])


def cgroup_limits(root: Path = Path("/")) -> list[int]:
    """Return the bytes that each limited control group (v2) of this process still allows, at least 0.

    From the process's own group up to the root one. psutil knows only the whole machine; a container or a batch job
    may use less. Page cache that a group can reclaim counts as free. root: where /proc and /sys are mounted.
    """
    return [max(0, allowed) for allowed in _allowed(root)]


def _allowed(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for own in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        for name in (own, *map(str, PurePosixPath(own).parents)):
            group = root / "sys/fs/cgroup" / name
            try:
                limit, used = (int((group / file).read_text()) for file in ("memory.max", "memory.current"))
                lines = (group / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):  # no such file, as in the root group; or no limit, "max"
                continue
            stat = dict(line.split(maxsplit=1) for line in lines if line)
            yield limit - used + sum(int(stat.get(kind, 0)) for kind in FILE_CACHE)
