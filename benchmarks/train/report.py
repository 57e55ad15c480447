"""How long `pathseg report` takes for many runs: the first report of a workspace, and one after a run has been added.

    python -m benchmarks.train.report [--runs 50] [--out FILE]

Trains linear heads on single blocks of a small store of random features, several seeds each, ten epochs, and reports
them in processes of their own, so that imports count: the first time, again, and again after one run was trained anew.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.constant_model import FULL_SIZE
from benchmarks.machine import RESULTS, describe_machine, save_rows
from benchmarks.store.random_store import random_store
from pathseg.train.config import HeadConfig
from pathseg.train.training.sweep import train

SPLITS = ("train",) * 3 + ("val",) * 2 + ("test",) * 4
REPORT = (
    "import sys, time; from pathseg.train.report.build import build_report; "
    "build_report(sys.argv[1]); print(time.process_time())"
)


def heads(count: int) -> list[HeadConfig]:
    """Return settings of so many runs: each block with seed 0, then with seed 1, and so on."""
    blocks = tuple(FULL_SIZE)
    return [
        HeadConfig(blocks=(blocks[i % len(blocks)],), head_type="linear", lr=1e-2, epochs=10, seed=i // len(blocks))
        for i in range(count)
    ]


def report(workspace: Path) -> dict[str, object]:
    """Return the seconds that a report takes, and those of all cores."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", REPORT, workspace], check=True, capture_output=True, text=True)
    return {"s": round(time.perf_counter() - started, 2), "s_all_cores": round(float(done.stdout), 2)}


def main() -> None:
    """Train, report three times, save the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS / "report.json")
    arguments = parser.parse_args()
    machine = describe_machine(Path(tempfile.gettempdir()))
    blocks = {block: (8, side) for block, (_, side) in FULL_SIZE.items()}
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        store = random_store(workspace / "random.zarr", SPLITS, blocks=blocks, side=256)
        trained = train(store, heads(arguments.runs), workspace)
        rows = [{"report": name, **report(workspace)} for name in ("first", "again")]
        shutil.rmtree(trained.runs[0].folder.path)
        train(store, heads(arguments.runs), workspace)
        rows.append({"report": "after one run was trained anew", **report(workspace)})
    for row in rows:
        row["runs"] = arguments.runs
        print(f"  {row}", flush=True)
    save_rows(arguments.out, "report", rows, machine=machine)


if __name__ == "__main__":
    main()
