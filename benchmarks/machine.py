"""What figures were taken on, and the clock they were taken with."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from pathseg.store.format.size import format_bytes

PARTS = ("pathseg", "torch", "diffusers", "timm", "zarr", "numcodecs", "numpy", "kaiko-eva")


def machine(folder: Path) -> dict[str, object]:
    """Processor, memory, file system of `folder`, GPU if there is one, releases."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    versions = {name: importlib.metadata.version(name) for name in PARTS if installed(name)}
    return {
        "cpu": cpu,
        "matrix_units": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpu_memory": format_bytes(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None,
        "load_at_start": round(os.getloadavg()[0], 2),
        "memory": format_bytes(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        "system": platform.platform(),
        "file_system": file_system(folder),
        "python": platform.python_version(),
        **versions,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit that is measured, with a plus where files differ from it; None outside a git checkout."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def installed(name: str) -> bool:
    """Whether a distribution is there."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on, as `stat` names it."""
    if shutil.which("stat") is None:
        return "unknown"
    return subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True).stdout.strip()


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call; what a GPU still has to do counts."""
    gc.collect()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(ways: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of each way, `turns` times, one after the other, after one turn that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            took = seconds(way)
            if turn:
                taken[name].append(took)
    return taken


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """The median over turns of one way's seconds divided by another's."""
    return statistics.median(n / d for n, d in zip(numerator, denominator, strict=True))


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product: the best of ten, by the faster of two libraries.

    On a CPU torch gives products and convolutions to different ones, of which one may not know the processor.
    """
    side = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    cells, kernel = a.view(1, 1, side, side).permute(0, 3, 1, 2), b.view(side, side, 1, 1)  # channels last
    taken = in_turn({"product": lambda: a @ b, "convolution": lambda: F.conv2d(cells, kernel)}, 10)
    return 2 * side**3 / min(map(min, taken.values()))


def peak_bytes() -> int:
    """The largest memory of this process so far; on Linux without what its parent once had."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 2**10


def keep(path: Path, part: str, rows: list[dict[str, object]], *, about: dict[str, object]) -> None:
    """Put the rows of one part, and what they were taken on, into a results file beside the parts that are there."""
    result = json.loads(path.read_text()) if path.exists() else {}
    result[part] = {"machine": about, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
