"""The README's commands: every line parses, the recipes agree with one another and run after one another."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pathseg.cli import main
from pathseg.extract.datasets.registry import DatasetOptions, check_options
from pathseg.extract.models.registry import DEFAULT_MODEL
from pathseg.store.runtime.workspace import DEFAULT, store_path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
# a shell in which pathseg prints its arguments, one a line, and what else the README calls does nothing
SHELL = "pathseg() { printf '%s\\n' \"$@\" ''; }; pip() { :; }; pytest() { :; }; set -u\n"
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
RECIPES = {"glas": -2, "bcss": -1}  # the last two blocks


def commands(block, folder):
    """The arguments of each pathseg command of a block, as bash gives them in an empty folder."""
    done = subprocess.run(
        ["bash", "-c", SHELL + block], capture_output=True, text=True, check=True, cwd=folder, encoding="utf-8"
    )
    return [command.split("\n") for command in done.stdout.split("\n\n") if command]


def parsed(arguments):
    """The command's name and the value of each of its flags. Raises click.UsageError; runs nothing."""
    with click.Context(main, info_name="pathseg") as context:
        name, command, rest = main.resolve_command(context, list(arguments))
        return name, command.make_context(name, rest, parent=context).params


def recipe(name, folder):
    return [parsed(arguments) for arguments in commands(BLOCKS[RECIPES[name]], folder)]


def test_there_are_blocks_of_commands():
    assert len(BLOCKS) >= 7
    for name, number in RECIPES.items():
        assert f"--dataset {name}" in BLOCKS[number]


@needs_bash
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_every_line_parses_and_its_flags_are_there(block, tmp_path):
    for arguments in commands(block, tmp_path):
        name, flags = parsed(arguments)
        if name == "extract":
            values = {field: flags[field] for field in DatasetOptions.__dataclass_fields__}
            check_options(flags["dataset"], DatasetOptions(**values))


def test_a_flag_that_is_not_there_would_be_found():
    with pytest.raises(click.UsageError):
        parsed(["train-head", "--rate", "1"])


@needs_bash
def test_all_lines_that_extract_to_one_store_agree(tmp_path):
    made = {}
    for block in BLOCKS:
        for name, flags in map(parsed, commands(block, tmp_path)):
            if name == "extract":
                store = flags["store"] or str(store_path(DEFAULT, flags["dataset"], flags["model"]))
                key = [flags[setting] for setting in ("model", "condition", "layout", "val_institutes", "seed")]
                assert made.setdefault(store, key) == key
    assert {Path(path).stem for path in made} == {
        f"{data}-{model}" for data in ("glas", "bcss") for model in ("brca-hipt-20x", "uncond", "hipt")
    }


@needs_bash
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_on_what_it_has_extracted(name, tmp_path):
    extracted = {}
    for command, flags in recipe(name, tmp_path):
        if command == "extract":
            extracted.setdefault(flags["store"], set()).update(flags["t"])
        elif command.startswith("train"):
            assert set(flags.get("t", ())) <= extracted[flags["store"]]
            assert flags["class_weights"] == {"glas": "none", "bcss": "balanced"}[name]
            assert flags["seed"] == (0, 1, 2)


def test_the_comparison_hands_on_what_bcss_needs():
    """Every line that it prints parses; what is asked for stands on the lines it applies to."""
    root = Path(__file__).parents[1]
    asked = ["--dataset", "bcss", "--blocks", "4-6", "--class-weights", "balanced", "--val-institutes", "BH,C8"]
    printed = subprocess.run(
        [sys.executable, "-m", "benchmarks.train.comparison", *asked, "--dry-run"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [parsed(shlex.split(line.removeprefix("$ pathseg "))) for line in printed.splitlines()]
    assert [name for name, _ in lines] == ["extract"] * 3 + ["train-head"] * 5 + ["train-baseline"] * 2 + ["report"]
    assert all(flags["val_institutes"] == ("BH", "C8") for _, flags in lines[:3])
    assert [flags["blocks"] for _, flags in lines[:2]] == [(4, 5, 6)] * 2
    assert all(flags["class_weights"] == "balanced" for _, flags in lines[3:-1])


IN_SMALL = (("glas", "synthetic"), (DEFAULT_MODEL, "mini"), ("-hipt.zarr", "-mini-hipt.zarr"))


def in_small(arguments):
    """A command of the GlaS recipe on three generated images with the bundled models, one epoch and one seed."""
    words = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        for old, new in IN_SMALL:
            word = word.replace(old, new)
        words.append({"--model": {"hipt": "mini-hipt"}, "--seed": {"0,1,2": "0"}}.get(before, {}).get(word, word))
    if words[0] == "extract":
        return [*words, "--resize", "256", "--limit", "3", *([] if "--model" in words else ["--model", "mini"])]
    if words[0] == "train-baseline":
        return [*words, "--epochs", "1", "--weights", "none"]
    if words[0] == "train-head":
        return [*words, "--epochs", "1", *(["--pixels", "64"] if "pixel-ensemble" in words else [])]
    return words


@pytest.mark.slow
@needs_bash
def test_the_recipe_for_glas_runs_from_one_end_to_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in commands(BLOCKS[RECIPES["glas"]], tmp_path):
        result = CliRunner().invoke(main, in_small(arguments))
        assert result.exit_code == 0, (arguments, result.output)
    tables = Path("pathseg-work/report/tables.md").read_text(encoding="utf-8")
    for words in ("PathSegDiff-uncond", "DDPMSeg", "HIPT", "linear probe", "Res-UNet", "VGG16-FCN8",
                  "Scores by timestep", "Scores by blocks", "Scores by learning rate"):  # fmt: skip
        assert words in tables
    pictures = {path.name for path in Path("pathseg-work/report").iterdir()}
    assert any(name.startswith("sidebyside-") for name in pictures), pictures
