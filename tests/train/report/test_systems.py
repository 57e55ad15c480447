"""Which of our runs stands for which system of the paper."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from pathseg.train.config import BaselineConfig, HeadConfig
from pathseg.train.heads.registry import BASELINES
from pathseg.train.metrics.object import ObjectSums
from pathseg.train.metrics.pixel import Scores, constant_prediction
from pathseg.train.report.paper_tables import systems_table, tissues_table
from pathseg.train.report.systems import system_name, systems
from pathseg.train.report.tables import DASH
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.split_scores import PartScores

GOOD, FAIR = np.array([[50, 10], [20, 20]]), np.array([[40, 20], [20, 20]])
TISSUES = ("tumor", "stroma", "inflammatory", "necrosis", "other")


def finished(
    *, model: str = "brca-hipt-20x", condition: str = "ssl", val: float = 0.5, matrix: np.ndarray = GOOD,
    dataset: str = "glas", classes: tuple[str, ...] = ("background", "gland"),
    size: tuple[int, int] = (768, 768), name: str = "", images: int = 1, **settings: Any,
) -> FinishedRun:  # fmt: skip
    data = {
        "store": f"/{model}.zarr", "key": model + condition, "dataset": dataset, "classes": list(classes),
        "ignore": None, "model": {"name": model, "trained": model != "mini", "condition": condition},
        "test_split": "testB", "size": size, "images": {"train": ["a"], "val": ["b"]},
    }  # fmt: skip
    scores = Scores.of(matrix)
    each = {f"c{n}": scores for n in range(images)}
    part = PartScores(images, scores, "background", Scores.of(constant_prediction(matrix, 0)), each)
    kind = BaselineConfig if settings.get("head") in BASELINES else HeadConfig
    return FinishedRun(
        RunFolder(name or "-".join([model, condition, *(f"{key}{value}" for key, value in settings.items())])),
        {"head": dataclasses.asdict(kind(**settings)), "data": data, "parameters": 1},
        ({"epoch": 1, "val_dice": val},), 1, 1, 1.0, "testB", {"testB": part},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("about", "name"),
    [
        ({}, "PathSegDiff"),
        ({"condition": "none"}, "PathSegDiff-uncond"),
        ({"model": "hipt", "condition": "none"}, "HIPT"),
        ({"model": "mini-hipt", "condition": "none"}, "HIPT"),
        ({"head": "linear"}, "linear probe"),
        ({"head": "linear", "model": "hipt"}, "linear probe on HIPT"),
        ({"head": "pixel-ensemble"}, "DDPMSeg (pixel ensemble)"),
        ({"head": "res-unet"}, "Res-UNet"),
        ({"head": "vgg16-fcn8", "condition": "none"}, "VGG16-FCN8"),
    ],
)
def test_a_run_has_the_papers_name(about, name):
    assert system_name(finished(**about)) == name


def test_seeds_are_one_system():
    (one,) = systems([finished(seed=0), finished(seed=1, val=0.7)])
    assert (one.repeat.seeds, one.run.head["seed"], one.settings_tried) == ((0, 1), 1, 1)


def test_settings_are_chosen_by_validation_not_by_test():
    better_on_test = finished(lr=1e-3, val=0.4, matrix=GOOD)
    (one,) = systems([better_on_test, finished(lr=1e-4, val=0.6, matrix=FAIR)])
    assert (one.run.head["lr"], one.settings_tried) == (1e-4, 2)


def test_a_single_run_on_the_side_does_not_take_the_place_of_a_series():
    series = [finished(lr=1e-4, seed=seed, val=val) for seed, val in ((0, 0.5), (1, 0.6))]
    (one,) = systems([*series, finished(lr=1e-3, val=0.9), finished(lr=1e-5, seed=0), finished(lr=1e-5, seed=1)])
    assert (one.run.head["lr"], one.repeat.seeds) == (1e-4, (0, 1))
    assert (one.settings_tried, one.settings_aside) == (2, 1)


def test_more_test_images_count_before_more_seeds():
    few = [finished(lr=1e-3, seed=seed, val=0.9) for seed in (0, 1)]
    (one,) = systems([*few, finished(lr=1e-4, val=0.1, images=2)])
    assert (one.run.head["lr"], one.settings_tried, one.settings_aside) == (1e-4, 1, 1)


def test_settings_that_were_left_aside_are_said():
    runs = [finished(lr=1e-4), finished(lr=1e-4, seed=1), finished(lr=1e-3, val=0.9)]
    note = systems_table(systems(runs), "testB", "t").notes[0]
    assert note.endswith("20 epochs (1 with fewer test images or seeds left aside).")


def test_the_papers_own_system_comes_first():
    runs = [finished(head="res-unet"), finished(model="hipt"), finished(condition="none"), finished()]
    assert [one.name for one in systems(runs)] == ["PathSegDiff", "PathSegDiff-uncond", "HIPT", "Res-UNet"]


def test_a_system_that_reads_images_names_no_features():
    (one,) = systems([finished(head="res-unet", weights="none")])
    assert one.weights == "trained on the images, from random weights" and one.settings[0] == "head res-unet"


def rows(runs: list[FinishedRun]) -> list[tuple[str, ...]]:
    return [row.cells for row in systems_table(systems(runs), "testB", "GlaS").rows]


def test_a_row_says_weights_seeds_mean_and_deviation():
    dice = [(100 / 130 + 40 / 70) / 2, (80 / 120 + 40 / 80) / 2]
    row = rows([finished(model="mini", seed=0), finished(model="mini", seed=1, matrix=FAIR)])[0]
    deviation = (dice[0] - dice[1]) / 2**0.5
    assert row[:5] == ("PathSegDiff", "mini (untrained)", "2 (0, 1)", "0.650 ± 0.071",
                       f"{sum(dice) / 2:.3f} ± {deviation:.3f}")  # fmt: skip


def test_our_systems_stand_above_what_the_paper_prints():
    names = [(row.kind, row.cells[0]) for row in systems_table(systems([finished()]), "testB", "GlaS").rows]
    assert names[0] == ("run", "PathSegDiff") and len(names) == 9
    assert names[1] == ("cited", "HIPT") and names[-1] == ("cited", "PathSegDiff")


def test_a_cited_row_is_marked_and_a_value_that_is_not_printed_is_a_dash():
    row = next(row for row in rows([finished()]) if row[0] == "CIMD")
    assert row == ("CIMD", "cited, Table 4", DASH, DASH, DASH, "0.569", "0.692")


def test_a_smaller_test_part_than_the_papers_is_said():
    assert "on all 20 images of this part, ours on 1" in systems_table(systems([finished()]), "testB", "t").notes[1]


def test_a_data_set_that_the_paper_does_not_use_has_no_cited_rows():
    table = systems_table(systems([finished(dataset="folder")]), "testB", "t")
    assert [row.kind for row in table.rows] == ["run"] and "Table" not in table.caption


def test_rows_over_other_pixels_are_said():
    runs = [finished(), finished(head="linear"), finished(condition="none", size=(256, 512))]
    notes = systems_table(systems(runs), "testB", "t").notes
    assert notes[1] == (
        "Not over the same pixels: 1 images of 768x768 px: PathSegDiff, linear probe; "
        "1 images of 512x256 px: PathSegDiff-uncond."
    )
    assert not any("same pixels" in note for note in systems_table(systems(runs[:2]), "testB", "t").notes)


def test_objects_have_their_columns():
    run = finished()
    run.parts["testB"] = dataclasses.replace(
        run.parts["testB"], objects={"c0": ObjectSums(1, 0, 0, 100, 100, 50.0, 50.0, 100, 100, 300.0, 300.0)}
    )
    table = systems_table(systems([run]), "testB", "t")
    assert table.columns[-3:] == ("object F1", "object Dice", "object Hausdorff, px")
    assert table.rows[0].cells[-3:] == ("1.000", "0.500", "3.0") and table.rows[1].cells[-3:] == (DASH,) * 3


def counted(connectivity: str, **settings: Any) -> FinishedRun:
    """A run with one perfect object, counted by this rule."""
    run = finished(connectivity=connectivity, **settings)
    run.parts["testB"] = dataclasses.replace(
        run.parts["testB"],
        objects={"c0": ObjectSums(1, 0, 0, 100, 100, 100.0, 100.0, 100, 100, 0.0, 0.0)},
        rules={"connectivity": connectivity, "min_object_px": 0, "hausdorff_left_out": 0},
    )
    return run


def test_a_row_of_objects_says_by_which_rules_they_were_counted():
    notes = systems_table(systems([counted("8")]), "testB", "t").notes
    assert "Predicted objects: parts of the prediction, 8-connected, of any size." in notes


def test_objects_counted_in_two_ways_have_no_mean():
    runs = [counted("8"), counted("4", seed=1), counted("8", head="linear")]
    table = systems_table(systems(runs), "testB", "t")
    assert [row.cells[-3] for row in table.rows[:2]] == [DASH, "1.000"]
    assert any("8-connected, of any size (PathSegDiff, linear probe); 4-connected" in note for note in table.notes)


def test_a_repeat_with_other_objects_is_no_other_setting():
    (one,) = systems([counted("8"), counted("4", name="again", val=0.9)])
    assert (one.repeat.seeds, one.settings_tried, one.settings_aside) == ((0,), 1, 0)


def test_the_classes_of_bcss_are_the_papers_table_3():
    run = finished(dataset="bcss", classes=TISSUES, matrix=np.diag([10, 20, 30, 40, 50]) + 10)
    rows = tissues_table(systems([run]), "testB", "BCSS").rows
    ious = [(n + 10) / (n + 90) for n in (10, 20, 30, 40)]  # on the diagonal n + 10, in row and column 40 more
    assert rows[0].cells[3:] == tuple(f"{iou:.3f}" for iou in [*ious, sum(ious) / 4])
    assert [row.cells[0] for row in rows[1:]] == [
        "HistoSegNet", "SEAM", "C-CAM", "WSSS-Tissue", "PistoSeg", "PathSegDiff",
    ]  # fmt: skip


def test_other_classes_have_no_table_3():
    assert tissues_table(systems([finished()]), "testB", "GlaS") is None
