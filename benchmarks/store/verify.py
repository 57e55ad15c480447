"""`pathseg verify` beside reading the same files and beside their CRC-32C alone, from the disk and from memory.

    python -m benchmarks.store.verify [--images 8] [--out FILE]

Writes a store of random features with the block shapes of the paper's model (109 MB an image). From the disk: the
system is asked to forget the files before each turn (posix_fadvise), which a virtual machine's host need not do.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import google_crc32c

from benchmarks.machine import RESULTS, describe_machine, save_rows
from benchmarks.store.random_store import random_store
from pathseg.store.verify import verify

TURNS = 3


def files_of(store: Path) -> list[Path]:
    """Return all files of a store."""
    return [path for path in sorted(store.rglob("*")) if path.is_file()]


def forget(files: list[Path]) -> None:
    """Drop files from the system's memory."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files: list[Path]) -> None:
    """Read files one after the other and drop what was read, as `cat` does."""
    for path in files:
        path.read_bytes()


def read_and_sum(files: list[Path]) -> None:
    """Read files and compute the CRC-32C of each."""
    for path in files:
        google_crc32c.value(path.read_bytes())


def checked(store: Path) -> None:
    """Verify a store that is whole."""
    if findings := verify(store):
        raise AssertionError(findings)


def main() -> None:
    """Measure in alternating turns, save the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the store is written")
    parser.add_argument("--out", type=Path, default=RESULTS / "verify.json")
    arguments = parser.parse_args()
    machine = describe_machine(arguments.folder)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        store = Path(folder) / "random.zarr"
        random_store(store, ["train"] * arguments.images)
        files = files_of(store)
        size_bytes = sum(path.stat().st_size for path in files)
        ways: dict[str, Callable[[], None]] = {
            "read": lambda: read(files),
            "read and CRC-32C": lambda: read_and_sum(files),
            "verify": lambda: checked(store),
        }
        rows = []
        for source in ("memory", "disk"):
            best = dict.fromkeys(ways, float("inf"))
            for _ in range(TURNS):
                for name, way in ways.items():
                    if source == "disk":
                        forget(files)
                    started = time.perf_counter()
                    way()
                    best[name] = min(best[name], time.perf_counter() - started)
            rows += [
                {"from": source, "way": name, "mb_s": round(size_bytes / seconds / 1e6), "bytes": size_bytes}
                for name, seconds in best.items()
            ]
    for row in rows:
        print(f"  {row}", flush=True)
    save_rows(arguments.out, "verify", rows, machine=machine)


if __name__ == "__main__":
    main()
