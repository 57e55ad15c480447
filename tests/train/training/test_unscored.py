"""Training on a single slide: no validation, no test images, and a head that predicts all the same."""

import pytest

from pathseg.store.contents import ImageEntry
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.predict.trained_head import TrainedHead
from pathseg.train.report.build import build_report
from pathseg.train.training.sweep import describe_plan, plan_sweep, run_folders, summary, train

CONFIG = HeadConfig(blocks=(4,), head_type="linear", epochs=3, patience=1)


@pytest.fixture
def one_slide(tmp_path, toy_contents, fill_store):
    images = tuple(ImageEntry(f"w{n}", "train", 256, 512, source="slide") for n in range(3))
    return fill_store(StoreWriter(tmp_path / "slide.zarr", toy_contents(images=images)))


def test_the_last_epoch_is_kept_and_nothing_is_scored(one_slide, tmp_path):
    (run,) = train(one_slide, [CONFIG], tmp_path).runs
    assert (run.metrics.best_epoch, run.metrics.epochs, run.metrics.splits) == (3, 3, {})
    assert [(line.val_loss, line.val_dice) for line in run.history] == [(None, None)] * 3
    assert not run.scored and not run.still_improving and "best epoch 3 of 3" in summary([run])


def test_it_is_warned_before_training(one_slide, tmp_path):
    plan = plan_sweep(one_slide, run_folders(one_slide, [CONFIG], tmp_path / "heads"))
    text = describe_plan(plan, device="cpu")
    assert "no validation images" in text and "no test images" in text


def test_the_head_can_be_loaded_for_prediction_and_the_run_is_finished(one_slide, tmp_path):
    (run,) = train(one_slide, [CONFIG], tmp_path).runs
    assert TrainedHead.load(run.folder.path).constant_class == run.metrics.constant_class
    assert train(one_slide, [CONFIG], tmp_path).runs[0].metrics == run.metrics  # not trained again


def test_the_report_shows_runs_without_test_images_and_says_that_nothing_was_scored(one_slide, tmp_path):
    (alone,) = train(one_slide, [CONFIG], tmp_path).runs
    report = build_report(tmp_path)
    page = report.path.read_text()
    assert "Training images with the highest loss in epoch 3" in page
    assert all(f"<li>w{number}: loss " in page for number in range(3))
    assert "nothing was scored" in report.table and alone.name in report.table
    assert "nothing was scored" in page and f"config.json of {alone.name}" in page
    assert f"Learning curves of {alone.name} over 3 epochs" in page
    assert (tmp_path / "report" / f"curves-{alone.name}.svg").is_file()
    assert alone.name in (tmp_path / "report" / "tables.md").read_text()


def test_the_report_shows_runs_without_test_images_beside_the_others(one_slide, toy_store, tmp_path):
    (alone,) = train(one_slide, [CONFIG], tmp_path).runs
    train(toy_store, [HeadConfig(blocks=(4,), head_type="linear", epochs=1)], tmp_path)
    page = build_report(tmp_path).path.read_text()
    assert "Trained without test images" in page and f"config.json of {alone.name}" in page
