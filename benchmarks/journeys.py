"""How many files a reader walks through to follow each command: counted from the calls that a small run makes.

    python benchmarks/journeys.py [--out journeys.json]

Runs extract, train-head, predict and report once in this process on generated tissue with the bundled model, with
Python's profiler on in all threads, for the pathseg that Python finds. Counted once each, in the order of their first
occurrence: calls from a function in one file of pathseg to a function in another. `files` are those entered, `stops`
the calls, `re-entries` the calls into a file that was entered before.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from click.testing import CliRunner
from PIL import Image

from pathseg.cli import main

ROOT = Path(main.callback.__code__.co_filename).resolve().parent  # type: ignore[union-attr]


class Journey:
    """Calls between files of pathseg, each pair of functions once, in order."""

    def __init__(self) -> None:
        self.stops: dict[tuple[str, str, str, str], None] = {}

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note a call; what Python calls on a profiler."""
        if event != "call" or (callee := inside(frame)) is None:
            return
        before = frame.f_back
        while before is not None and (caller := inside(before)) is None:
            before = before.f_back  # a library in between, such as click or a thread pool
        if before is not None and caller != callee:
            self.stops[caller, before.f_code.co_qualname, callee, frame.f_code.co_qualname] = None

    def counts(self) -> dict[str, int]:
        """Files, stops and re-entries."""
        entered, again = set(), 0
        for _, _, callee, _ in self.stops:
            again += callee in entered
            entered.add(callee)
        return {"files": len(entered), "stops": len(self.stops), "re-entries": again}


def inside(frame: FrameType) -> str | None:
    """The file of a frame below pathseg's folder, None for another or code that runs on import."""
    name = frame.f_code.co_filename
    if frame.f_code.co_name == "<module>" or not name.startswith(str(ROOT)) or "/tests/" in name:
        return None
    return name


def follow(arguments: list[str]) -> dict[str, int]:
    """Run a command of pathseg and count."""
    journey = Journey()
    threading.setprofile(journey.profile)
    sys.setprofile(journey.profile)
    try:
        result = CliRunner().invoke(main, arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    if result.exit_code:
        raise SystemExit(f"{arguments} failed: {result.output}")
    return journey.counts()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = ["--workspace", folder]
        picture = Path(folder) / "new.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(picture)
        store = f"{folder}/synthetic-mini.zarr"
        small = ["--limit", "3", "--resize", "256", "--layout", "native", "--blocks", "4-6"]
        train = ["train-head", "--store", store, "--head", "linear", "--epochs", "1", "--name", "run"]
        found = {
            "extract": follow(["extract", "--dataset", "synthetic", "--model", "mini", *small, *workspace]),
            "train-head": follow([*train, *workspace]),
            "predict": follow(["predict", str(picture), "--run", "run", "--out", f"{folder}/out", *workspace]),
            "report": follow(["report", *workspace]),
        }
    for name, counts in found.items():
        print(f"{name:>12}  " + "  ".join(f"{what} {count}" for what, count in counts.items()))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")
