"""Memory that this process may still take: of the machine, within the limits of its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")  # of a control group, in its memory.stat


def free_machine_memory() -> int:
    """Return the bytes that are free on the machine and within the limits of a container or batch job."""
    return min([psutil.virtual_memory().available, *cgroup_limits()])


def cgroup_limits(root: Path = Path("/")) -> list[int]:
    """Return the bytes that each limited control group (v2) of this process still allows, at least 0.

    From the process's own group up to the root one. psutil knows only the whole machine; a container or a batch job
    may use less. What a group can reclaim, page cache and file names, counts as free. root: where /proc and
    /sys are mounted.
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
            yield limit - used + sum(int(stat.get(kind, 0)) for kind in RECLAIMABLE)
