"""Sweeps as tables: which scores stand in which row, what is cited, what is said of them."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from pathseg.train.config import HeadConfig
from pathseg.train.metrics.pixel import Scores, constant_prediction
from pathseg.train.report.sweep_tables import cost_table, seeds_table, sentence, sweep_table
from pathseg.train.report.sweeps import Sweep, sweeps
from pathseg.train.report.tables import DASH, Table
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.split_scores import PartScores

GOOD = np.array([[50, 10], [20, 20]])
DICE = f"{(100 / 130 + 40 / 70) / 2:.3f}"


def finished(
    *, name: str = "", val: float = 0.5, trained: bool = True, dataset: str = "glas",
    read: tuple[int, int] | None = None, **settings: Any,
) -> FinishedRun:  # fmt: skip
    data = {
        "store": "/s.zarr", "key": "k", "dataset": dataset, "classes": ["background", "gland"], "ignore": None,
        "model": {"name": "mini", "trained": trained, "condition": "ssl"}, "test_split": "testB",
        "images": {"train": ["a"], "val": ["b", "c"]},
    }  # fmt: skip
    scores, constant = Scores.of(GOOD), Scores.of(constant_prediction(GOOD, 0))
    part = PartScores(2, scores, "background", constant, {"d": scores, "e": scores})
    history = ({"epoch": 4, "val_accuracy": val + 0.2, "val_miou": val - 0.1, "val_dice": val},)
    bytes_read, heads = read or (None, None)
    return FinishedRun(
        RunFolder(name or "-".join(f"{key}{value}" for key, value in settings.items()) or "one"),
        {"head": dataclasses.asdict(HeadConfig(**settings)), "data": data, "parameters": 2654274},
        history, 4, 8, 60.0, "testB", {"testB": part}, bytes_read, heads,
    )  # fmt: skip


def rates(**about: Any) -> Sweep:
    """1e-3 with the validation Dice 0.4, 1e-4 with 0.5 and 0.7."""
    runs = [(1e-3, 0, 0.4), (1e-4, 0, 0.5), (1e-4, 1, 0.7)]
    (sweep,) = sweeps([finished(lr=lr, seed=seed, val=val, **about) for lr, seed, val in runs])
    return sweep


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip(table.columns, table.rows[row].cells, strict=True))


def test_a_row_gives_mean_and_sample_deviation_by_hand():
    row = cells(sweep_table(rates(), "GlaS"), 1)
    assert row == {
        "learning rate": "0.0001", "n (seeds)": "2 (0, 1)", "val. accuracy": "0.800 ± 0.141",
        "val. mIoU": "0.500 ± 0.141", "val. Dice": "0.600 ± 0.141", "testB mIoU": "0.512 ± 0.000",
        "testB Dice": f"{DICE} ± 0.000",
    }  # fmt: skip


def test_one_seed_has_no_deviation():
    row = cells(sweep_table(rates(), "GlaS"), 0)
    assert (row["n (seeds)"], row["val. Dice"]) == ("1 (0)", "0.400")


def test_the_highest_mean_validation_dice_is_marked():
    assert [row.best for row in sweep_table(rates(), "GlaS").rows][:2] == [False, True]


def test_the_constant_prediction_has_test_scores_only():
    row = next(row for row in sweep_table(rates(), "GlaS").rows if row.kind == "constant")
    assert row.cells == ("always background", "constant answer", DASH, DASH, DASH, "0.300", "0.375")


def test_the_papers_rates_stand_below_ours_as_cited():
    rows = [row.cells for row in sweep_table(rates(), "GlaS").rows if row.kind == "cited"]
    assert rows == [
        ("0.001", "cited, Table 5", "0.819", "0.632", "0.769", DASH, DASH),
        ("0.0001", "cited, Table 5", "0.826", "0.646", "0.780", DASH, DASH),
        ("1e-05", "cited, Table 5", "0.821", "0.638", "0.774", DASH, DASH),
    ]


@pytest.mark.parametrize(("dataset", "said"), [("glas", "another data set than this one"), ("bcss", "may be others")])
def test_the_cited_rates_are_said_to_be_on_bcss(dataset, said):
    note = sweep_table(rates(dataset=dataset), "t").notes[-1]
    assert "BCSS" in note and "not run here" in note and said in note


def test_other_sweeps_cite_no_rates():
    (sweep,) = sweeps([finished(t=10), finished(t=50)])
    assert {row.kind for row in sweep_table(sweep, "GlaS").rows} == {"run", "constant"}


def test_blocks_are_written_as_on_the_command_line():
    (sweep,) = sweeps([finished(blocks=(4, 5, 6)), finished(blocks=(7,)), finished()])
    assert [row.cells[0] for row in sweep_table(sweep, "GlaS").rows[:3]] == ["7", "4-6", "all"]


def test_a_seed_without_validation_scores_is_counted_out():
    runs = [finished(t=10, val=0.5), finished(t=10, seed=1), finished(t=50)]
    runs[1] = dataclasses.replace(runs[1], history=())
    (sweep,) = sweeps(runs)
    assert cells(sweep_table(sweep, "GlaS"), 0)["val. Dice"] == "0.500 (n = 1)"


def test_an_untrained_model_is_said_in_caption_and_sentence():
    sweep = rates(trained=False)
    assert "untrained model" in sweep_table(sweep, "GlaS").caption and "random weights" in sentence(sweep, "GlaS")


def test_a_trained_model_is_not_called_untrained():
    assert "untrained" not in sweep_table(rates(), "GlaS").caption + sentence(rates(), "GlaS")


def test_the_sentence_says_which_images_how_many_seeds_and_what_bars_are():
    text = sentence(rates(), "GlaS")
    assert text.startswith("GlaS: scores on 2 validation images and on the test part testB (2 images).")
    assert "(n = 1–2 seeds for each value), bars ± one sample standard deviation" in text


def test_the_sentence_says_that_one_seed_has_no_deviation():
    (sweep,) = sweeps([finished(t=10), finished(t=50)])
    assert "One head (one seed) for each value, so the deviation is not known." in sentence(sweep, "GlaS")


def test_runs_that_differ_by_seed_are_one_row():
    table = seeds_table([finished(seed=0, val=0.5), finished(seed=1, val=0.7), finished(seed=2, val=0.6)], "GlaS")
    row = cells(table, 0)
    assert len(table.rows) == 1 and (row["n (seeds)"], row["val. Dice"]) == ("3 (0, 1, 2)", "0.600 ± 0.100")


def test_settings_that_all_rows_share_are_said_once():
    table = seeds_table([finished(t=t, seed=seed) for t in (10, 50) for seed in (0, 1)], "GlaS")
    assert [row.cells[0] for row in table.rows] == ["t = 10", "t = 50"]
    assert "All rows: model mini, condition ssl, blocks all, head fcn" in table.notes[1]


def test_single_seeds_make_no_table():
    assert seeds_table([finished(t=10), finished(t=50)], "GlaS") is None


def test_a_run_that_was_trained_twice_is_named_and_not_counted():
    table = seeds_table([finished(name="a"), finished(name="b"), finished(name="c", seed=1)], "GlaS")
    assert cells(table, 0)["n (seeds)"] == "2 (0, 1)" and "under another name: b (as a)" in table.notes[-1]


def test_the_cost_of_a_run_by_hand():
    table = cost_table([finished(blocks=(4,), read=(26_000_000, 13)), finished(blocks=(5,))], "GlaS")
    row = cells(table, 0)
    assert (row["training steps, s"], row["s per epoch"]) == ("60.0", "7.50")
    assert (row["read from the store"], row["heads from one read"], row["read per head"]) == ("26.0 MB", "13", "2.0 MB")


def test_a_run_that_did_not_count_its_reading_has_dashes():
    table = cost_table([finished(t=10), finished(t=50)], "GlaS")
    assert table.rows[0].cells[-3:] == (DASH, DASH, DASH)


def test_a_single_run_has_no_cost_table():
    assert cost_table([finished()], "GlaS") is None
