"""What the page says of one run: its facts, its worst images, its configuration."""

import dataclasses
from pathlib import Path

import msgspec

from pathseg.store.contents import ImageEntry
from pathseg.train.report.drawn_figures import DrawnFigures
from pathseg.train.report.prediction_images import Stores
from pathseg.train.report.run_page import flatten, place_text, run_facts, run_page
from pathseg.train.runs.record import ImageLoss


def test_the_facts_of_a_run(make_run):
    assert run_facts(make_run()) == (
        "Images of 512x256 px, 2,654,274 parameters, 30 epochs, 1 min 23 s of training steps on cpu; "
        "kept: epoch 7, validation Dice 0.500"
    )


def test_the_facts_warn_where_the_best_epoch_is_the_last(make_run):
    assert "raise --epochs" in run_facts(make_run(metrics={"best_epoch": 30}))
    assert "--epochs" not in run_facts(make_run(head_type="pixel-ensemble", metrics={"best_epoch": 30}))


def with_losses(run, losses):
    """A run whose images of the quoted split have these losses."""
    split = run.test_scores
    images = tuple(msgspec.structs.replace(one, loss=losses.get(one.id)) for one in split.per_image)
    splits = {run.metrics.test_split: msgspec.structs.replace(split, per_image=images)}
    return dataclasses.replace(run, metrics=msgspec.structs.replace(run.metrics, splits=splits))


def test_the_ten_images_of_the_highest_loss_are_listed_from_the_highest(make_run):
    ids = [f"image {number}" for number in range(12)]
    run = with_losses(make_run(ids=ids), {name: number / 4 for number, name in enumerate(ids)})
    page = run_page(run, Stores(), DrawnFigures(), rows=0, workspace=Path("work"))
    assert [one.id for one in page.worst] == ids[:1:-1]
    assert (page.worst[0].loss, page.worst[0].place, page.worst[0].row) == ("2.750", "", None)


def test_the_ten_training_images_of_the_highest_loss_in_the_kept_epoch_are_listed(make_run):
    losses = tuple(ImageLoss(f"w{number}", number / 4) for number in range(12))
    run = make_run(metrics={"train_losses": losses})
    page = run_page(run, Stores(), DrawnFigures(), rows=0, workspace=Path("work"))
    assert [one.id for one in page.worst_trained] == [f"w{number}" for number in range(11, 1, -1)]
    assert (page.worst_trained[0].loss, page.kept_epoch) == ("2.750", run.metrics.best_epoch)


def test_the_place_of_a_window_is_in_um_and_names_the_scale_of_its_px():
    window = ImageEntry("w", "train", 512, 512, slide="slide", corner=(512, 1024))  # at 0.5 um/px
    text = place_text(window, 0.5)
    assert "x 512.0, y 256.0 µm of slide" in text  # by hand; in px of a file at 0.25 um/px: x 2048, y 1024
    assert "x 1024, y 512 px at 0.5 µm/px" in text
    assert place_text(ImageEntry("whole", "train", 512, 512), 0.5) == ""


def test_a_run_without_recorded_losses_lists_none(make_run):
    assert run_page(make_run(), Stores(), DrawnFigures(), rows=0, workspace=Path("work")).worst == ()


def test_a_configuration_is_flattened_with_dotted_names():
    config = {"settings": {"blocks": [0, 4, 5, 6], "lr": 0.1}, "data": {"key": {"model": "m"}, "ignore": None},
              "ids": ()}  # fmt: skip
    assert flatten(config) == (
        ("settings.blocks", "0,4-6"), ("settings.lr", "0.1"), ("data.key.model", "m"), ("data.ignore", "none"),
        ("ids", ""),
    )  # fmt: skip
