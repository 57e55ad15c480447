"""Predicted class codes scored as objects, and the object scores in the files of a run."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathseg.store.features import FeatureStore
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.metrics.object import ObjectRule, ObjectSums, components, mean_scores, object_scores
from pathseg.train.metrics.object_predictions import image_sums, object_split_scores, scored_class
from pathseg.train.report.tables import object_table
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder

CONFIG = HeadConfig(blocks=(4,), head_type="linear")
WORKSPACE = Path(__file__).parents[2] / "fixtures" / "workspace-v1"


@pytest.fixture(scope="module")
def old_run():
    """A run of release 0.1.0 on a store with instances, and that store."""
    run = FinishedRun.read(RunFolder(WORKSPACE / "heads" / "glas-ramp-t50-b4-5-linear-lr0.01-epochs2-s1"))
    return run, FeatureStore.open(WORKSPACE / "glas-ramp.zarr")


def test_object_scores_of_a_run_follow_from_its_predictions_at_the_original_size(old_run):
    run, store = old_run
    for image in run.test_scores.per_image:
        truth = store.instances(store.ids.index(image.id))
        codes = Image.fromarray(run.folder.read_prediction(image.id)).resize(
            truth.shape[::-1], Image.Resampling.NEAREST
        )
        expected = object_scores(components(np.asarray(codes) == scored_class(store)), truth)
        assert image.objects.sums.scores()._asdict() == pytest.approx(expected._asdict())


def test_object_sums_are_those_that_release_0_1_0_recorded(old_run):
    run, store = old_run
    for image in run.test_scores.per_image:
        index, codes = store.ids.index(image.id), run.folder.read_prediction(image.id)
        found = image_sums(store, index, codes, run.settings)
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(image.objects.sums))


def test_the_object_record_of_a_split_is_that_of_release_0_1_0(old_run):
    run, _ = old_run
    found, recorded = (
        object_split_scores(list(run.test_scores.object_sums.values()), run.settings),
        run.test_scores.objects,
    )
    assert (found.connectivity, found.min_object_px, found.resized) == ("8", 0, "nearest")
    assert found.hausdorff_left_out == recorded.hausdorff_left_out
    assert found.pooled == pytest.approx(recorded.pooled)
    assert found.mean == pytest.approx(recorded.mean)


def test_a_run_of_release_0_1_0_has_objects_as_predicted_only(old_run):
    run, _ = old_run
    assert run.metrics.object_tuning is run.test_scores.tuned_objects is None
    assert run.test_scores.objects.rule == ObjectRule(0, fill_holes=False)
    table = object_table([run], run.metrics.test_split, title="t")
    assert [line.cells[1] for line in table.lines] == ["as predicted"]
    assert "release that chose none" in table.notes[-1]


def test_the_object_record_holds_pooled_and_mean_scores_and_the_images_left_out():
    several = [ObjectSums(tp=1, predicted_px=9, true_px=9), ObjectSums(fn=1, true_px=9, left_out=1)]
    found = object_split_scores(several, dataclasses.replace(CONFIG, connectivity="4", min_object_px=7))
    assert (found.connectivity, found.min_object_px, found.hausdorff_left_out) == ("4", 7, 1)
    assert found.pooled == ObjectSums.total(several).scores()._asdict()
    assert found.mean == mean_scores(several)._asdict()


def counts(store, predicted, **changes):
    sums = image_sums(store, 4, predicted, dataclasses.replace(CONFIG, **changes))
    return sums.tp + sums.fp


def test_small_predicted_objects_are_dropped_on_request(toy_store):
    predicted = np.zeros((256, 512), np.uint8)
    predicted[:100, :100], predicted[200:204, 200:204] = 1, 1
    assert [counts(toy_store, predicted, min_object_px=px) for px in (0, 50)] == [2, 1]


def test_pixels_that_touch_at_a_corner_join_with_connectivity_8_only(toy_store):
    predicted = np.zeros((256, 512), np.uint8)
    predicted[:128, :256], predicted[128:, 256:] = 1, 1
    assert [counts(toy_store, predicted, connectivity=c) for c in ("8", "4")] == [1, 2]


def test_a_prediction_at_the_original_size_is_scored_as_it_is(toy_store):
    truth = toy_store.instances(4)
    assert image_sums(toy_store, 4, np.zeros(truth.shape, np.uint8), CONFIG) == ObjectSums(
        fn=4, true_px=int((truth > 0).sum()), left_out=1
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"classes": ("background", "gland"), "background": 0}, 1),
        ({"classes": ("gland", "stroma"), "background": 1}, 0),  # the field decides, not the name
        ({"classes": ("void", "background", "gland"), "background": 1, "ignore": 0}, 2),
        ({"has_instances": False}, None),
        ({"classes": ("background", "gland", "lumen"), "background": 0}, None),
        ({"classes": ("a", "b"), "background": None}, None),
    ],
)
def test_objects_are_of_the_one_class_beside_background(tmp_path, toy_contents, change, code):
    assert scored_class(StoreWriter(tmp_path / "toy.zarr", toy_contents(**change)).store) == code


def test_a_store_without_an_object_class_is_refused(tmp_path, toy_contents, fill_store):
    store = fill_store(StoreWriter(tmp_path / "toy.zarr", toy_contents(classes=("background", "gland", "lumen"))))
    with pytest.raises(ValueError, match="no single class of objects"):
        image_sums(store, 4, np.zeros((256, 512), np.uint8), CONFIG)
