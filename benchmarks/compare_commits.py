"""Compare the speed of two checkouts of pathseg, in alternating turns on one machine.

    python -m benchmarks.compare_commits OLD NEW [--turns 5] [--images 8] [--resize 256]
                                         [--epochs 4] [--folder DIR] [--out FILE]

OLD and NEW are folders that each contain a checkout named `pathseg`; each is put on PYTHONPATH in turn. Only what both
have is used: the command line, `FeatureStore.open` and `FeatureStore.read`. Each side extracts, trains on and reads
stores of its own.

help     `pathseg --help`, the whole process.
extract  `pathseg extract` with `mini` on generated tissue, all 13 blocks in native layout, the whole process.
train    `pathseg train-head` on that store, all blocks, `--epochs` epochs, the whole process.
epoch    One epoch of that training with features in memory: the mean over all epochs but the first, from the times at
         which history.jsonl grows.
read     `FeatureStore.read` of every image of the store, in a process of its own: the fastest of several passes after
         the store was opened. Files come from the page cache.

Prints the fastest and the median seconds of each side, and the ratio NEW / OLD: the median over the turns, with the
lowest and the highest. The side that goes first changes from turn to turn. A turn before the first one warms up.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe_machine, module_command

SIDES = ("old", "new")
POLL_S = 0.005  # between two looks at history.jsonl
READ = """
import sys, time
from pathseg.store.features import FeatureStore
store, times = FeatureStore.open(sys.argv[1]), []
for _ in range(60):
    start = time.perf_counter()
    for index in range(len(store)):
        store.read(index, t=50)
    times.append(time.perf_counter() - start)
print(min(times))
"""


class Side:
    """One checkout: runs its pathseg in a folder of its own."""

    def __init__(self, checkout: Path, folder: Path, arguments: argparse.Namespace) -> None:
        folder.mkdir()
        self.folder, self.arguments = folder, arguments
        self.environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        imported = Path(self.run([sys.executable, "-c", "import pathseg; print(pathseg.__file__)"]).strip())
        if imported.resolve().parent != (checkout / "pathseg").resolve():
            raise SystemExit(f"{checkout} contains no checkout named pathseg: {imported} was imported")

    def start(self, command: list[str]) -> subprocess.Popen:
        """Start a command in the side's folder; its output goes to a file."""
        with (self.folder / "output.txt").open("w") as output:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def finish(self, process: subprocess.Popen) -> str:
        """Wait for a command and return its output. Raises SystemExit with that output where it failed."""
        process.wait()
        output = (self.folder / "output.txt").read_text()
        if process.returncode:
            raise SystemExit(f"{subprocess.list2cmdline(process.args)} failed:\n{output}")
        return output

    def run(self, command: list[str]) -> str:
        """Run a command and return its output."""
        return self.finish(self.start(command))

    def help(self) -> dict[str, float]:
        """Measure `pathseg --help`."""
        start = time.perf_counter()
        self.run(module_command("pathseg.cli", "--help"))
        return {"help": time.perf_counter() - start}

    def extract(self) -> dict[str, float]:
        """Measure an extraction into a new store."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        options = ["--dataset", "synthetic", "--limit", self.arguments.images, "--resize", self.arguments.resize]
        options += ["--model", "mini", "--layout", "native"]
        start = time.perf_counter()
        self.run(module_command("pathseg.cli", "extract", *options, "--device", "cpu", "--workspace", "work"))
        return {"extract": time.perf_counter() - start}

    def train(self) -> dict[str, float]:
        """Measure a training, and one of its epochs with features in memory."""
        run = self.folder / "work/heads/compared"
        shutil.rmtree(run, ignore_errors=True)
        options = ["--blocks", "all", "--epochs", self.arguments.epochs, "--device", "cpu", "--name", run.name]
        ends: list[float] = []  # of the epochs
        start = time.perf_counter()
        process = self.start(module_command("pathseg.cli", "train-head", *options, "--workspace", "work"))
        while process.poll() is None:
            time.sleep(POLL_S)
            history = run / "history.jsonl"
            lines = history.read_bytes().count(b"\n") if history.exists() else 0
            ends += [time.perf_counter()] * (lines - len(ends))
        whole = time.perf_counter() - start
        self.finish(process)
        return {"train": whole, "epoch": (ends[-1] - ends[0]) / (len(ends) - 1)}

    def read(self) -> dict[str, float]:
        """Measure reading every image of the store."""
        return {"read": float(self.run([sys.executable, "-c", READ, "work/synthetic-mini.zarr"]).split()[-1])}


def measure(sides: dict[str, Side], turns: int) -> dict[str, dict[str, list[float]]]:
    """Measure all operations of both sides `turns` times after a warm-up; return operation -> side -> seconds."""
    times: dict[str, dict[str, list[float]]] = {}
    for turn in range(turns + 1):
        for operation in (Side.help, Side.extract, Side.train, Side.read):
            for side in SIDES if turn % 2 else SIDES[::-1]:
                for name, taken in operation(sides[side]).items():
                    if turn:
                        times.setdefault(name, {side: [] for side in SIDES})[side].append(taken)
        print(f"turn {turn} of {turns}" + ("" if turn else ", the warm-up"), file=sys.stderr, flush=True)
    return times


def summarise(name: str, times: dict[str, list[float]]) -> dict[str, object]:
    """Return fastest and median seconds of each side and the ratio new / old over the turns; print them."""
    ratios = [new / old for old, new in zip(times["old"], times["new"], strict=True)]
    row: dict[str, object] = {"operation": name}
    for side in SIDES:
        row |= {f"{side}_min_s": min(times[side]), f"{side}_median_s": statistics.median(times[side])}
    row |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios), "times": times}
    print(
        f"{name:>8}: old {row['old_min_s']:7.3f} / {row['old_median_s']:7.3f} s, "
        f"new {row['new_min_s']:7.3f} / {row['new_median_s']:7.3f} s (fastest / median), "
        f"new / old {row['ratio']:.3f} ({row['ratio_min']:.3f} to {row['ratio_max']:.3f})"
    )
    return row


def main() -> None:
    """Measure both checkouts and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a folder that contains a checkout named pathseg")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--resize", type=int, default=256, help="side of the images in px, a multiple of 256")
    parser.add_argument("--epochs", type=int, default=4, help="two or more")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    arguments = parser.parse_args()
    if arguments.epochs < 2 or arguments.turns < 1:
        parser.error("--epochs must be at least 2 and --turns at least 1")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        machine = describe_machine(Path(folder))
        checkouts = zip(SIDES, (arguments.old, arguments.new), strict=True)
        sides = {side: Side(checkout, Path(folder) / side, arguments) for side, checkout in checkouts}
        rows = [summarise(name, times) for name, times in measure(sides, arguments.turns).items()]
    if arguments.out:
        settings = {name: getattr(arguments, name) for name in ("turns", "images", "resize", "epochs")}
        arguments.out.write_text(json.dumps({"machine": machine, **settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
