"""The section of a data set: the sentences of its summary, its facts, the captions of its sweeps."""

import dataclasses

import numpy as np
import pytest

from pathseg.store.sampling import Sampling
from pathseg.train.report.sections import comparable_runs, data_facts, summary, sweep_caption, untrained_warning
from pathseg.train.report.sweeps import find_sweeps

GOOD, FAIR = np.array([[50, 10], [20, 20]]), np.array([[40, 20], [20, 20]])
DICE = (100 / 130 + 40 / 70) / 2


def test_runs_are_grouped_by_data_set_classes_and_quoted_split(make_run):
    runs = [make_run("fair", matrix=FAIR), make_run("good"), make_run("bcss", key={"dataset": "bcss"})]
    groups = comparable_runs(runs)
    assert [(group.title, [run.name for run in group.runs]) for group in groups] == [
        ("BCSS", ["bcss"]), ("GlaS", ["good", "fair"]),
    ]  # fmt: skip


def test_the_quoted_split_comes_first(make_run, make_split):
    splits = {name: make_split({"d": GOOD}) for name in ("testA", "testB", "testC")}
    (group,) = comparable_runs([make_run(splits=splits)])
    assert group.splits == ("testB", "testA", "testC")


def test_the_summary_gives_run_scores_and_gain_over_the_constant_prediction(make_run):
    text = summary([make_run("one")], "GlaS")
    assert text.startswith(f"one has a Dice on testB of GlaS (2 images): {DICE:.3f}, with mIoU 0.512")
    assert f"{DICE - 0.375:.3f} above always predicting background (0.375)" in text


def test_the_summary_names_model_condition_blocks_and_timestep(make_run):
    text = summary([make_run(blocks=(4, 5, 6))], "GlaS")
    assert "model mini, conditioned on the SSL embedding, blocks 4-6 at t = 50" in text


def test_the_summary_of_a_baseline_names_its_first_weights(make_run):
    text = summary([make_run(network="res-unet", weights="none", trained=False)], "GlaS")
    assert "trained on the images themselves (first weights: none)" in text and "mini" not in text


def test_the_summary_says_random_weights(make_run):
    assert "model mini with random weights" in summary([make_run(trained=False)], "GlaS")


def test_the_summary_compares_with_the_paper(make_run):
    assert "reports a Dice of 0.896 for PathSegDiff (not run here)" in summary([make_run()], "GlaS")
    assert "paper" not in summary([make_run(key={"dataset": "folder"})], "folder")


def test_a_run_no_better_than_the_constant_prediction_is_called_so(make_run):
    text = summary([make_run(matrix=np.array([[60, 0], [40, 0]]))], "GlaS")
    assert "no better than always predicting background (0.375)" in text


@pytest.mark.parametrize(
    ("val", "text"),
    [
        (0.4, f"validation Dice would choose two, with a test Dice of {(80 / 120 + 40 / 80) / 2:.3f}"),
        (0.7, "validation Dice chooses the same run"),
        (None, "by their test score flatters it."),
    ],
)
def test_the_summary_says_which_run_validation_would_choose(make_run, val, text):
    found = summary([make_run("one", val=val), make_run("two", matrix=FAIR, val=0.6)], "GlaS")
    assert found.startswith("Of 2 runs, one has the highest Dice") and text in found


def test_a_single_run_needs_no_word_on_choice(make_run):
    assert "flatters" not in summary([make_run()], "GlaS")


def test_without_history_the_choice_note_still_stands(make_run):
    runs = [dataclasses.replace(make_run(name), history=()) for name in ("one", "two")]
    assert summary(runs, "GlaS").endswith("by their test score flatters it.")


def test_an_untrained_model_is_named_in_the_warning(make_run):
    assert untrained_warning([make_run()]) == ""
    assert untrained_warning([make_run(trained=False)]).startswith("Model mini is untrained; random weights")
    assert "(the rows marked untrained)" in untrained_warning([make_run(), make_run(trained=False)])


def test_a_baseline_on_the_store_of_an_untrained_model_brings_no_warning(make_run):
    assert untrained_warning([make_run(network="res-unet", trained=False)]) == ""


def test_the_facts_of_the_data(make_run):
    assert dict(data_facts(make_run(key={"size": (768, 512), "preprocessing": {"resized": True}}))) == {
        "Classes": "background, gland",
        "Images": "512 × 768 px, 0.62 µm/px, resized (images bicubic, masks nearest), aspect ratio not kept",
        "Splits": "train 2, val 1, testB 2",
        "Patients": "not known (no Grade.csv): validation images may share patients with training images",
    }
    facts = dict(data_facts(make_run(data={"shared_sources": {"testB": 2}})))
    assert facts["Shared sources"] == "2 patients or slides are both in testB and in the training or validation images"
    stretched = Sampling((768, 768), 0.62 * (522 * 775) ** 0.5 / 768, True, (522, 775))
    facts = dict(data_facts(make_run(key={"size": (768, 768)}, data={"sampling": stretched})))
    assert "0.626 µm/px across, 0.421 µm/px down" in facts["Images"]
    facts = dict(data_facts(make_run(key={"mpp": None}, classes=("outside", "gland"), ignore=0)))
    assert facts["Classes"] == "gland (code 0 is not counted)"
    assert facts["Images"].endswith("unknown scale, no preprocessing")


def test_the_caption_of_a_sweep_names_images_seeds_and_the_meaning_of_bars(make_run):
    runs = [make_run(lr=lr, seed=seed, trained=False) for lr, seed in ((1e-3, 0), (1e-4, 0), (1e-4, 1))]
    (sweep,) = find_sweeps(runs)
    text = sweep_caption(sweep, "GlaS")
    assert "1 validation image and on the test split testB (2 images)" in text
    assert "n = 1–2 seeds for each value" in text and "± one sample standard deviation" in text
    assert "random weights" in text


def test_the_caption_of_a_sweep_says_that_one_seed_has_no_deviation(make_run):
    (sweep,) = find_sweeps([make_run(t=10), make_run(t=50)])
    text = sweep_caption(sweep, "GlaS")
    assert "one seed" in text and "deviation is not known" in text and "untrained" not in text
