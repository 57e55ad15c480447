"""Predictions scored as objects, in the files of a run."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.metrics.instances import image_sums, scored_class
from pathseg.train.metrics.object import ObjectSums, components, object_scores
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

QUICK = HeadConfig(blocks=(4,), head="linear", lr=1e-2, epochs=1)


@pytest.fixture
def run(toy_store, tmp_path):
    """A finished run on a store with instances."""
    train_heads(toy_store, [(QUICK, RunFolder(tmp_path / "run"))])
    return RunFolder(tmp_path / "run")


def part_of(run):
    return run.read_metrics()["splits"]["test"]


def test_objects_of_metrics_json_follow_from_the_predictions(toy_store, run):
    index = toy_store.ids.index("test_4")
    truth = toy_store.instances(index)  # 204x300 px, scored at this size, not at 256x512
    codes = Image.fromarray(run.read_prediction("test_4")).resize(truth.shape[::-1], Image.Resampling.NEAREST)
    expected = object_scores(components(np.asarray(codes) == 1), truth)
    assert part_of(run)["objects"]["pooled"] == pytest.approx(expected._asdict())


def test_the_rules_stand_beside_the_scores(run):
    objects = part_of(run)["objects"]
    assert (objects["connectivity"], objects["min_object_px"], objects["resized"]) == ("8", 0, "nearest")
    assert objects["hausdorff_left_out"] == 0


def test_every_image_has_its_own_object_scores(run):
    one = part_of(run)["per_image"][0]["objects"]
    assert one["tp"] + one["fn"] == 4 and one["hausdorff"] > 0


def test_a_run_gives_its_object_scores_back(run):
    part = FinishedRun.read(run).quoted
    assert part.pooled_objects._asdict() == pytest.approx(part_of(run)["objects"]["pooled"])


def test_confusion_matrices_of_the_images_add_up_to_that_of_the_part(run):
    assert FinishedRun.read(run).quoted.matrix.tolist() == part_of(run)["confusion"]


def test_an_object_that_is_no_object_any_more_is_named(run):
    metrics = run.read_metrics()
    metrics["splits"]["test"]["per_image"][0]["objects"]["sums"]["tp"] = "many"
    run.write_metrics(metrics)
    with pytest.raises(ValueError, match=r"splits.test.per_image.0.objects.sums.tp must be a whole number, got 'many'"):
        FinishedRun.read(run)


def test_small_predicted_objects_are_dropped_on_request(toy_store):
    predicted = np.zeros((256, 512), np.uint8)
    predicted[:100, :100], predicted[200:204, 200:204] = 1, 1
    counts = [image_sums(toy_store, 4, predicted, dataclasses.replace(QUICK, min_object_px=px)) for px in (0, 50)]
    assert [one.tp + one.fp for one in counts] == [2, 1]


def test_corners_join_unless_asked_otherwise(toy_store):
    predicted = np.zeros((256, 512), np.uint8)
    predicted[:128, :256], predicted[128:, 256:] = 1, 1
    counts = [image_sums(toy_store, 4, predicted, dataclasses.replace(QUICK, connectivity=c)) for c in ("8", "4")]
    assert [one.tp + one.fp for one in counts] == [1, 2]


def test_a_prediction_at_the_original_size_is_scored_as_it_is(tmp_path, toy_contents, toy_key, fill_store):
    store = fill_store(StoreWriter(tmp_path / "toy.zarr", toy_contents()))
    truth = store.instances(4)
    assert image_sums(store, 4, np.zeros(truth.shape, np.uint8), QUICK) == ObjectSums(
        fn=4, true_px=int((truth > 0).sum()), left_out=1
    )


@pytest.mark.parametrize(
    "change", [{"has_instances": False}, {"classes": ("background", "gland", "lumen")}, {"classes": ("a", "b")}]
)
def test_other_data_have_no_object_scores(tmp_path, toy_contents, change):
    store = StoreWriter(tmp_path / "toy.zarr", toy_contents(**change)).store
    assert scored_class(store) is None


def test_a_run_without_instances_has_no_objects_and_can_be_read(tmp_path, toy_contents, fill_store):
    classes = ("background", "gland", "lumen")
    store = fill_store(StoreWriter(tmp_path / "toy.zarr", toy_contents(classes=classes)))
    train_heads(store, [(QUICK, RunFolder(tmp_path / "run"))])
    run = FinishedRun.read(RunFolder(tmp_path / "run"))
    assert "objects" not in part_of(run.folder) and run.quoted.pooled_objects is None
