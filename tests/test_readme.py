"""The documentation's commands: every line parses, the recipes agree with one another, the Python examples run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from pathseg.cli import main
from pathseg.extract.datasets.registry import DatasetOptions, check_options
from pathseg.extract.models.registry import DEFAULT_MODEL
from pathseg.store.runtime.workspace import DEFAULT, store_path
from pathseg.train.heads.pixel_ensemble import FREE_EPOCHS

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "extract/README.md", "store/README.md", "train/README.md", "benchmarks/README.md")
}
SHELL_BLOCKS = [
    pytest.param(block, id=f"{name}: {block.splitlines()[0]}")
    for name, text in PAGES.items()
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
]
BLOCKS = [parameter.values[0] for parameter in SHELL_BLOCKS]
# a shell in which pathseg prints its arguments, one a line, and every other command of the pages does nothing
SHELL = (
    "pathseg() { printf '%s\\n' \"$@\" ''; }; pip() { :; }; pytest() { :; }; python() { :; }; dask() { :; }; set -u\n"
)
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
RECIPES = {
    name: next(block for block in BLOCKS if block.startswith(f"F=pathseg-work/{name}-")) for name in ("glas", "bcss")
}


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


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 200


@needs_bash
@pytest.mark.parametrize("block", SHELL_BLOCKS)
def test_every_line_parses_and_its_flags_are_there(block, tmp_path):
    for arguments in commands(block, tmp_path):
        name, flags = parsed(arguments)
        if name == "extract":
            values = {field: flags[field] for field in DatasetOptions.__dataclass_fields__}
            check_options(flags["dataset"], DatasetOptions(**values))


def test_a_flag_that_is_not_there_would_be_found():
    with pytest.raises(click.UsageError):
        parsed(["train-head", "--rate", "1"])


def test_every_link_to_a_file_leads_somewhere():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


@needs_bash
def test_all_lines_that_extract_to_one_store_agree(tmp_path):
    made = {}
    for block in BLOCKS:
        for name, flags in (parsed(arguments) for arguments in commands(block, tmp_path)):
            if name == "extract" and flags["dataset"] in RECIPES:
                store = flags["store"] or str(store_path(DEFAULT, flags["dataset"], flags["model"]))
                key = [flags[setting] for setting in ("model", "condition", "layout", "val_institutes", "seed")]
                assert made.setdefault(store, key) == key
    names = {f"{data}-{model}" for data in RECIPES for model in ("brca-hipt-20x", "uncond", "hipt")}
    assert names <= {Path(path).stem for path in made}


@needs_bash
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_on_what_it_has_extracted(name, tmp_path):
    extracted = {}
    for command, flags in (parsed(arguments) for arguments in commands(RECIPES[name], tmp_path)):
        if command == "extract":
            extracted.setdefault(flags["store"], set()).update(flags["t"])
        elif command.startswith("train"):
            for store in flags["store"] if command == "train-head" else [flags["store"]]:
                assert set(flags.get("t", ())) <= extracted[store]
            assert flags["class_weights"] == {"glas": "none", "bcss": "balanced"}[name]
            assert flags["seed"] == (0, 1, 2)


def test_the_comparison_passes_on_what_bcss_needs():
    """Every line that it prints parses; each flag stands on the lines it applies to."""
    given = ["--dataset", "bcss", "--blocks", "4-6", "--class-weights", "balanced", "--val-institutes", "BH,C8"]
    command = [sys.executable, "-m", "benchmarks.train.comparison", *given, "--dry-run"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    lines = [parsed(shlex.split(line.removeprefix("$ pathseg "))) for line in printed.splitlines()]
    assert [name for name, _ in lines] == ["extract"] * 3 + ["train-head"] * 5 + ["train-baseline"] * 2 + ["report"]
    assert all(flags["val_institutes"] == ("BH", "C8") for _, flags in lines[:3])
    assert [flags["blocks"] for _, flags in lines[:2]] == [(4, 5, 6)] * 2
    assert all(flags["class_weights"] == "balanced" for _, flags in lines[3:-1])


def test_the_examples_in_python_run(tmp_path, monkeypatch):
    """The blocks of README.md, one after another in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    names = {"images": np.zeros((2, 256, 256, 3), np.uint8)}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGES["README.md"], re.DOTALL | re.MULTILINE):
        exec(compile(block, "README.md", "exec"), names)


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
    for arguments in commands(RECIPES["glas"], tmp_path):
        result = CliRunner().invoke(main, in_small(arguments))
        assert result.exit_code == 0, (arguments, result.output)
    tables = Path("pathseg-work/report/tables.md").read_text(encoding="utf-8")
    for words in ("PathSegDiff-uncond", "DDPMSeg", "HIPT", "linear probe", "Res-UNet", "VGG16-FCN8",
                  "Scores by timestep", "Scores by blocks", "Scores by learning rate"):  # fmt: skip
        assert words in tables
    pictures = {path.name for path in Path("pathseg-work/report").iterdir()}
    assert any(name.startswith("sidebyside-") for name in pictures), pictures


def test_the_layers_named_for_a_vit_exist_in_one_of_12_layers():
    (example,) = re.findall(r"\*\*Blocks\*\*: `--blocks ([\d,]+)`", PAGES["extract/README.md"])
    assert all(int(layer) < 12 for layer in example.split(",")), "layers count from 0"


def test_the_epochs_in_which_no_network_of_a_pixel_ensemble_stops_are_those_of_the_code():
    assert f"(epochs 0 to {FREE_EPOCHS - 1})" in PAGES["train/README.md"]


def test_predict_says_what_memory_grows_with():
    help_text = " ".join(CliRunner().invoke(main, ["predict", "--help"]).output.split())
    assert "Memory grows with the width of a slide" in help_text
    assert "**Memory** grows by the width of a slide" in PAGES["train/README.md"]
