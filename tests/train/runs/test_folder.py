"""The run folder: what is written comes back, what is half there is not taken for whole."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder, list_runs, natural_order

CONFIG = {
    "head": {"lr": 0.0001, "blocks": [4, 5, 6]},
    "data": {
        "store": "s.zarr", "dataset": "glas", "classes": [], "ignore": None, "mpp": None,
        "model": {"name": "m", "trained": True, "condition": "ssl"},
        "size": [256, 256], "layout": "grid", "preprocessing": "none", "test_split": "testB", "images": {},
    },
    "parameters": 3,
}  # fmt: skip
SCORES = {"pixels": 0, "accuracy": None, "dice": None, "miou": None, "precision": None, "recall": None, "f1": None}
PART = {"images": 0, "scores": {**SCORES, "classes": []}, "per_image": []}
METRICS = {
    "best_epoch": 1, "epochs": 2, "seconds": 0.5, "test_split": "testB",
    "splits": {"testB": {**PART, "constant": {"class": "background", "scores": {**SCORES, "classes": []}}}},
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "heads" / "one")
    folder.begin(CONFIG)
    return folder


def test_config_comes_back_equal(run):
    assert run.read_config() == CONFIG


def test_config_is_plain_json(run):
    assert json.loads((run.path / "config.json").read_text(encoding="utf-8")) == CONFIG


def test_history_comes_back_in_order(run):
    for epoch in (1, 2, 3):
        run.append_history({"epoch": epoch, "val_dice": epoch / 10})
    assert [line["epoch"] for line in run.read_history()] == [1, 2, 3]


def test_history_is_on_disk_line_by_line(run):
    run.append_history({"epoch": 1})
    assert (run.path / "history.jsonl").read_text(encoding="utf-8") == '{"epoch": 1}\n'


def test_what_a_run_read_comes_back(run):
    run.write_metrics({**METRICS, "bytes_read": 12, "heads_from_one_read": 3})
    finished = FinishedRun.read(run)
    assert (finished.bytes_read, finished.heads_from_one_read) == (12, 3)


def test_a_run_that_did_not_count_its_reading_is_still_read(run):
    run.write_metrics(METRICS)
    assert FinishedRun.read(run).bytes_read is None


def test_no_history_is_empty(run):
    assert run.read_history() == ()


def test_a_line_cut_by_a_kill_is_not_read(run):
    run.append_history({"epoch": 1})
    with (run.path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 2, "val_')
    assert [line["epoch"] for line in run.read_history()] == [1]


def test_a_damaged_line_in_the_middle_is_named(run):
    (run.path / "history.jsonl").write_text('{"epoch": 1}\nx\n{"epoch": 3}\n')
    with pytest.raises(ValueError, match=r"history\.jsonl line 2 is damaged"):
        run.read_history()


def test_a_loss_that_is_no_number_is_written_as_null(run):
    run.append_history({"epoch": 1, "train_loss": float("nan"), "val_loss": float("inf")})
    assert run.read_history() == ({"epoch": 1, "train_loss": None, "val_loss": None},)


def test_a_run_is_finished_once_metrics_are_written(run):
    before = run.finished
    run.write_metrics(METRICS)
    assert (before, run.finished) == (False, True)


def test_metrics_come_back_equal(run):
    run.write_metrics(METRICS)
    assert run.read_metrics() == METRICS


def test_a_failed_write_of_metrics_leaves_the_run_unfinished(run, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        run.write_metrics(METRICS)
    assert not run.finished


def test_nothing_partial_stays_after_writing(run):
    run.write_metrics(METRICS)
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "metrics.json"]


def test_beginning_again_clears_course_scores_and_predictions(run):
    run.append_history({"epoch": 1})
    run.write_prediction("a", np.zeros((2, 2), np.uint8))
    run.write_metrics(METRICS)
    run.begin(CONFIG)
    assert not run.finished and run.read_history() == () and not run.prediction_path("a").exists()


def test_damaged_metrics_are_one_error_naming_the_file(run):
    (run.path / "metrics.json").write_text('{"best_epoch": ')
    with pytest.raises(ValueError, match=r"metrics\.json is damaged: .*; delete the run folder"):
        run.read_metrics()


def test_metrics_that_are_no_object_are_damaged(run):
    (run.path / "metrics.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"metrics\.json is damaged: expected a JSON object, got list"):
        run.read_metrics()


def test_bytes_that_are_no_text_are_damaged(run):
    (run.path / "metrics.json").write_bytes(b"\xff\xfe\x00\x12")
    with pytest.raises(ValueError, match=r"metrics\.json is damaged"):
        run.read_metrics()


def test_metrics_of_an_unfinished_run_are_not_found(run):
    with pytest.raises(FileNotFoundError, match=r"metrics\.json is not there"):
        run.read_metrics()


def test_prediction_is_an_8_bit_gray_png_of_codes(run):
    codes = np.arange(6, dtype=np.int64).reshape(2, 3)
    run.write_prediction("testB_1", codes)
    with Image.open(run.path / "predictions" / "testB_1.png") as picture:
        assert (picture.mode, picture.size, np.array(picture).tolist()) == ("L", (3, 2), codes.tolist())


def test_prediction_comes_back_equal(run):
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    run.write_prediction("a", codes)
    assert (run.read_prediction("a") == codes).all()


@pytest.mark.parametrize("codes", [np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 256), np.full((2, 2), -1)])
def test_what_is_no_class_map_is_refused(run, codes):
    with pytest.raises(ValueError, match="prediction for a has shape"):
        run.write_prediction("a", codes)


def test_an_id_with_a_slash_stays_in_the_folder(run):
    run.write_prediction("../case 1/a", np.zeros((2, 2), np.uint8))
    assert [path.name for path in (run.path / "predictions").iterdir()] == ["..%2Fcase 1%2Fa.png"]


def test_two_ids_never_share_a_picture(run):
    assert run.prediction_path("a/b") != run.prediction_path("a%2Fb")


def test_a_damaged_prediction_is_named(run):
    run.write_prediction("a", np.zeros((2, 2), np.uint8))
    run.prediction_path("a").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png is damaged"):
        run.read_prediction("a")


def test_a_missing_prediction_is_named(run):
    with pytest.raises(FileNotFoundError, match="has no prediction for b"):
        run.read_prediction("b")


def test_runs_are_listed_in_natural_order(tmp_path):
    for name in ("b10", "b2", "a"):
        RunFolder(tmp_path / "heads" / name).begin(CONFIG)
    assert [run.name for run in list_runs(tmp_path)] == ["a", "b2", "b10"]


def test_unfinished_runs_are_listed_too(run):
    assert [(one.name, one.finished) for one in list_runs(run.path.parents[1])] == [("one", False)]


def test_a_folder_without_configuration_is_no_run(tmp_path):
    (tmp_path / "heads" / "stray").mkdir(parents=True)
    assert list_runs(tmp_path) == ()


def test_a_workspace_without_heads_has_no_runs(tmp_path):
    assert list_runs(tmp_path / "nowhere") == ()


def test_names_of_mixed_digits_and_letters_can_be_ordered():
    names = ["x10", "x2", "10", "9", "1x", "x"]
    assert sorted(names, key=natural_order) == ["1x", "9", "10", "x", "x2", "x10"]


def test_a_finished_run_knows_its_quoted_part(run):
    run.write_metrics(METRICS)
    finished = FinishedRun.read(run)
    assert (finished.quoted.constant_class, finished.best_epoch, finished.epochs) == ("background", 1, 2)


def test_a_run_without_scores_of_its_test_split_is_damaged(run):
    run.write_metrics({**METRICS, "test_split": "testA"})
    with pytest.raises(ValueError, match="has scores of testB but none of its test split 'testA'"):
        FinishedRun.read(run)


def test_metrics_that_lack_a_name_are_named(run):
    run.write_metrics({name: value for name, value in METRICS.items() if name != "best_epoch"})
    with pytest.raises(ValueError, match=r"metrics\.json lacks best_epoch"):
        FinishedRun.read(run)


def test_a_configuration_that_lacks_a_name_is_named(run):
    run.write_config({"head": {}, "data": CONFIG["data"]})
    run.write_metrics(METRICS)
    with pytest.raises(ValueError, match=r"config\.json lacks parameters; delete the run folder"):
        FinishedRun.read(run)


def test_a_configuration_without_its_data_set_is_named(run):
    run.write_config({**CONFIG, "data": {name: CONFIG["data"][name] for name in CONFIG["data"] if name != "ignore"}})
    run.write_metrics(METRICS)
    with pytest.raises(ValueError, match=r"config\.json lacks data\.ignore"):
        FinishedRun.read(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": "many"}, "is damaged: parameters must be a whole number, got 'many'"),
        ({"data": {**CONFIG["data"], "model": {}}}, "lacks data.model.name, data.model.trained, data.model.condition"),
        ({"data": []}, "is damaged: data must be an object"),
        ({"data": {**CONFIG["data"], "size": [256]}}, "data.size must be height and width in px"),
        ({"head": {"blocks": "all"}}, "head.blocks must be a list of whole numbers, got 'all'"),
        ({"data": {**CONFIG["data"], "classes": ["one"]}}, "has scores of 0 classes, config.json names 1"),
    ],
)
def test_a_configuration_of_the_wrong_kind_is_named(run, change, words):
    run.write_config({**CONFIG, **change})
    run.write_metrics(METRICS)
    with pytest.raises(ValueError, match=rf"(config|metrics)\.json .*{words}.*train it again"):
        FinishedRun.read(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seconds": "long"}, "seconds must be a number, got 'long'"),
        ({"splits": [1]}, "splits must be an object"),
        ({"splits": {"testB": {**PART, "constant": None}}}, "splits.testB.constant must be an object, got None"),
        ({"splits": {"testB": {**METRICS["splits"]["testB"], "scores": {**SCORES, "dice": "x", "classes": []}}}},
         "splits.testB.scores.dice must be a number or null, got 'x'"),
        ({"splits": {"testB": {**METRICS["splits"]["testB"], "scores": {**SCORES, "odd": 1, "classes": []}}}},
         "these are not scores"),
    ],
)  # fmt: skip
def test_metrics_of_the_wrong_kind_are_named(run, change, words):
    run.write_metrics({**METRICS, **change})
    with pytest.raises(ValueError, match=rf"metrics\.json is damaged: .*{words}"):
        FinishedRun.read(run)


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_empty_objects_are_no_run(run, name):
    run.write_metrics(METRICS)
    (run.path / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"{name} lacks .*; delete the run folder"):
        FinishedRun.read(run)


def test_a_line_of_the_history_of_the_wrong_kind_is_named(run):
    run.append_history({"epoch": 1})
    run.append_history({"epoch": 2, "val_dice": "high"})
    run.write_metrics(METRICS)
    with pytest.raises(ValueError, match=r"history\.jsonl line 2 is damaged: val_dice must be a number or null"):
        FinishedRun.read(run)
