"""The command for a GPU, on the CPU and with little work: each part runs, and what does not fit is left out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("golden", "agreement", "speed", "extract", "step", "epoch", "profile")


def run(out, *arguments):
    """Exit code and results of a run on the CPU."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--size", "small", "--out", out, *arguments]
    code = subprocess.run([str(word) for word in command], cwd=ROOT).returncode
    return code, json.loads(out.read_text())


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_and_its_checks_pass(tmp_path):
    code, found = run(tmp_path / "gpu.json", "--folder", tmp_path, "--seconds", 2000)
    failed = {name: found[name] for name in PARTS if not found[name]["passed"]}
    assert not failed
    assert code == 0
    assert all(found[name]["rows"] for name in PARTS)
    assert [file.name for file in tmp_path.iterdir()] == ["gpu.json"]


@pytest.mark.slow
def test_a_part_that_does_not_fit_into_the_time_is_left_out_and_says_so(tmp_path):
    code, found = run(tmp_path / "gpu.json", "--seconds", 1, "--only", "profile")
    assert code == 0
    assert found["profile"]["left_out"].endswith("it may take 0 s")
    assert found["machine"]["size"] == "small"
