"""The command for a GPU, on the CPU and with little work: each part runs, and what does not fit is left out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import PREPARE_S, TOTAL_S, budgets

ROOT = Path(__file__).parents[2]
PARTS = ("golden", "agreement", "speed", "extract", "step", "epoch", "profile")


def run(out, *arguments):
    """Exit code and results of a run on the CPU."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--size", "small", "--out", out, *arguments]
    code = subprocess.run([str(word) for word in command], cwd=ROOT).returncode
    return code, json.loads(out.read_text())


def test_what_is_reserved_for_the_parts_fits_into_the_time():
    assert PREPARE_S + sum(reserved for _, reserved in gpu.PARTS.values()) <= TOTAL_S <= 480


def test_a_part_takes_what_those_before_it_have_left_but_nothing_of_those_behind_it():
    (step, epoch, profile) = (gpu.PARTS[name][1] for name in ("step", "epoch", "profile"))
    names, rest = ["step", "epoch", "profile"], epoch + profile
    assert budgets(names, left=step + rest + 12, total=TOTAL_S) == (step, step + 12)
    assert budgets(names, left=step + rest - 12, total=TOTAL_S) == (step, step - 12)  # less than reserved: left out
    assert budgets(names, left=2 * (step + rest), total=2 * TOTAL_S) == (2 * step, 2 * step)
    assert budgets(["profile"], left=99, total=TOTAL_S) == (profile, 99)


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_and_its_checks_pass(tmp_path):
    code, found = run(tmp_path / "gpu.json", "--folder", tmp_path, "--seconds", 2000)
    failed = {name: found[name] for name in PARTS if not found[name]["passed"]}
    assert not failed
    assert code == 0
    assert all(found[name]["rows"] for name in PARTS)
    assert all(0 <= row["waiting_share"] < 1 for name in ("extract", "epoch") for row in found[name]["rows"])
    assert [file.name for file in tmp_path.iterdir()] == ["gpu.json"]


@pytest.mark.slow
def test_a_part_that_does_not_fit_into_the_time_is_left_out_and_says_so(tmp_path):
    code, found = run(tmp_path / "gpu.json", "--seconds", 1, "--only", "profile")
    assert code == 0
    assert found["profile"]["left_out"].endswith("it may take 0 s")
    assert found["machine"]["size"] == "small"
