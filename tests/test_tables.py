"""The report's tables: what is in which row, and how it is written."""

import numpy as np
import pytest

from pathseg.train.metrics import Scores, constant_answer
from pathseg.train.runs import FinishedRun, PartScores, RunFolder
from pathseg.train.tables import (
    DASH,
    SETTINGS,
    Row,
    Table,
    by_dice,
    cited_details,
    difference,
    number,
    per_class,
    per_image,
    results,
)  # fmt: skip

GOOD, FAIR = np.array([[50, 10], [20, 20]]), np.array([[40, 20], [20, 20]])


def part(matrix: np.ndarray, ids: tuple[str, ...] = ("testB_1", "testB_2")) -> PartScores:
    scores = Scores.of(matrix)
    constant = Scores.of(constant_answer(matrix, 0))
    return PartScores(len(ids), scores, "background", constant, dict.fromkeys(ids, scores))


def finished(name: str, parts: dict[str, PartScores], *, trained: bool = True, dataset: str = "glas") -> FinishedRun:
    config = {
        "head": {"t": 50, "blocks": [4, 5, 6], "head": "fcn", "lr": 1e-4, "epochs": 30, "seed": 3},
        "data": {
            "dataset": dataset, "classes": ["background", "gland"], "ignore": None,
            "model": {"name": "mini", "trained": trained, "condition": "ssl"},
        },
        "parameters": 2654274,
    }  # fmt: skip
    return FinishedRun(RunFolder(f"heads/{name}"), config, (), 7, 30, 60.0, "testB", parts)


@pytest.fixture
def runs() -> list[FinishedRun]:
    return [finished("fair", {"testB": part(FAIR)}), finished("good", {"testB": part(GOOD), "testA": part(FAIR)})]


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip(table.columns, table.rows[row].cells, strict=True))


def test_runs_come_first_then_the_constant_then_what_is_cited(runs):
    kinds = [row.kind for row in results(runs, "testB", "t").rows]
    assert kinds == ["run"] * 2 + ["constant"] + ["cited"] * 8


def test_the_highest_dice_is_first_and_marked(runs):
    rows = results(runs, "testB", "t").rows
    assert [(row.cells[0], row.best) for row in rows[:2]] == [("good", True), ("fair", False)]


def test_a_row_says_how_the_run_was_made(runs):
    row = cells(results(runs, "testB", "t"), 0)
    assert [row[name] for name in SETTINGS] == [
        "mini", "ssl", "50", "4-6", "fcn", "2,654,274", "0.0001", "3", "30 (7)", "2",
    ]  # fmt: skip


def test_scores_are_those_of_the_matrix(runs):
    row = cells(results(runs, "testB", "t"), 0)
    dice, miou = (100 / 130 + 40 / 70) / 2, (50 / 80 + 20 / 50) / 2
    assert (row["accuracy"], row["Dice"], row["mIoU"]) == ("0.700", f"{dice:.3f}", f"{miou:.3f}")


def test_the_difference_is_to_the_constant_answer(runs):
    dice, constant = (100 / 130 + 40 / 70) / 2, 120 / 160 / 2
    assert cells(results(runs, "testB", "t"), 0)["Dice − constant"] == f"+{dice - constant:.3f}"


def test_the_constant_row_names_its_class(runs):
    row = cells(results(runs, "testB", "t"), 2)
    assert (row["run"], row["model"], row["Dice"]) == ("always background", "constant answer", "0.375")


def test_a_cited_row_is_marked_with_its_table(runs):
    row = cells(results(runs, "testB", "t"), -1)
    assert (row["run"], row["model"], row["Dice"], row["F1"]) == ("PathSegDiff", "cited, Table 4", "0.896", "0.894")


def test_a_cited_value_that_the_paper_does_not_print_is_a_dash(runs):
    table = results(runs, "testB", "t")
    row = next(cells(table, i) for i, row in enumerate(table.rows) if row.cells[0] == "CIMD")
    assert (row["accuracy"], row["Dice"], row["mIoU"]) == (DASH, DASH, "0.569")


def test_a_test_part_holds_only_the_runs_that_were_scored_on_it(runs):
    assert [row.cells[0] for row in results(runs, "testA", "t").rows] == ["good", "always background"]


def test_an_untrained_model_is_marked_in_its_row():
    row = cells(results([finished("a", {"testB": part(GOOD)}, trained=False)], "testB", "t"), 0)
    assert row["model"] == "mini (untrained)"


def test_runs_on_different_images_are_said_not_to_compare(runs):
    other = finished("other", {"testB": part(GOOD, ids=("testB_3",))})
    notes = results([*runs, other], "testB", "t").notes
    assert any("scored on different images" in note for note in notes)


def test_runs_on_the_same_images_carry_no_such_note(runs):
    assert not any("different images" in note for note in results(runs, "testB", "t").notes)


def test_a_smaller_test_part_than_the_papers_is_said(runs):
    assert any("on all 20 images" in note for note in results(runs, "testB", "t").notes)


def test_a_data_set_that_the_paper_does_not_use_has_no_cited_rows():
    table = results([finished("a", {"testB": part(GOOD)}, dataset="folder")], "testB", "t")
    assert [row.kind for row in table.rows] == ["run", "constant"] and table.notes == ()


def test_every_class_of_every_run_has_a_row(runs):
    rows = [row.cells[:3] for row in per_class(runs, "testB", "t").rows]
    assert rows == [
        ("good", "background", "60"), ("good", "gland", "40"), ("fair", "background", "60"), ("fair", "gland", "40"),
    ]  # fmt: skip


def test_the_scores_of_a_class_by_hand(runs):
    row = cells(per_class(runs, "testB", "t"), 1)
    assert (row["Dice (= F1)"], row["IoU"], row["precision"], row["recall"]) == ("0.571", "0.400", "0.667", "0.500")


def test_the_ignored_class_has_no_row(runs):
    runs[1].data["ignore"] = 0
    assert [row.cells[1] for row in per_class(runs[1:], "testB", "t").rows] == ["gland"]


def test_images_are_listed_worst_first():
    good, bad = Scores.of(GOOD), Scores.of(FAIR)
    both = PartScores(2, good, "background", bad, {"a": good, "b": bad})
    assert [row.cells[0] for row in per_image(both, "t").rows] == ["b", "a"]


def test_bcss_brings_its_other_cited_tables():
    assert [len(table.rows) for table in cited_details("bcss")] == [6, 3] and cited_details("glas") == ()


def test_the_cited_rates_can_be_left_out():
    (only,) = cited_details("bcss", with_rates=False)
    assert "Table 3" in only.caption


def test_equal_dice_is_ordered_by_name():
    same = [finished(name, {"testB": part(GOOD)}) for name in ("b", "a")]
    assert [run.name for run in by_dice(same, "testB")] == ["a", "b"]


def test_a_difference_below_zero_has_a_minus():
    assert (difference(0.2, 0.5), difference(0.5, 0.2), difference(None, 0.2)) == ("−0.300", "+0.300", DASH)


def test_a_missing_number_is_a_dash():
    assert (number(None), number(0.12345)) == (DASH, "0.123")


def test_markdown_is_a_table_with_numbers_to_the_right():
    table = Table("Title", ("run", "Dice"), (Row("run", ("a|b", "0.5")),), notes=("A note.",))
    assert table.markdown() == "**Title**\n\n| run | Dice |\n| --- | ---: |\n| a\\|b | 0.5 |\n\nA note.\n"


def test_plain_text_is_aligned():
    table = Table("Title", ("run", "Dice"), (Row("run", ("a", "0.5")), Row("cited", ("long", "0.25"))))
    assert table.plain().splitlines() == ["Title", "", "run   Dice", "----------", "a      0.5", "long  0.25"]


def test_plain_text_says_once_what_all_our_runs_share():
    rows = (Row("run", ("a", "50", "1")), Row("run", ("b", "50", "2")), Row("cited", ("c", DASH, DASH)))
    lines = Table("T", ("run", "t", "seed"), rows).plain(lift=("t", "seed")).splitlines()
    assert lines[1] == "our runs: t 50" and lines[3] == "run  seed"


def test_plain_text_leaves_out_what_it_is_told_to():
    assert "t" not in Table("T", ("run", "t"), (Row("run", ("a", "50")),)).plain(("t",)).splitlines()[2]
