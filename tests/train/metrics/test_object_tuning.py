"""The choice of minimum object size and hole filling: on validation images alone, and what is recorded of it."""

import dataclasses

import numpy as np
import pytest

from pathseg.store.features import FeatureStore
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.metrics.object import ObjectRule, components, object_sums
from pathseg.train.metrics.object_predictions import image_sums, image_sums_by_rule
from pathseg.train.metrics.object_tuning import CANDIDATES, choose_rule
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.record import Metrics
from pathseg.train.training.sweep import plan_sweep, summary, train_plan

CONFIG = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=1)


@pytest.fixture
def make_store(tmp_path, toy_contents, fill_store):
    """A store of four training images and a test image whose glands are `truth`, all else as in `toy_store`."""

    def make(name, truth):
        writer = StoreWriter(tmp_path / f"{name}.zarr", toy_contents())
        store = fill_store(writer)
        for unit in range(store.contents.units):
            images = [
                (store.image(index), store.mask(index), truth(store.contents.images[index]))
                for index in writer.images(unit)
            ]
            writer.write_pixels(unit, images)
        return FeatureStore.open(store.location)

    return make


def gland(entry):
    """One gland on the left, two on the right, at the original size of an image."""
    ids = np.zeros((entry.height, entry.width), np.uint16)
    ids[:, :100], ids[:80, 200:280], ids[100:180, 200:280] = 1, 2, 3
    return ids


def specked_prediction():
    """A gland of 60x60 px, predicted with a hole of 10x10 px, ten specks of 81 px and two of 144."""
    truth, predicted = np.zeros((2, 200, 300), np.uint8)
    truth[10:70, 10:70] = predicted[10:70, 10:70] = 1
    predicted[30:40, 30:40] = 0
    for number in range(10):
        predicted[100:109, 20 * number : 20 * number + 9] = 1
    for number in range(2):
        predicted[150:162, 20 * number : 20 * number + 12] = 1
    return predicted.astype(bool), truth


def sums_of(predicted, truth):
    """The sums of one image under every candidate, each from a labelling of its own."""
    return {
        rule: object_sums(
            ground_truth=truth,
            predicted=components(predicted, min_px=rule.min_px, fill_holes=rule.fill_holes),
        )
        for rule in CANDIDATES
    }


def test_specks_are_removed_and_the_hole_is_filled_by_the_smallest_size_that_does():
    chosen = choose_rule([sums_of(*specked_prediction())])
    assert chosen.rule == ObjectRule(200, fill_holes=True)  # 500 to 2,000 px score the same
    assert (chosen.images, chosen.f1, chosen.dice) == (1, 1.0, 1.0)
    assert chosen.f1_as_predicted == pytest.approx(2 / 14)  # 1 TP, 12 FP
    area, specks = 3500, 10 * 81 + 2 * 144  # px predicted of the gland's 3,600, and beside it
    of_gland = 2 * area / (area + 3600)
    assert chosen.dice_as_predicted == pytest.approx((of_gland * area / (area + specks) + of_gland) / 2)


def test_a_prediction_that_is_right_is_left_as_it_is():
    _, truth = specked_prediction()
    assert choose_rule([sums_of(truth > 0, truth)]).rule == ObjectRule(0, fill_holes=False)


def test_true_holes_are_kept():
    predicted, truth = specked_prediction()
    truth[30:40, 30:40] = 0
    assert choose_rule([sums_of(predicted, truth)]).rule == ObjectRule(200, fill_holes=False)


def test_images_are_pooled_for_the_choice():
    """Dropping 90 px objects loses the small glands of the second image, more than the specks of the first cost."""
    predicted, truth = specked_prediction()
    many = np.zeros((200, 300), np.uint8)
    for number in range(40):
        y, x = 15 * (number // 10), 15 * (number % 10)
        many[y : y + 9, x : x + 10] = number + 1  # 90 px each
    chosen = choose_rule([sums_of(predicted, truth), sums_of(many > 0, many)])
    assert chosen.images == 2
    assert chosen.rule == ObjectRule(0, fill_holes=True)


@pytest.mark.parametrize("images", [[], [(np.ones((9, 9), bool), np.zeros((9, 9), np.uint8))]])
def test_without_true_objects_nothing_is_chosen(images):
    assert choose_rule([sums_of(*image) for image in images]) is None


def test_one_labelling_for_all_sizes_gives_the_scores_of_a_labelling_for_each(make_store):
    store = make_store("store", gland)
    codes = (np.random.default_rng(3).random((256, 512)) < 0.38).astype(np.uint8)
    found = image_sums_by_rule(store, 4, codes, CONFIG, CANDIDATES)
    for rule in CANDIDATES:
        alone = image_sums(store, 4, codes, CONFIG, rule)
        assert found[rule].scores()[:5] == pytest.approx(alone.scores()[:5])
    assert len({sums.fp for sums in found.values()}) > 3


def trained(store, folder, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    assert train_plan(plan_sweep(store, [(config, RunFolder(folder))]), device="cpu").failures == {}
    return FinishedRun.read(RunFolder(folder))


def test_the_test_split_plays_no_part_in_the_choice(make_store, tmp_path):
    def other_test_glands(entry):
        return gland(entry) if entry.split == "train" else 1 - np.minimum(gland(entry), 1)

    first = trained(make_store("one", gland), tmp_path / "one")
    second = trained(make_store("two", other_test_glands), tmp_path / "two")
    assert first.test_scores.objects != second.test_scores.objects
    assert first.metrics.object_tuning is not None
    assert first.metrics.object_tuning == second.metrics.object_tuning


def test_other_validation_glands_can_change_the_choice(make_store, tmp_path):
    def large_only(entry):
        return np.where(gland(entry) == 1, 1, 0).astype(np.uint16)

    runs = [trained(make_store(truth.__name__, truth), tmp_path / truth.__name__) for truth in (gland, large_only)]
    scores = [(run.metrics.object_tuning.f1, run.metrics.object_tuning.dice) for run in runs]
    assert scores[0] != scores[1]


def test_a_run_records_its_test_objects_as_predicted_and_with_the_chosen_rule(make_store, tmp_path):
    store = make_store("store", gland)
    run = trained(store, tmp_path / "run")
    tuning, split = run.metrics.object_tuning, run.test_scores
    assert tuning.images == len(run.data.images["val"]) == 1
    assert split.objects.rule == ObjectRule(0)
    assert split.tuned_objects.rule == tuning.rule
    for image in split.per_image:
        codes = run.folder.read_prediction(image.id)
        for found, rule in ((image.objects, ObjectRule(0)), (image.tuned_objects, tuning.rule)):
            assert found.sums == image_sums(store, store.ids.index(image.id), codes, CONFIG, rule)
    text = summary([run])
    assert "objects of any size" in text and f"{tuning.rule} (chosen on validation images)" in text


def test_the_tuning_comes_back_equal_from_metrics_json(make_store, tmp_path):
    metrics = trained(make_store("store", gland), tmp_path / "run").metrics
    assert Metrics.from_json(metrics.to_json(), source="metrics.json") == metrics
    assert metrics.object_tuning is not None


def test_a_least_size_that_is_passed_is_the_only_one(make_store, tmp_path):
    run = trained(make_store("store", gland), tmp_path / "run", min_object_px=50)
    assert run.metrics.object_tuning is run.test_scores.tuned_objects is None
    assert run.test_scores.objects.rule == ObjectRule(50)
    assert "--min-object-px 50" in summary([run])


def test_validation_images_without_glands_choose_nothing_and_the_summary_says_so(make_store, tmp_path):
    def only_in_test(entry):
        return gland(entry) * (entry.split == "test")

    run = trained(make_store("store", only_in_test), tmp_path / "run")
    assert run.metrics.object_tuning is run.test_scores.tuned_objects is None
    assert "no least size of objects was chosen: the validation images hold no objects" in summary([run])
