import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pathseg.cli import error_line, main, of_each_model
from pathseg.store.features import FeatureStore
from pathseg.store.grid import PatchGrid
from pathseg.store.runtime.workspace import store_path
from pathseg.train.runs.folder import RunFolder


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def snapshot(folder):
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def glas(tmp_path):
    """A tiny data set in the official layout: two training images, one of each test part, 300x260 px."""
    folder, rng = tmp_path / "Warwick QU Dataset (Released 2016_07_08)", np.random.default_rng(0)
    folder.mkdir()
    for name in ("train_1", "train_2", "testA_1", "testB_1"):
        Image.fromarray(rng.integers(0, 256, (260, 300, 3), dtype=np.uint8)).save(folder / f"{name}.bmp")
        mask = np.zeros((260, 300), np.uint8)
        mask[20:120, 30:200], mask[150:250, 100:280] = 1, 2
        Image.fromarray(mask).save(folder / f"{name}_anno.bmp")
    return folder


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A workspace with features of four generated images, 256 px, by the bundled model."""
    workspace = tmp_path_factory.mktemp("work")
    result = run(*synthetic(workspace))
    assert result.exit_code == 0, result.output
    return workspace


def synthetic(workspace, *more):
    return ("extract", "--dataset", "synthetic", "--model", "mini", "--resize", 256, "--limit", 4, "--blocks", "4-6",
            "--workspace", workspace, *more)  # fmt: skip


def test_help_loads_no_large_library():
    code = "import sys, pathseg.cli; assert not {'torch', 'numpy', 'zarr', 'pandas', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


COMMANDS = ["extract", "train-head", "train-baseline", "predict", "report", "info", "verify", "refine", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_three_commands_make_a_report(extracted, tmp_path):
    store = store_path(extracted, "synthetic", "mini")
    trained = run("train-head", "--store", store, "--blocks", "4-6", "--epochs", 1, "--workspace", tmp_path)
    assert trained.exit_code == 0, trained.output
    assert "dice" in trained.output
    reported = run("report", "--workspace", tmp_path)
    assert reported.exit_code == 0, reported.output
    assert "those of the model mini" in (tmp_path / "report" / "index.html").read_text()


def test_glas_keeps_instances_at_the_original_size(glas, tmp_path):
    result = run("extract", "--dataset", "glas", "--root", glas, "--model", "mini", "--resize", 256, "--blocks", "0",
                 "--workspace", tmp_path / "w")  # fmt: skip
    assert result.exit_code == 0, result.output
    store = FeatureStore.open(tmp_path / "w" / "glas-mini.zarr")
    assert store.splits == ("train", "train", "testA", "testB")
    assert store.instances(0).shape == (260, 300)
    assert sorted(np.unique(store.instances(0))) == [0, 1, 2]
    assert store.mask(0).shape == (256, 256)


def test_extracting_again_does_nothing(extracted):
    before = snapshot(extracted)
    result = run(*synthetic(extracted))
    assert result.exit_code == 0
    assert snapshot(extracted) == before


def test_info_names_model_blocks_and_state(extracted):
    result = run("info", store_path(extracted, "synthetic", "mini"))
    assert result.exit_code == 0
    for words in ("mini, weights ", "blocks 4-6: complete", "4 of synthetic"):
        assert words in result.output


def test_verify_of_a_whole_store_is_content(extracted):
    result = run("verify", store_path(extracted, "synthetic", "mini"))
    assert result.exit_code == 0
    assert "every byte as it was written" in result.output


def test_a_damaged_store_is_verified_repaired_and_made_whole_again(extracted, tmp_path):
    store = store_path(tmp_path, "synthetic", "mini")
    shutil.copytree(store_path(extracted, "synthetic", "mini"), store)
    chunk = store / "t50/block05/c/1/0/0/0/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-9] + b"x" + whole[-8:])
    found = run("verify", store, "--repair")
    assert found.exit_code == 1
    assert "block05" in found.output
    assert run(*synthetic(tmp_path)).exit_code == 0
    assert chunk.read_bytes() == whole
    assert run("verify", store).exit_code == 0


def test_a_dry_run_prints_the_size_and_writes_nothing(tmp_path):
    result = run(*synthetic(tmp_path / "w", "--dry-run"))
    assert result.exit_code == 0
    # blocks 4-6 of mini have 64 channels each: 64 * 64 * 64 * 2 bytes a patch in the grid layout
    assert "block 4 524 kB, block 5 524 kB, block 6 524 kB" in result.output
    assert "6.3 MB of features" in result.output
    assert not (tmp_path / "w").exists()


def test_an_unreadable_image_is_set_aside_and_the_rest_is_done(glas, tmp_path):
    (glas / "train_2.bmp").write_bytes((glas / "train_2.bmp").read_bytes()[:5000])
    result = run("extract", "--dataset", "glas", "--root", glas, "--model", "mini", "--resize", 256, "--blocks", "0",
                 "--workspace", tmp_path / "w")  # fmt: skip
    assert result.exit_code == 1
    assert "1 of 4 images were set aside" in result.output
    assert "train_2" in result.output
    trained = run("train-head", "--blocks", "0", "--workspace", tmp_path / "w")
    assert trained.exit_code == 1
    assert "lacks features of 1 of 4 images (train_2)" in trained.output


def test_what_does_not_fit_is_refused_with_a_layout_that_would(tmp_path, monkeypatch):
    # 4 patches of 3 blocks: 37.7 MB at most in layout image, 9.4 MB in grid, under 1 MB native, plus pixels
    monkeypatch.setattr("pathseg.store.location.local.LocalFolder.free_bytes", lambda self: 11_000_000)
    result = run(*synthetic(tmp_path / "w", "--layout", "image"))
    assert result.exit_code == 1
    assert "--layout grid or --layout native would fit" in result.output
    assert not (tmp_path / "w").exists()


# arguments -> exit code, words of the message; {glas} is a good data set, {store} a good store, {empty} an empty folder
WRONG = {
    "no command": (["frobnicate"], 2, "No such command"),
    "unknown data set": (["extract", "--dataset", "glass"], 2, "glas"),
    "no data set": (["extract"], 2, "Missing option '--dataset'"),
    "unknown flag": (["extract", "--dataset", "glas", "--tt", "5"], 2, "No such option"),
    "t no number": (["extract", "--dataset", "synthetic", "--t", "fifty"], 2, "not a whole number"),
    "t twice": (["extract", "--dataset", "synthetic", "--model", "mini", "--t", "50,50"], 2, "twice"),
    "t too large": (["extract", "--dataset", "synthetic", "--model", "mini", "--t", "1000"], 1, "0-999"),
    "t negative": (["extract", "--dataset", "synthetic", "--model", "mini", "--t", "-1"], 2, "0 or more"),
    "blocks out of range": (["extract", "--dataset", "synthetic", "--blocks", "4-100"], 2, "0-99"),
    "blocks reversed": (["extract", "--dataset", "synthetic", "--blocks", "6-4"], 2, "0-99"),
    "layout unknown": (["extract", "--dataset", "synthetic", "--layout", "dense"], 2, "native"),
    "dtype unknown": (["extract", "--dataset", "synthetic", "--dtype", "float8"], 2, "float16"),
    "batch size zero": (["extract", "--dataset", "synthetic", "--model", "mini", "--batch-size", "0"], 2, "batch size"),
    "limit zero": (["extract", "--dataset", "synthetic", "--limit", "0"], 2, "--limit must be at least 1"),
    "resize odd": (
        ["extract", "--dataset", "synthetic", "--model", "mini", "--resize", "300"], 2, "multiple of the 256"),
    "root missing": (["extract", "--dataset", "glas", "--root", "{empty}/none"], 1, "pass --root DIR"),
    "root empty": (["extract", "--dataset", "glas", "--root", "{empty}"], 1, "glas"),
    "root not asked for": (["extract", "--dataset", "synthetic", "--root", "{empty}"], 2, "--root does not apply"),
    "classes not asked for": (
        ["extract", "--dataset", "glas", "--root", "{glas}", "--classes", "a,b"], 2, "--classes does"),
    "stride too large": (["extract", "--dataset", "bcss", "--stride", "769"], 2, "--stride must be 1 to 768 px"),
    "mpp infinite": (["extract", "--dataset", "bcss", "--mpp", "inf"], 2, "--mpp must be 0.05 to 10 um/px"),
    "mpp no number": (["extract", "--dataset", "folder", "--mpp", "nan"], 2, "--mpp must be 0.05 to 10 um/px"),
    "target mpp infinite": (["extract", "--dataset", "bcss", "--target-mpp", "inf"], 2, "--target-mpp must be 0.05"),
    "target mpp too large": (["extract", "--dataset", "bcss", "--target-mpp", "100"], 2, "--target-mpp must be 0.05"),
    "views not asked for": (["extract", "--dataset", "glas", "--views", "2"], 2, "--views does not apply"),
    "views of bcss": (["extract", "--dataset", "bcss", "--views", "flips"], 2, "a number of crops"),
    "views unknown": (["extract", "--dataset", "glas", "--views", "turns"], 2, "nor flips"),
    "model missing": (["extract", "--dataset", "synthetic"], 1, "--model mini"),
    "model no folder": (["extract", "--dataset", "synthetic", "--model", "{empty}/none"], 1, "none"),
    "model empty folder": (["extract", "--dataset", "synthetic", "--model", "{empty}"], 1, "configs"),
    "hipt missing": (["extract", "--dataset", "synthetic", "--model", "hipt", "--hipt", "{empty}/v.pth"], 1, "v.pth"),
    "hipt is a picture": (
        ["extract", "--dataset", "synthetic", "--model", "hipt", "--hipt", "{picture}"], 1, "{picture}"),
    "condition unknown": (["extract", "--dataset", "synthetic", "--condition", "text"], 2, "ssl"),
    "device missing": (
        ["extract", "--dataset", "synthetic", "--model", "mini", "--device", "cuda:77"], 1, "--device auto"),
    "device nonsense": (
        ["extract", "--dataset", "synthetic", "--model", "mini", "--device", "toaster"], 1, "--device auto"),
    "store of another kind": (
        ["extract", "--dataset", "synthetic", "--model", "mini", "--store", "ftp://x"], 1, "s3://"),
    "store in a foreign folder": (
        ["extract", "--dataset", "synthetic", "--model", "mini", "--store", "{glas}"], 1, "holds something else"),
    "other key": (
        ["extract", "--dataset", "synthetic", "--model", "mini", "--store", "{store}", "--resize", "256",
         "--limit", "4", "--seed", "7"], 1, "seed is 0 there, 7 asked for"),
    "no store": (["train-head"], 1, "run pathseg extract first"),
    "store missing": (["train-head", "--store", "{empty}/a.zarr"], 1, "make one with pathseg extract"),
    "train t not there": (["train-head", "--store", "{store}", "--t", "10"], 1, "run pathseg extract --t 10"),
    "train blocks not there": (["train-head", "--store", "{store}", "--blocks", "7"], 1, "choose others with --blocks"),
    "lr zero": (["train-head", "--store", "{store}", "--lr", "0"], 2, "lr must be above 0"),
    "epochs zero": (["train-head", "--store", "{store}", "--epochs", "0"], 2, "epochs must be at least 1"),
    "val fraction one": (["train-head", "--store", "{store}", "--val-fraction", "1"], 2, "between 0 and 1"),
    "seed negative": (["extract", "--dataset", "synthetic", "--model", "mini", "--seed=-1"], 2, "0 or more"),
    "workers and scheduler": (
        ["extract", "--dataset", "synthetic", "--model", "mini", "--workers", "1", "--scheduler", "tcp://127.0.0.1:1"],
        2, "exclude each other"),
    "name of a folder elsewhere": (["train-head", "--store", "{store}", "--name", "../a"], 2, "leave out slashes"),
    "name for several runs": (["train-head", "--store", "{store}", "--seed", "0,1", "--name", "a"], 2, "names one run"),
    "lr no number": (["train-head", "--store", "{store}", "--lr", "nan"], 2, "lr must be above 0"),
    "memory negative": (["train-head", "--store", "{store}", "--memory=-1"], 2, "0<=x<=1000000000"),
    "pixels of no ensemble": (["train-head", "--store", "{store}", "--pixels", "9"], 2, "does not apply to head"),
    "baseline unknown": (["train-baseline", "--store", "{store}", "--model", "unet"], 2, "vgg16-fcn8"),
    "baseline lr zero": (["train-baseline", "--store", "{store}", "--lr", "0"], 2, "lr must be above 0"),
    "head unknown": (["train-head", "--store", "{store}", "--head", "unet"], 2, "linear"),
    "info of nothing": (["info", "{empty}"], 1, "make one with pathseg extract"),
    "verify of nothing": (["verify", "{empty}"], 1, "make one with pathseg extract"),
    "report of nothing": (["report"], 1, "run pathseg train-head first"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_in_one_line_and_loses_nothing(case, glas, extracted, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "empty").mkdir()
    store, picture = store_path(extracted, "synthetic", "mini"), glas / "train_1.bmp"
    places = {"glas": glas, "store": store, "empty": tmp_path / "empty", "picture": picture}
    before = snapshot(store), snapshot(tmp_path)
    arguments, code, words = WRONG[case]
    command = [argument.format(**places) for argument in arguments]
    if command[0] in ("extract", "train-head", "train-baseline", "report"):
        command += ["--workspace", str(tmp_path / "work")]
    result = run(*command)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    last = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(last) == 1
    assert words.format(**places) in result.output
    assert (snapshot(store), snapshot(tmp_path)) == before


def test_a_finished_run_is_told_from_one_of_other_settings(extracted, tmp_path):
    store = store_path(extracted, "synthetic", "mini")
    train = (
        "train-head",
        "--store",
        store,
        "--blocks",
        "4-6",
        "--head",
        "linear",
        "--name",
        "a",
        "--workspace",
        tmp_path,
    )
    assert run(*train, "--epochs", 1).exit_code == 0
    before = snapshot(tmp_path)
    refused = run(*train, "--epochs", 2)
    assert refused.exit_code == 1
    assert "epochs is 1, not 2; pass --name" in refused.output
    assert snapshot(tmp_path) == before
    assert RunFolder(tmp_path / "heads" / "a").finished


def broken(*arguments, **options):
    return {}["not there"]


def test_an_exception_that_is_a_bug_says_so_and_names_the_code(extracted, monkeypatch):
    monkeypatch.setattr("pathseg.store.describe.describe", broken)
    result = run("info", store_path(extracted, "synthetic", "mini"))
    assert result.exit_code == 1
    assert "bug in pathseg" in result.output and "KeyError" in result.output and "--debug" in result.output
    assert "cli.py" in result.output and "Traceback" not in result.output


def test_debug_shows_the_exception_itself(extracted, monkeypatch):
    monkeypatch.setattr("pathseg.store.describe.describe", broken)
    assert isinstance(run("info", store_path(extracted, "synthetic", "mini"), "--debug").exception, KeyError)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_debug(command):
    assert "--debug" in run(command, "--help").output


def raised(call):
    with pytest.raises(Exception) as caught:
        call()
    return error_line(caught.value)


def test_a_value_error_of_a_library_is_not_passed_off_as_a_mistake_of_the_user():
    assert "bug" in raised(lambda: np.zeros((2, 3)) + np.zeros((4, 5)))
    assert "bug" in raised(lambda: int("x"))
    assert raised(lambda: PatchGrid.of(100, 256)).endswith("pass --resize 256")


def test_errors_of_the_system_and_of_memory_name_what_to_do():
    assert "not-there" in raised(lambda: open("not-there"))  # noqa: PTH123, SIM115
    assert "--batch-size" in error_line(MemoryError())
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    for text in (cublas, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory"):
        assert error_line(RuntimeError(text)).startswith("out of memory")


def command_line(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "pathseg.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.mark.soak
def test_sigterm_keeps_what_is_finished_and_ends_with_143(tmp_path):
    many = ["extract", "--dataset", "synthetic", "--model", "mini-hipt", "--resize", 256, "--limit", 500,
            "--layout", "native", "--workspace", tmp_path]  # fmt: skip
    process = command_line(*many)
    records = tmp_path / "synthetic-mini-hipt.zarr" / "_done"
    while not list(records.glob("t*/*/000000.json")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "terminated" in error.splitlines()[-1] and "Traceback" not in error
    assert list(records.glob("t*/*/000000.json"))


def test_a_reader_that_has_gone_is_no_error_of_writing(extracted):
    process = command_line("info", store_path(extracted, "synthetic", "mini"))
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == "" and process.wait(60) != 0
    process.stderr.close()


def test_text_that_the_terminal_cannot_show_ends_no_command(extracted, tmp_path):
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = command_line("info", store_path(extracted, "synthetic", "mini"), env=plain)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "") and "synthetic" in output


def test_the_home_folder_is_expanded_in_paths(extracted, monkeypatch):
    monkeypatch.setenv("HOME", str(extracted.parent))
    work = f"~/{extracted.name}"
    assert run("info", f"{work}/synthetic-mini.zarr").exit_code == 0
    refused = run("train-head", f"--workspace={work}", "--blocks", "12")  # found, but without that block
    assert "block" in refused.output and "no feature store" not in refused.output


def test_without_a_home_folder_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr("platformdirs.user_data_path", lambda *names, **options: Path("~").expanduser())
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    result = run("extract", "--dataset", "glas", "--model", "mini")
    assert result.exit_code == 1 and "HOME" in result.output and "--root" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "~nobody-here/x.zarr"),
        ("train-head", "--store", "a=~nobody-here/x.zarr"),
        ("train-head", "--workspace", "~nobody-here/work"),
        ("extract", "--dataset", "synthetic", "--model", "~nobody-here/model"),
        ("predict", __file__, "--run", "~nobody-here/run", "--out", "out"),
        ("refine", __file__, "--store", "~nobody-here/x.zarr"),
    ],
)
def test_a_home_folder_that_is_not_known_is_named(arguments):
    result = run(*arguments)
    assert result.exit_code in (1, 2) and "this is a bug" not in result.output
    assert "~nobody-here" in result.output and "write the whole path" in result.output


def test_pytorch_without_memory_names_the_batch_size():
    assert "--batch-size" in error_line(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))


def test_a_value_given_twice_for_a_model_is_refused():
    assert of_each_model(["a=x", "b=y=z"], ["a", "b"], flag="--model") == {"a": "x", "b": "y=z"}
    for values, models in ((["a=x", "a=y"], ["a", "b"]), (["x", "a=y"], ["a"])):
        with pytest.raises(click.UsageError, match="--model is given twice for the model a: x and y"):
            of_each_model(values, models, flag="--model")
