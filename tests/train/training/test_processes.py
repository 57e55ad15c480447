"""Two commands at once on one run or one store: a process that is stopped in the middle, and this or another one."""

import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from pathseg.cli import main
from pathseg.store.features import FeatureStore
from pathseg.train.config import HeadConfig
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

pytestmark = pytest.mark.soak

SETTINGS = ("--blocks", 4, "--head", "linear", "--lr", 0.01, "--epochs", 3, "--memory", 0, "--name", "run")
BLOCK = "t50/block04"


def command_line(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "pathseg.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def train_command(store, workspace):
    return "train-head", "--store", store.location, "--workspace", workspace, *SETTINGS


def start_training(store, workspace):
    return command_line(*train_command(store, workspace))


def run_here(*arguments):
    """Return exit code and output of a command in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "bug" not in result.output
    return result.exit_code, result.output


def stop_after_the_first_epoch(process, workspace):
    history = workspace / "heads" / "run" / "history.jsonl"
    while not (history.is_file() and history.read_bytes()) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    assert len(RunFolder(history.parent).read_history()) < 3, "the process was not stopped in time"


def ended(process):
    """Return exit code and errors of a process that has ended."""
    _, error = process.communicate(timeout=200)
    assert "Traceback" not in error and "bug" not in error
    return process.returncode, error


@pytest.fixture
def undisturbed(toy_store, tmp_path):
    """The weights of a run that no other process disturbs."""
    run = RunFolder(tmp_path / "undisturbed")
    train_heads(toy_store, [(HeadConfig(blocks=(4,), head_type="linear", lr=0.01, epochs=3), run)])
    return run.weights.read_bytes()


@pytest.mark.soak
def test_a_second_train_head_of_a_run_is_refused_in_one_line_and_changes_nothing(toy_store, tmp_path, undisturbed):
    work = tmp_path / "work"
    first = start_training(toy_store, work)
    stop_after_the_first_epoch(first, work)
    code, error = run_here(*train_command(toy_store, work))
    first.send_signal(signal.SIGCONT)
    assert code == 1 and "is being trained by another process; wait" in error.splitlines()[-1]
    assert ended(first)[0] == 0
    run = RunFolder(work / "heads/run")
    assert FinishedRun.read(run).metrics.epochs == 3 and run.weights.read_bytes() == undisturbed


def test_two_train_heads_started_at_once_leave_the_result_of_one(toy_store, tmp_path, undisturbed):
    both = [start_training(toy_store, tmp_path / "work") for _ in range(2)]
    codes = [ended(process)[0] for process in both]
    assert 0 in codes and set(codes) <= {0, 1}
    run = RunFolder(tmp_path / "work/heads/run")
    assert FinishedRun.read(run).metrics.epochs == 3 and run.weights.read_bytes() == undisturbed


@pytest.mark.parametrize("damaged", [False, True])
def test_train_head_beside_verify_repair_gives_the_right_head_or_names_the_damage(
    toy_store, tmp_path, undisturbed, damaged
):
    work, path = tmp_path / "work", toy_store.location.root
    training = start_training(toy_store, work)
    stop_after_the_first_epoch(training, work)
    if damaged:
        chunk = path / BLOCK / "c/0/0/0/0/0"
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 0xFF
        chunk.write_bytes(content)
    repaired, _ = run_here("verify", "--repair", path)
    training.send_signal(signal.SIGCONT)
    code, error = ended(training)
    run = RunFolder(work / "heads/run")
    assert (repaired, code) == (int(damaged), int(damaged))
    if damaged:
        assert "block" in error.splitlines()[-1] and not run.finished
        assert FeatureStore.open(path).unfinished(t=50, blocks=(4,)) == (0,)
    else:
        assert FinishedRun.read(run).metrics.epochs == 3 and run.weights.read_bytes() == undisturbed
