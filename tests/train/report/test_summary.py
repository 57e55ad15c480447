"""The report in words: what the sentences say, and that the commands are those of the door."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from pathseg.cli import main
from pathseg.extract.datasets import glas
from pathseg.extract.datasets.synthetic import dataset as synthetic
from pathseg.store.blocks import BLOCKS
from pathseg.train.config import HEAD_DEFAULTS, HeadConfig
from pathseg.train.metrics.pixel import Scores, constant_prediction
from pathseg.train.report.summary import (
    NOT_RECORDED,
    SIDES,
    commands,
    data_facts,
    flat,
    run_facts,
    summary,
    untrained_warning,
)
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.split_scores import PartScores

GOOD, FAIR = np.array([[50, 10], [20, 20]]), np.array([[40, 20], [20, 20]])
CONFIG = {
    "head": {"t": 50, "blocks": [4, 5, 6], "head": "fcn", "lr": 1e-4, "epochs": 30, "batch_size": 1, "seed": 3},
    "data": {
        "store": "/data/my stores/glas.zarr", "dataset": "glas", "classes": ["background", "gland"], "ignore": None,
        "model": {"name": "mini", "digest": "0" * 64, "trained": True, "condition": "ssl", "first_stage": "vq-f4"},
        "mpp": 0.62, "size": [768, 512], "layout": "grid", "preprocessing": "resized", "test_split": "testB",
        "images": {"train": ["a", "b"], "val": ["c"], "testB": ["d", "e"]},
    },
    "parameters": 2654274,
    "device": "cpu",
}  # fmt: skip


def finished(name: str, matrix: np.ndarray, *, val: float = 0.5, trained: bool = True) -> FinishedRun:
    scores, constant = Scores.of(matrix), Scores.of(constant_prediction(matrix, 0))
    part = PartScores(2, scores, "background", constant, {"d": scores, "e": scores})
    data = {**CONFIG["data"], "model": {**CONFIG["data"]["model"], "trained": trained}}
    history = ({"epoch": 7, "val_dice": val},)
    return FinishedRun(
        RunFolder(f"heads/{name}"), {**CONFIG, "data": data}, history, 7, 30, 83.0, "testB", {"testB": part}
    )


def test_the_summary_gives_run_score_and_what_it_is_worth():
    text = summary([finished("one", GOOD)], "GlaS")
    dice = (100 / 130 + 40 / 70) / 2
    assert text.startswith(
        f"one has a Dice on testB of GlaS (2 images): {dice:.3f}, with mIoU 0.512 and accuracy 0.700"
    )
    assert f"{dice - 0.375:.3f} above always answering background (0.375)" in text


def test_the_summary_names_model_condition_blocks_and_timestep():
    text = summary([finished("one", GOOD)], "GlaS")
    assert "features are those of the model mini, conditioned on the SSL embedding, blocks 4-6 at t = 50." in text


def test_the_summary_says_random_weights():
    assert "model mini with random weights" in summary([finished("one", GOOD, trained=False)], "GlaS")


def test_the_summary_sets_the_papers_figure_beside():
    assert "0.896 for PathSegDiff (cited, not run here)" in summary([finished("one", GOOD)], "GlaS")


def test_a_run_no_better_than_the_constant_is_called_so():
    text = summary([finished("one", np.array([[60, 0], [40, 0]]))], "GlaS")
    assert "no better than always answering background (0.375)" in text


def test_the_summary_says_which_run_validation_would_pick():
    text = summary([finished("one", GOOD, val=0.4), finished("two", FAIR, val=0.6)], "GlaS")
    assert text.startswith("Of 2 runs, one has the highest Dice")
    dice = (80 / 120 + 40 / 80) / 2
    assert f"validation Dice would pick two, with a test Dice of {dice:.3f}." in text


def test_the_summary_says_when_validation_picks_the_same_run():
    text = summary([finished("one", GOOD, val=0.7), finished("two", FAIR, val=0.6)], "GlaS")
    assert text.endswith("validation Dice picks the same run.")


def test_a_single_run_needs_no_word_on_choice():
    assert "flatters" not in summary([finished("one", GOOD)], "GlaS")


def test_without_history_the_choice_note_still_stands():
    runs = [dataclasses.replace(finished(name, GOOD), history=()) for name in ("one", "two")]
    assert summary(runs, "GlaS").endswith("by their test score flatters it.")


def test_trained_models_bring_no_warning():
    assert untrained_warning([finished("one", GOOD)]) == ""


def test_an_untrained_model_is_named_in_the_warning():
    assert untrained_warning([finished("one", GOOD, trained=False)]) == (
        "Model mini is untrained; random weights: numbers show that the pipeline works, nothing about pathology"
    )


def test_the_warning_says_when_it_is_about_some_rows_only():
    assert "(the rows marked untrained)" in untrained_warning(
        [finished("one", GOOD), finished("two", GOOD, trained=False)]
    )


def test_the_facts_of_the_data():
    assert dict(data_facts(finished("one", GOOD))) == {
        "Classes": "background, gland",
        "Images": "512 × 768 px, 0.62 µm/px, resized",
        "Parts": "train 2, val 1, testB 2",
    }


def test_the_facts_of_a_run():
    assert run_facts(finished("one", GOOD)) == (
        "Images of 512x768 px, 2,654,274 parameters, 30 epochs, 1 min 23 s of training steps on cpu; "
        "kept: epoch 7, validation Dice 0.500"
    )


def test_commands_carry_every_setting_of_the_head():
    words = shlex.split(commands(finished("one", GOOD), Path("work"))[1])
    assert words[:2] == ["pathseg", "train-head"]
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    assert flags == {
        "--workspace": "work", "--store": "/data/my stores/glas.zarr", "--t": "50", "--blocks": "4-6", "--head": "fcn",
        "--lr": "0.0001", "--epochs": "30", "--batch-size": "1", "--seed": "3", "--name": "one",
    }  # fmt: skip


def test_the_first_command_extracts_and_the_last_reports():
    first, _, last = commands(finished("one", GOOD), Path("work"))
    assert first.startswith("pathseg extract --workspace work --dataset glas --model mini --condition ssl --t 50")
    assert last == "pathseg report --workspace work"


ODD = HeadConfig(
    t=10, blocks=(0, 4, 5, 6, 12), head="linear", lr=3e-4, epochs=7, patience=2, batch_size=3, augment="flips",
    class_weights="balanced", precision="bfloat16", val_fraction=0.25, seed=5, split_seed=9,
    connectivity="4", min_object_px=20,
)  # fmt: skip


def parsed(config: HeadConfig, number: int) -> dict:
    """What the door makes of the command that is printed for a run of this configuration."""
    head = json.loads(json.dumps(dataclasses.asdict(config)))
    run = dataclasses.replace(finished("my run", GOOD), config={**CONFIG, "head": head})
    _, command, *words = shlex.split(commands(run, Path("my work"))[number])
    return main.commands[command].make_context(command, words).params


def test_the_odd_configuration_has_no_default_value():
    usual = {field.name for field in dataclasses.fields(HeadConfig) if getattr(ODD, field.name) == field.default}
    assert usual == set(HEAD_DEFAULTS[ODD.network].unused)


@pytest.mark.parametrize("config", [ODD, HeadConfig(), HeadConfig(blocks=(7,), lr=1e-5, epochs=1)])
def test_the_door_reads_the_training_command_as_the_same_configuration(config):
    values = parsed(config, 1)
    swept = {f.name for f in dataclasses.fields(HeadConfig) if f.metadata.get("sweep")} - {"blocks"}
    read = {f.name: values[f.name] for f in dataclasses.fields(HeadConfig)}
    assert all(len(read[name]) == 1 for name in swept)
    assert HeadConfig(**{name: value[0] if name in swept else value for name, value in read.items()}) == config


def test_the_door_reads_where_the_training_command_reads_and_writes():
    values = parsed(ODD, 1)
    assert (values["store"], values["name"], values["workspace"]) == (
        "/data/my stores/glas.zarr", "my run", Path("my work"),
    )  # fmt: skip


def test_the_door_reads_the_extraction_command():
    values = parsed(ODD, 0)
    assert (values["dataset"], values["model"], values["condition"]) == ("glas", "mini", "ssl")
    assert (values["t"], values["blocks"], values["layout"]) == ((10,), BLOCKS, "grid")


def test_the_extraction_command_makes_features_of_the_same_key(toy_key):
    made = toy_key(dtype="float32", packing="lossless", precision="bfloat16", seed=7).to_dict()
    run = finished("one", GOOD)
    again = dataclasses.replace(run, config={**run.config, "data": {**run.data, "features": made}})
    _, command, *words = shlex.split(commands(again, Path("work"))[0])
    values = main.commands[command].make_context(command, words).params
    found = (values["dtype"], values["packing"], values["precision"], values["seed"])
    assert found == ("float32", "lossless", "bfloat16", 7)


@pytest.mark.parametrize(
    ("dataset", "size", "preprocessing", "resize"),
    [
        ("glas", [768, 768], "resized to 768x768 px", None),
        ("glas", [512, 512], "resized to 512x512 px", 512),
        ("synthetic", [512, 512], "none", None),
        ("synthetic", [256, 256], "none", 256),
        ("folder", [256, 256], "mask codes 0, 1 are classes 0..1", None),
        ("folder", [256, 256], "resized to 256x256 px; mask codes", 256),
        ("folder", [256, 512], "mask codes 0, 1 are classes 0..1", None),
    ],
)
def test_the_extraction_command_has_the_size_where_it_was_asked_for(dataset, size, preprocessing, resize):
    run = finished("one", GOOD)
    data = {**run.data, "dataset": dataset, "size": size, "preprocessing": preprocessing}
    first = commands(dataclasses.replace(run, config={**run.config, "data": data}), Path("work"))[0]
    _, command, *words = shlex.split(first)
    assert main.commands[command].make_context(command, words).params["resize"] == resize


def test_the_sizes_without_a_flag_are_those_of_the_data_sets():
    assert SIDES == {"glas": glas.SIDE_PX, "synthetic": synthetic.SIDE_PX}


def test_what_a_run_does_not_record_are_flags_of_extract():
    flags = {flag for option in main.commands["extract"].params for flag in option.opts}
    assert set(NOT_RECORDED.split(", ")) <= flags


def test_a_configuration_is_flattened_with_dotted_names():
    config = {"head": {"blocks": [0, 4, 5, 6], "lr": 0.1}, "data": {"model": {"name": "m"}, "ignore": None}, "ids": []}
    assert flat(config) == (
        ("head.blocks", "0,4-6"), ("head.lr", "0.1"), ("data.model.name", "m"), ("data.ignore", "none"), ("ids", ""),
    )  # fmt: skip
