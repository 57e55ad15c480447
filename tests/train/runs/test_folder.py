"""The run folder: records come back equal, half-written files are not read, damaged ones are named."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from pathseg.train.metrics.pixel import Scores
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder, list_runs, natural_order
from pathseg.train.runs.record import Epoch, Metrics, RunConfig

OLD = Path(__file__).parents[2] / "fixtures/workspace-v1"
RUN = OLD / "heads/glas-ramp-t50-b4-5-linear-lr0.01-epochs2-s1"
OLD_RUNS = [pytest.param(run, id=run.name) for run in list_runs(OLD) if run.finished]
CONFIG = RunConfig.from_json((RUN / "config.json").read_bytes(), source="config.json")
TEST_IMAGE = CONFIG.data.images["testB"][0]
METRICS = Metrics.from_json((RUN / "metrics.json").read_bytes(), source="metrics.json")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "heads" / "one")
    folder.begin(CONFIG)
    return folder


def change(path: Path, *keys, **changes) -> None:
    """Change values of a JSON file, below `keys`; None deletes."""
    content = json.loads(path.read_bytes())
    values = content
    for key in keys:
        values = values[key]
    for name, value in changes.items():
        values.pop(name) if value is None else values.update({name: value})
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("old", OLD_RUNS)
def test_runs_of_0_1_0_are_read_and_come_back_equal(old, tmp_path):
    finished, copy = FinishedRun.read(old), RunFolder(tmp_path / old.name)
    copy.begin(finished.config)
    for epoch in finished.history:
        copy.append_history(epoch)
    copy.write_metrics(finished.metrics)
    again = FinishedRun.read(copy)
    assert (again.config, again.history, again.metrics) == (finished.config, finished.history, finished.metrics)


@pytest.mark.parametrize("old", OLD_RUNS)
def test_metrics_keep_the_structure_of_0_1_0_but_for_f1(old):
    written, content = json.loads(old.read_metrics().to_json()), json.loads((old.path / "metrics.json").read_bytes())
    for split in content["splits"].values():
        for one in (split, split["constant"], *split["per_image"]):
            scores = one["scores"]
            scores["f1_of_means"], scores["f1"] = scores["f1"], scores["dice"]
    assert written == content | {"format": 2}


@pytest.mark.parametrize("old", OLD_RUNS)
def test_the_f1_of_means_that_0_1_0_called_f1_is_recomputed_as_macro_f1(old):
    ignore = old.read_config().data.ignore
    for split in old.read_metrics().splits.values():
        for matrix, scores in ((split.confusion, split.scores), *((i.confusion, i.scores) for i in split.per_image)):
            expected = Scores.of(np.array(matrix), ignore)
            assert (scores.f1, scores.f1_of_means) == pytest.approx((expected.f1, expected.f1_of_means))
    assert all(epoch.val_f1 == epoch.val_dice for epoch in old.read_history())


def test_metrics_of_a_later_format_ask_for_an_upgrade(run):
    run.write_metrics(METRICS)
    change(run.path / "metrics.json", format=9)
    with pytest.raises(ValueError, match=r"metrics\.json has format 9.*upgrade"):
        run.read_metrics()


def test_the_settings_of_0_1_0_are_read_by_their_present_names():
    assert [run.read_config().settings.network for run in list_runs(OLD)] == [
        "linear", "res-unet", "pixel-ensemble", "fcn", *["linear"] * 7
    ]  # fmt: skip


def test_history_comes_back_in_order_one_line_an_epoch(run):
    epochs = tuple(Epoch(epoch=epoch, val_dice=epoch / 10) for epoch in (1, 2, 3))
    for epoch in epochs:
        run.append_history(epoch)
    assert run.read_history() == epochs
    lines = (run.path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_history_is_cut_to_its_first_epochs(run):
    for epoch in (1, 2, 3):
        run.append_history(Epoch(epoch=epoch))
    run.cut_history(2)
    assert [epoch.epoch for epoch in run.read_history()] == [1, 2]


def test_no_history_is_empty(run):
    assert run.read_history() == ()


def test_a_line_cut_by_a_kill_is_not_read(run):
    run.append_history(Epoch(epoch=1))
    with (run.path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 2, "val_')
    assert [epoch.epoch for epoch in run.read_history()] == [1]


@pytest.mark.parametrize(("line", "field"), [("x", ""), ('{"epoch": 2, "val_dice": "high"}', "val_dice")])
def test_a_damaged_line_in_the_middle_is_named(run, line, field):
    (run.path / "history.jsonl").write_text(f'{{"epoch": 1}}\n{line}\n{{"epoch": 3}}\n')
    with pytest.raises(ValueError, match=rf"history\.jsonl line 2 is damaged: .*{field}.*delete the run folder"):
        run.read_history()


def test_a_loss_that_is_not_finite_is_written_as_null(run):
    run.append_history(Epoch(epoch=1, train_loss=float("nan"), val_loss=float("inf")))
    assert run.read_history() == (Epoch(epoch=1),)


def test_a_run_is_finished_once_metrics_are_written(run):
    before = run.finished
    run.write_metrics(METRICS)
    assert (before, run.finished) == (False, True)
    assert {path.name for path in run.path.iterdir()} == {"config.json", "checksums.json", "metrics.json"}


def test_a_failed_write_of_metrics_leaves_the_run_unfinished(run, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        run.write_metrics(METRICS)
    assert not run.finished


def test_beginning_again_clears_history_scores_and_predictions(run):
    own, foreign = run.prediction_path(TEST_IMAGE), run.path / "predictions" / "mine.png"
    run.append_history(Epoch(epoch=1))
    run.write_prediction(TEST_IMAGE, np.zeros((2, 2), np.uint8))
    foreign.write_bytes(b"kept")
    run.write_metrics(METRICS)
    run.begin(CONFIG)
    assert not run.finished and run.read_history() == ()
    assert not own.exists() and foreign.read_bytes() == b"kept"


def test_a_damaged_configuration_is_begun_again_and_no_prediction_is_removed_by_guess(run):
    run.write_prediction("a", np.zeros((2, 2), np.uint8))
    (run.path / "config.json").write_bytes(b"damaged")
    run.begin(CONFIG)
    assert run.read_config() == CONFIG and run.prediction_path("a").exists()


def test_an_image_id_as_long_as_a_file_name_has_a_prediction_of_its_own(run):
    ids = ["n" * 250, "n" * 249 + "m", "/" * 100, "\u00e9" * 120]
    for value, image_id in enumerate(ids):
        run.write_prediction(image_id, np.full((2, 2), value, np.uint8))
    assert [int(run.read_prediction(image_id)[0, 0]) for image_id in ids] == [0, 1, 2, 3]
    assert run.prediction_path("tumour 7").name == "tumour 7.png"


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(run):
    half = run.prediction_path(TEST_IMAGE).with_suffix(".png.partial")
    half.parent.mkdir()
    for name in ("last.safetensors", "head.safetensors.partial", "notes.txt", "notes.partial"):
        (run.path / name).write_bytes(b"x")
    half.write_bytes(b"x")
    run.remove_leftovers()
    left = {"config.json", "last.safetensors", "notes.txt", "notes.partial", "predictions"}
    assert {path.name for path in run.path.iterdir()} == left and not half.exists()
    run.new_weights.write_bytes(b"x")
    run.write_metrics(METRICS)
    run.remove_leftovers()
    assert {path.name for path in run.path.iterdir()} == (left | {"checksums.json", "metrics.json"}) - {
        "last.safetensors"
    }


@pytest.mark.parametrize(
    ("name", "field"), [("config.json", "parameters"), ("history.jsonl", "val_dice"), ("metrics.json", "best_epoch")]
)
def test_a_changed_digit_in_a_finished_run_is_noticed(run, name, field):
    run.append_history(Epoch(epoch=1, val_dice=0.71))
    run.write_metrics(METRICS)
    FinishedRun.read(run)
    content = (run.path / name).read_text()
    changed = re.sub(rf'("{field}": ?[0-9.]*)([0-9])', lambda found: found[1] + str(1 + int(found[2]) % 9), content)
    (run.path / name).write_text(changed)
    assert changed != content
    with pytest.raises(ValueError, match=rf"{name} is damaged: its SHA-256 .*train it again"):
        FinishedRun.read(run)


def test_a_picture_that_is_whole_but_not_the_runs_is_noticed(run):
    run.write_prediction(TEST_IMAGE, np.zeros((2, 2), np.uint8))
    run.write_metrics(METRICS)
    run.write_prediction(TEST_IMAGE, np.ones((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"\.png is damaged: its SHA-256"):
        run.read_prediction(TEST_IMAGE)


@pytest.mark.parametrize("kind", ["prediction", "uncertainty"])
def test_a_picture_that_is_missing_is_damage(run, kind):
    run.write_prediction(TEST_IMAGE, np.zeros((2, 2), np.uint8))
    run.write_uncertainty(TEST_IMAGE, np.zeros((2, 2)))
    run.write_metrics(METRICS)
    read = getattr(run, f"read_{kind}")
    read(TEST_IMAGE)
    (path,) = run.path.glob(f"{kind}*/*.png")
    path.unlink()
    with pytest.raises(ValueError, match=r"\.png is missing, but checksums\.json lists it; .*train it again"):
        read(TEST_IMAGE)


def test_a_history_that_is_missing_is_damage(run):
    run.append_history(Epoch(epoch=1))
    run.write_metrics(METRICS)
    (run.path / "history.jsonl").unlink()
    with pytest.raises(ValueError, match=r"history\.jsonl is missing, but checksums\.json lists it"):
        FinishedRun.read(run)


def test_damaged_checksums_have_a_way_out_that_works(run):
    run.write_metrics(METRICS)
    (run.path / "checksums.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"checksums\.json is damaged: .*; delete this file"):
        FinishedRun.read(run)
    (run.path / "checksums.json").unlink()
    assert FinishedRun.read(run).metrics == METRICS


def test_every_file_of_a_run_has_a_checksum_that_sha256_gives(run):
    run.append_history(Epoch(epoch=1))
    run.write_prediction(TEST_IMAGE, np.zeros((2, 2), np.uint8))
    run.write_uncertainty(TEST_IMAGE, np.zeros((2, 2)))
    run.weights.write_bytes(b"weights")
    run.write_metrics(METRICS)
    files = {path.relative_to(run.path).as_posix(): path for path in run.path.rglob("*") if path.is_file()}
    checksums = json.loads(files.pop("checksums.json").read_bytes())
    assert checksums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert len(files) == 6


def test_a_finished_run_without_checksums_opens(run):
    run.write_metrics(METRICS)
    (run.path / "checksums.json").unlink()
    assert FinishedRun.read(run).metrics == METRICS


def test_metrics_of_an_unfinished_run_are_not_found(run):
    with pytest.raises(FileNotFoundError, match=r"metrics\.json is not there"):
        run.read_metrics()


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
@pytest.mark.parametrize("content", [b'{"best_epoch": ', b"[1]", b"{}", b"\xff\xfe\x00\x12"], ids=repr)
def test_a_damaged_file_is_one_error_naming_it_and_the_way_out(run, name, content):
    run.write_metrics(METRICS)
    (run.path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged: .*; delete the run folder and train it again"):
        FinishedRun.read(run)


@pytest.mark.parametrize(
    ("keys", "changes", "field"),
    [
        ((), {"parameters": "many"}, "parameters"),
        ((), {"parameters": None}, "parameters"),
        ((), {"data": []}, "data"),
        (("data",), {"ignore": None}, "ignore"),
        (("data", "sources", 0, "key"), {"size": [256]}, "size"),
        (("data",), {"sources": []}, "sources"),
        (("settings",), {"t": [50, 50], "blocks": [[4], [5]]}, "reads 2 stores, data names 1"),
        (("settings",), {"blocks": "all"}, "blocks"),
        (("settings",), {"lr": -1}, "lr"),
        (("settings",), {"head_type": "none"}, "head_type"),
        (("data",), {"classes": ["one"]}, "2 classes, config.json names 1"),
        (("data", "sources", 0), {"channels": {"4": 5}}, "block 5"),
        (("data", "sources", 0), {"channels": {"4": 5, "5": 10**12}}, "channels"),
        (("data",), {"ignore": 300}, "ignore"),
    ],
)
def test_a_wrong_value_in_the_configuration_is_named(run, keys, changes, field):
    run.write_metrics(METRICS)
    change(run.path / "config.json", *keys, **changes)
    with pytest.raises(ValueError, match=rf"(config|metrics)\.json.* is damaged: .*{field}.*train it again"):
        FinishedRun.read(run)


@pytest.mark.parametrize(
    ("keys", "changes", "field"),
    [
        ((), {"seconds": "long"}, "seconds"),
        ((), {"best_epoch": None}, "best_epoch"),
        ((), {"splits": [1]}, "splits"),
        (("splits", "testB"), {"constant": None}, "constant"),
        (("splits", "testB", "scores"), {"dice": "x"}, r"scores\.dice"),
        (("splits", "testB"), {"confusion": [[1]]}, "not 2x2"),
        (("splits", "testB"), {"confusion": [[2**63, 0], [0, 0]]}, "confusion"),
    ],
)
def test_a_wrong_value_in_the_metrics_is_named(run, keys, changes, field):
    run.write_metrics(METRICS)
    change(run.path / "metrics.json", *keys, **changes)
    with pytest.raises(ValueError, match=rf"metrics\.json is damaged: .*{field}.*train it again"):
        FinishedRun.read(run)


def test_a_run_without_scores_of_its_test_split_is_damaged(run):
    run.write_metrics(msgspec.structs.replace(METRICS, test_split="testC"))
    with pytest.raises(ValueError, match="has scores of testA, testB but none of its test split 'testC'"):
        FinishedRun.read(run)


def test_a_configuration_of_a_newer_release_asks_for_an_upgrade(run):
    change(run.path / "config.json", format=99)
    with pytest.raises(ValueError, match=r"config\.json has format 99.*upgrade pathseg$"):
        run.read_config()


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


def test_a_prediction_with_a_changed_byte_is_named(run):
    run.write_prediction("a", np.zeros((2, 2), np.uint8))
    path = run.prediction_path("a")
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") - 9] ^= 1  # the last byte of the checksum behind the pixels
    path.write_bytes(content)
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


def test_a_configuration_of_format_2_has_its_only_store_as_the_list_of_sources(run):
    expected = run.read_config()
    config = json.loads((run.path / "config.json").read_text())
    (source,) = config["data"].pop("sources")
    config |= {"format": 2, "data": config["data"] | source}
    (run.path / "config.json").write_text(json.dumps(config))
    assert run.read_config() == expected


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read, as of Linux")
@pytest.mark.parametrize("name", ["config.json", "metrics.json", "history.jsonl", "head.safetensors"])
def test_a_file_that_the_disk_cannot_read_is_named(tmp_path, name):
    run = RunFolder(shutil.copytree(RUN, tmp_path / "run"))
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=name):
        (run.read_config(), run.read_history(), run.read_weights(run.read_metrics()))
