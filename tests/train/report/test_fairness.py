"""The notes below the table of systems on how a row differs from what it is named after."""

from pathseg.train.report.fairness import fairness_notes
from pathseg.train.report.systems import find_systems
from pathseg.train.runs.record import Epoch


def notes(runs, *, beside_paper=True):
    return fairness_notes(find_systems(runs), beside_paper=beside_paper)


def test_a_zero_embedding_is_said_not_to_be_the_papers_unconditional_model(make_run):
    unconditional = {"condition": "none"}
    tokens = {"model": "hipt", "first_stage": "none", **unconditional}
    runs = [make_run(), make_run(key=unconditional), make_run(key=tokens)]
    (note,) = notes([*runs, make_run(network="res-unet", key=unconditional)])
    assert note.startswith("PathSegDiff-uncond: ") and "trained separately" in note and "zero embedding" in note


def test_a_release_of_any_name_without_condition_is_said_not_to_be_known(make_run):
    others = [make_run(key={"model": name, "condition": "none"}) for name in ("zoomldm", "zoomldm-brca")]
    (note,) = notes(others)
    assert note.startswith("zoomldm, condition none: ") and "does not say" in note and "brca-hipt-20x" in note
    both = notes([*others, make_run(key={"condition": "none"})])
    assert [text.partition(":")[0] for text in both] == ["PathSegDiff-uncond", "zoomldm, condition none"]


def ensemble(make_run, steps, *, seed=0):
    history = tuple(Epoch(epoch, 0.4, steps=count) for epoch, count in enumerate(steps, 1))
    settings = {"head_type": "pixel-ensemble", "pixels": 256, "seed": seed}
    return make_run(history=history, metrics={"epochs": len(steps), "best_epoch": len(steps)}, **settings)


def test_a_pixel_ensemble_says_what_it_was_trained_on_beside_ddpmseg(make_run):
    (note,) = notes([ensemble(make_run, (1_000, 500)), ensemble(make_run, (1_000, 500, 20), seed=1)])
    assert note.startswith("DDPMSeg (pixel ensemble): ")
    assert "at most 96,000 to 97,280 pixels in 1,500 to 1,520 steps, 2 to 3 epochs of 256 pixels an image" in note
    assert "all 131,072 pixels of an image" in note and "fewer pixels than DDPMSeg's own" in note  # 256x512 px


def test_steps_that_a_run_did_not_record_are_not_guessed(make_run):
    (note,) = notes([ensemble(make_run, (None, None))])
    assert "steps were not recorded" in note


def test_fewer_blocks_than_the_papers_are_named_beside_its_row(make_run):
    few = [make_run(blocks=(4, 5, 6)), make_run(blocks=(4,), head_type="linear")]
    (note,) = notes(few)
    assert note.startswith("PathSegDiff: ") and "blocks 4-6" in note and "all 13" in note
    assert notes(few, beside_paper=False) == notes([make_run()]) == ()
