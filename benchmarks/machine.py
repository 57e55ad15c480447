"""Helpers of all benchmarks: a description of the machine, timers, peak memory, results files."""

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

RESULTS, PICTURES = (Path(__file__).parent / name for name in ("results", "pictures"))
PACKAGES = ("pathseg", "torch", "diffusers", "timm", "zarr", "numcodecs", "numpy", "kaiko-eva")


def describe_machine(folder: Path) -> dict[str, object]:
    """Return processor, memory, file system of `folder`, GPU if there is one, and package versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if is_installed(name)}
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
    """Return the commit of this repository, with a plus where files differ from it; None outside a git checkout."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def is_installed(name: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def file_system(folder: Path) -> str:
    """Return the file system type of a folder, as `stat` names it."""
    if shutil.which("stat") is None:
        return "unknown"
    return subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True).stdout.strip()


def seconds(call: Callable[[], object]) -> float:
    """Measure the wall time of one call, GPU work included."""
    gc.collect()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_in_turn(calls: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Measure the seconds of each call `turns` times, alternating between them, after one turn of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            taken = seconds(call)
            if turn:
                times[name].append(taken)
    return times


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the median over turns of numerator / denominator."""
    return statistics.median(n / d for n, d in zip(numerator, denominator, strict=True))


def matmul_flops(device: str, dtype: torch.dtype, side: int | None = None) -> float:
    """Measure the floating-point operations per second of a large matrix product, the best of ten runs.

    side: of its square matrices, by default 2048 on a CPU and 8192 on a GPU.

    On a CPU, torch computes products and convolutions with different libraries, one of which may not be optimised for
    the processor; the faster one counts.
    """
    side = side or (2048 if device == "cpu" else 8192)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    cells, kernel = a.view(1, 1, side, side).permute(0, 3, 1, 2), b.view(side, side, 1, 1)  # channels last
    times = time_in_turn({"product": lambda: a @ b, "convolution": lambda: F.conv2d(cells, kernel)}, 10)
    return 2 * side**3 / min(map(min, times.values()))


def module_command(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module in another process of this Python, as `python -m` does."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def peak_bytes() -> int:
    """Return the peak resident memory of this process; on Linux without that of the process it was forked from."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 2**10


def save_rows(path: Path, section: str, rows: list[dict[str, object]], *, machine: dict[str, object]) -> None:
    """Write the rows of one section and the machine they were measured on into a results file; keep its others."""
    result = json.loads(path.read_text()) if path.exists() else {}
    result[section] = {"machine": machine, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
