"""The report's tables: what is in which row, and how it is written."""

import csv
import dataclasses
import io

import numpy as np
import pytest

from pathseg.train.metrics.object import ObjectSums
from pathseg.train.metrics.pixel import Scores, constant_prediction
from pathseg.train.report.tables import (
    DASH,
    SETTINGS,
    Row,
    Table,
    by_dice,
    cited_rates,
    confusion_table,
    difference,
    number,
    objects_table,
    per_class,
    per_image,
    results,
)  # fmt: skip
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.split_scores import PartScores

GOOD, FAIR = np.array([[50, 10], [20, 20]]), np.array([[40, 20], [20, 20]])


def part(matrix: np.ndarray, ids: tuple[str, ...] = ("testB_1", "testB_2")) -> PartScores:
    scores = Scores.of(matrix)
    constant = Scores.of(constant_prediction(matrix, 0))
    return PartScores(len(ids), scores, "background", constant, dict.fromkeys(ids, scores))


def finished(name: str, parts: dict[str, PartScores], *, trained: bool = True, dataset: str = "glas") -> FinishedRun:
    config = {
        "head": {"t": 50, "blocks": [4, 5, 6], "head": "fcn", "lr": 1e-4, "epochs": 30, "seed": 3},
        "data": {
            "dataset": dataset, "classes": ["background", "gland"], "ignore": None,
            "model": {"name": "mini", "trained": trained, "condition": "ssl"}, "size": [256, 512],
        },
        "parameters": 2654274,
    }  # fmt: skip
    return FinishedRun(RunFolder(f"heads/{name}"), config, (), 7, 30, 60.0, "testB", parts)


@pytest.fixture
def runs() -> list[FinishedRun]:
    return [finished("fair", {"testB": part(FAIR)}), finished("good", {"testB": part(GOOD), "testA": part(FAIR)})]


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip(table.columns, table.rows[row].cells, strict=True))


def test_runs_come_first_then_the_constant(runs):
    assert [row.kind for row in results(runs, "testB", "t").rows] == ["run"] * 2 + ["constant"]


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


def test_the_difference_is_to_the_constant_prediction(runs):
    dice, constant = (100 / 130 + 40 / 70) / 2, 120 / 160 / 2
    assert cells(results(runs, "testB", "t"), 0)["Dice − constant"] == f"+{dice - constant:.3f}"


def test_the_constant_row_names_its_class(runs):
    row = cells(results(runs, "testB", "t"), 2)
    assert (row["run"], row["model"], row["Dice"]) == ("always background", "constant answer", "0.375")


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


def test_patches_of_one_region_are_said_to_count_twice_where_they_overlap(runs):
    sources = {"testB_1": "r", "testB_2": "r"}
    run = finished("cut", {"testB": dataclasses.replace(part(GOOD), sources=sources)})
    (note,) = results([run], "testB", "t").notes
    assert note.startswith("The 2 images are patches of 1 region: where patches overlap, a pixel counts once in each")
    assert results(runs, "testB", "t").notes == ()


def test_runs_on_images_of_another_size_are_said_not_to_compare(runs):
    other = finished("other", {"testB": part(GOOD)})
    other.data["size"] = [768, 768]
    assert results([*runs, other], "testB", "t").notes == (
        "Images of these runs differ in size, so their numbers are not over the same pixels: 512x256 px: good, fair; "
        "768x768 px: other.",
    )


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


def test_the_cited_rates_are_those_of_bcss():
    assert len(cited_rates("bcss").rows) == 3 and cited_rates("glas") is None


def with_objects() -> PartScores:
    """Two images: one of two objects found and one too many; nothing found of one."""
    sums = {
        "a": ObjectSums(1, 1, 1, 200, 200, 100.0, 100.0, 200, 200, 300.0, 500.0),
        "b": ObjectSums(0, 0, 1, 0, 200, 0.0, 0.0, left_out=1),
    }
    rules = {"connectivity": "8", "min_object_px": 0, "hausdorff_left_out": 1}
    half = GOOD // 2
    return dataclasses.replace(part(GOOD, ids=("a", "b")), objects=sums, rules=rules, matrices={"a": half, "b": half})


def test_object_scores_by_hand():
    row = cells(objects_table([finished("a", {"testB": with_objects()})], "testB", "t"), 0)
    assert list(row.values()) == [
        "a", "1", "1", "2", "0.400", f"{(100 / 200 + 100 / 400) / 2:.3f}", f"{(300 / 200 + 500 / 200) / 2:.1f}",
        "0.250", "0.250", "2.0", "1",
    ]  # fmt: skip


def test_runs_whose_objects_were_counted_otherwise_are_named():
    other = with_objects()
    other.rules.update(connectivity="4", min_object_px=9)
    note = objects_table(
        [finished("a", {"testB": with_objects()}), finished("b", {"testB": other})], "testB", "t"
    ).notes
    assert "8-connected, of any size (a); 4-connected, of at least 9 px (b), at the images' original" in note[0]


def test_runs_without_objects_have_no_table_of_them(runs):
    assert objects_table(runs, "testB", "t") is None


def test_images_say_their_object_scores_where_they_have_some():
    rows = {row.cells[0]: row.cells[5:] for row in per_image(with_objects(), "t").rows}
    assert rows == {"a": ("0.500", "0.500", "2.0"), "b": ("0.000", "0.000", DASH)}


def test_images_say_how_unsure_the_head_is_where_it_says_so():
    table = per_image(dataclasses.replace(part(GOOD), uncertainty={"testB_1": 0.25}), "t")
    assert table.columns[-1] == "uncertainty, nats" and [row.cells[-1] for row in table.rows] == ["0.250", DASH]
    assert "tenth" in table.notes[0]


def test_a_confusion_matrix_gives_counts_and_shares_of_the_row():
    rows = [row.cells for row in confusion_table(finished("a", {"testB": with_objects()}), "testB").rows]
    assert rows == [("background", "50", "10", "0.833", "0.167"), ("gland", "20", "20", "0.500", "0.500")]


def test_a_run_that_recorded_no_matrices_has_no_confusion_table(runs):
    assert confusion_table(runs[0], "testB") is None


def test_csv_quotes_what_must_be_quoted():
    table = Table("Title", ("run", "pixels"), (Row("run", ('a "b"', "1,234")),))
    assert list(csv.reader(io.StringIO(table.csv()))) == [["run", "pixels"], ['a "b"', "1234"]]


def test_csv_holds_numbers_as_float_reads_them():
    cells = ("1,234,567", "−0.125", "1,234.5", DASH, "0.650 ± 0.071", "[−0.2, +0.1]", "2 (0, 1)")
    table = Table("T", ("run", *"abcdefg"), (Row("run", ("x − 1,000", *cells)),))
    (row,) = list(csv.reader(io.StringIO(table.csv())))[1:]
    assert [float(cell) for cell in row[1:4]] == [1234567, -0.125, 1234.5]
    assert row[0] == "x − 1,000" and row[4:] == ["", "0.650 ± 0.071", "[-0.2, +0.1]", "2 (0, 1)"]


def test_latex_parts_ours_from_the_cited_and_marks_the_best():
    rows = (Row("run", ("a_b", "0.5 ± 0.1"), best=True), Row("cited", ("c & d", "50%")))
    lines = Table("Title", ("run", "Dice"), rows).latex().splitlines()
    assert lines[4:10] == [
        r"\hline", r"run & Dice \\", r"\hline", r"\textbf{a\_b} & \textbf{0.5 $\pm$ 0.1} \\", r"\hline",
        r"c \& d & 50\% \\",
    ]  # fmt: skip


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
