"""Every row of the paper's comparison from extraction to scores, on three generated images."""

import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from pathseg.cli import main
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import list_runs

FILES = runpy.run_path(str(Path(__file__).parents[2] / "golden/files.py"))


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def extract(workspace, *flags):
    run("extract", "--dataset", "synthetic", "--resize", 256, "--limit", 3, "--layout", "native",
        "--workspace", workspace, *flags)  # fmt: skip


def trained(workspace, *flags):
    run(*flags, "--workspace", workspace)
    (folder,) = list_runs(workspace)
    return FinishedRun.read(folder)


# extraction's flags ({golden} is a small release with its ViT), the model and condition that the run names
MODELS = {
    "mini": (["--model", "mini", "--blocks", "4"], ("mini", "ssl")),
    "mini unconditional": (["--model", "mini", "--blocks", "4", "--condition", "none"], ("mini", "none")),
    "patch tokens of mini": (["--model", "mini-hipt"], ("mini-hipt", "none")),
    "a release, unconditional": (["--model", "{golden}/ldm", "--blocks", "4", "--condition", "none"], ("ldm", "none")),
    "patch tokens of a DINO file": (["--model", "hipt", "--hipt", "{golden}/vit256.pth"], ("hipt", "none")),
}


SHOWN_ELSEWHERE = ("mini", "mini unconditional")  # by the tests of the command line, and by the release below


@pytest.mark.parametrize(
    "row", [pytest.param(r, marks=pytest.mark.slow) if r in SHOWN_ELSEWHERE else r for r in MODELS]
)
def test_each_model_gives_features_that_a_linear_head_scores_on(row, tmp_path):
    FILES["write_case"]("kl_f8_patch", tmp_path)
    flags, named = MODELS[row]
    extract(tmp_path / "work", *(flag.format(golden=tmp_path) for flag in flags))
    found = trained(tmp_path / "work", "train-head", "--head", "linear", "--epochs", 1)
    assert (found.data.key.model, found.data.key.condition) == named
    assert found.test_scores.scores.dice is not None


@pytest.mark.usefixtures("two_networks")
@pytest.mark.soak
def test_a_pixel_ensemble_and_a_baseline_are_trained_by_the_command_line(tmp_path):
    extract(tmp_path, "--model", "mini", "--blocks", "4")
    run("train-head", "--head", "pixel-ensemble", "--pixels", 64, "--epochs", 1, "--workspace", tmp_path)
    run("train-baseline", "--model", "res-unet", "--weights", "none", "--epochs", 1, "--workspace", tmp_path)
    assert [folder.name for folder in list_runs(tmp_path)] == [
        "synthetic-mini-res-unet-none-lr0.0001-epochs1-s0",
        "synthetic-mini-t50-b4-pixel-ensemble-lr0.001-epochs1-pixels64-s0",
    ]
    run("report", "--workspace", tmp_path)
    assert "train-baseline" in (tmp_path / "report" / "index.html").read_text()
