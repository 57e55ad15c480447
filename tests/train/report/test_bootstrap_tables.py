"""Intervals and differences as tables: one row a run, honest dashes."""

import dataclasses

import numpy as np
import pytest

from pathseg.train.metrics.pixel import Scores, constant_prediction
from pathseg.train.report.bootstrap_tables import uncertainty_tables
from pathseg.train.report.sweeps import Repeat
from pathseg.train.report.systems import System
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.split_scores import PartScores

GOOD, FAIR = np.array([[50, 10], [20, 20]]), np.array([[40, 20], [20, 20]])


def finished(name, matrix, *, ids=("a", "b"), recorded=True):
    whole = len(ids) * matrix
    scores = Scores.of(whole)
    part = PartScores(
        len(ids), scores, "background", Scores.of(constant_prediction(whole, 0)), dict.fromkeys(ids, Scores.of(matrix)),
        dict.fromkeys(ids, matrix) if recorded else {},
    )  # fmt: skip
    data = {"classes": ["background", "gland"], "ignore": None, "size": [256, 512]}
    config = {"head": {}, "data": data, "parameters": 1}
    return FinishedRun(RunFolder(f"heads/{name}"), config, (), 1, 1, 1.0, "testB", {"testB": part})


def test_a_score_stands_with_its_interval():
    (table,) = uncertainty_tables([finished("one", GOOD)], "testB", "GlaS")  # equal images: no width
    assert table.rows[0].cells[:2] == ("one", "0.700 [0.700, 0.700]")


def test_every_run_is_compared_with_the_best():
    _, table = uncertainty_tables([finished("fair", FAIR), finished("good", GOOD)], "testB", "GlaS")
    dice = (80 / 120 + 40 / 80) / 2 - (100 / 130 + 40 / 70) / 2
    bounds = f"−{-dice:.3f}"
    assert table.caption == "Each run against good on testB, GlaS"
    assert table.rows[0].cells == ("fair", bounds, f"[{bounds}, {bounds}]", "0.500", "2")


def test_systems_are_compared_with_the_first_whichever_is_better():
    runs = [finished("ours", FAIR), finished("unconditional", GOOD), finished("another seed", GOOD)]
    shown = [System(name, Repeat((run,)), (), 1) for name, run in zip(("P", "P-uncond"), runs, strict=False)]
    *_, table = uncertainty_tables(runs, "testB", "GlaS", shown)
    dice = (100 / 130 + 40 / 70) / 2 - (80 / 120 + 40 / 80) / 2
    assert table.caption == "Each system against P on testB, GlaS"
    assert table.columns[:2] == ("system", "Dice − P")
    assert table.rows[0].cells == ("P-uncond", f"+{dice:.3f}", f"[+{dice:.3f}, +{dice:.3f}]", "0.500", "2")
    assert "P: ours; P-uncond: unconditional" in table.notes[0] and "picked on these images" not in table.notes[1]


def test_one_system_is_compared_with_none():
    runs = [finished("a", FAIR), finished("b", GOOD)]
    assert len(uncertainty_tables(runs, "testB", "GlaS", [System("P", Repeat(tuple(runs)), (), 1)])) == 2


def test_runs_on_other_images_have_a_dash_and_a_note():
    _, table = uncertainty_tables([finished("good", GOOD), finished("x", FAIR, ids=("c", "d"))], "testB", "GlaS")
    assert table.rows[0].cells == ("x", "–", "–", "–", "–") and "different images" in table.notes[1]


def test_a_run_on_images_of_another_size_has_a_dash_and_a_note():
    other = finished("x", FAIR)
    other.data["size"] = [768, 768]
    _, table = uncertainty_tables([finished("good", GOOD), other], "testB", "GlaS")
    assert table.rows[0].cells == ("x", "–", "–", "–", "–") and "images of another size" in table.notes[1]


@pytest.mark.parametrize("split", ["testB", "testA"])
def test_runs_without_matrices_have_no_tables(split):
    assert uncertainty_tables([finished("old", GOOD, recorded=False)], split, "GlaS") == ()


def test_the_text_says_what_was_drawn():
    (images,) = uncertainty_tables([finished("one", GOOD)], "testB", "GlaS")
    assert "over the test images," in images.notes[0] and "region" not in images.notes[0].split("several")[0]
    runs = [finished("one", GOOD), finished("two", FAIR)]
    for run in runs:
        run.parts["testB"] = dataclasses.replace(run.parts["testB"], sources={"a": "r", "b": "r"})
    regions, differences = uncertainty_tables(runs, "testB", "BCSS")
    assert "over the test regions," in regions.notes[0]
    assert differences.columns[-1] == "regions" and differences.rows[0].cells[-1] == "1"
    assert "each of the regions" in differences.notes[0]
