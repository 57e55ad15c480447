"""Peak memory and seconds of each command on a small data set, each in a process of its own.

    python -m benchmarks.memory [--images 6] [--out FILE]

Generated tissue of 256 px, `mini` and linear heads: what is measured is mostly the libraries. What grows with the input
has benchmarks of its own: `store.store` (extraction), `train.predict` (slides), `extract.regions` and
`train.pixel_memory`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.machine import RESULTS, describe_machine, save_rows
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import format_bytes

COMMAND = """import sys
from pathseg.cli import main
try:
    main(sys.argv[1:])
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))  # kB; Linux alone has it
"""


def peak(arguments: list[str]) -> dict[str, object]:
    """Run a command of pathseg; return its name, the peak of its resident memory in bytes, and its seconds."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pathseg {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    size_bytes = int(done.stdout.split()[-2]) * 1024
    return {"command": arguments[0], "peak_bytes": size_bytes, "s": round(time.perf_counter() - started, 2)}


def main() -> None:
    """Run the stages one after the other, save the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    arguments = parser.parse_args()
    machine, rows = describe_machine(Path(tempfile.gettempdir())), []
    with tempfile.TemporaryDirectory() as folder:
        store, image = str(Path(folder, "synthetic-mini.zarr")), Path(folder, "image.png")
        where = ["--workspace", folder]
        given = ["--dataset", "synthetic", "--resize", "256", "--limit", str(arguments.images), "--model", "mini"]
        rows.append(peak(["extract", *given, "--layout", "native", "--store", store, *where]))
        rows.append(peak(["info", store]))
        rows.append(peak(["verify", store]))
        rows.append(peak(["train-head", "--store", store, "--head", "linear", "--epochs", "2", *where]))
        Image.fromarray(FeatureStore.open(store).image(0)).save(image)
        (run,) = Path(folder, "heads").iterdir()
        rows.append(
            peak(["predict", str(image), "--run", str(run), "--mpp", "0.5", "--out", str(Path(folder, "out")), *where])
        )
        rows.append(peak(["report", *where]))
    for row in rows:
        print(f"  {row['command']:12} {format_bytes(row['peak_bytes']):>8}  {row['s']:6.2f} s", flush=True)
    save_rows(arguments.out, "memory", rows, machine=machine)


if __name__ == "__main__":
    main()
