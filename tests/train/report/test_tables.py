"""The tables of the report: which values stand in which row, and what the notes say."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from pathseg.store.runtime.extraction_speed import ExtractionSpeed, record_speed
from pathseg.train.metrics.object import ObjectRule, ObjectSums
from pathseg.train.report.sweeps import Repeats, find_repeats, find_sweeps
from pathseg.train.report.systems import System, find_systems
from pathseg.train.report.table_formats import DASH, MINUS, Table
from pathseg.train.report.tables import (
    SETTINGS,
    by_dice,
    class_table,
    confusion_table,
    cost_table,
    image_table,
    interval_tables,
    mixing_table,
    object_table,
    paper_rates_table,
    results_table,
    seeds_table,
    sweep_table,
    systems_table,
    tissue_table,
)
from pathseg.train.runs.record import LayerWeight, ObjectTuning

GOOD, FAIR = np.array([[50, 10], [20, 20]]), np.array([[40, 20], [20, 20]])
DICE_GOOD, DICE_FAIR = (100 / 130 + 40 / 70) / 2, (80 / 120 + 40 / 80) / 2
TISSUES = ("tumor", "stroma", "inflammatory", "necrosis", "other")
FOUND = ObjectSums(1, 0, 0, 100, 100, 50.0, 50.0, 100, 100, 300.0, 300.0)  # F1 1, Dice 1/2, Hausdorff 3 px


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip(table.header, table.lines[row].cells, strict=True))


def rows(table: Table, kind: str = "run") -> list[tuple[str, ...]]:
    return [line.cells for line in table.lines if line.kind == kind]


@pytest.fixture
def runs(make_run, make_split):
    good = {"testB": make_split({"d": GOOD, "e": GOOD}), "testA": make_split({"f": FAIR})}
    return [make_run("fair", matrix=FAIR, blocks=(4, 5, 6), seed=3), make_run("good", splits=good, blocks=(4, 5, 6))]


def test_the_highest_dice_is_first_and_marked_and_the_constant_prediction_last(runs):
    lines = results_table(runs, "testB", caption="t").lines
    assert [(line.kind, line.cells[0], line.best) for line in lines] == [
        ("run", "good", True), ("run", "fair", False), ("constant", "always background", False),
    ]  # fmt: skip


def test_a_row_says_how_the_run_was_made(runs):
    row = cells(results_table(runs, "testB", caption="t"), 1)
    assert [row[name] for name in SETTINGS] == [
        "mini", "ssl", "50", "4-6", "fcn", "2,654,274", "0.0001", "3", "30 (7)", "2",
    ]  # fmt: skip


def test_a_baseline_reads_images_and_has_no_timestep_and_no_blocks(make_run):
    row = cells(results_table([make_run(network="res-unet", trained=False)], "testB", caption="t"), 0)
    assert [row[name] for name in SETTINGS[:5]] == ["images", DASH, DASH, DASH, "res-unet"]


def test_scores_are_those_of_the_matrix_and_the_gain_is_over_the_constant_prediction(runs):
    table = results_table(runs, "testB", caption="t")
    row = cells(table, 0)
    miou, constant = (50 / 80 + 20 / 50) / 2, 120 / 160 / 2
    assert (row["accuracy"], row["Dice"], row["mIoU"]) == ("0.700", f"{DICE_GOOD:.3f}", f"{miou:.3f}")
    assert row["Dice − constant"] == f"+{DICE_GOOD - constant:.3f}" and cells(table, 2)["Dice"] == "0.375"
    assert table.frame()["Dice"][0] == DICE_GOOD


def test_a_split_holds_only_the_runs_that_were_scored_on_it(runs):
    assert [row[0] for row in rows(results_table(runs, "testA", caption="t"))] == ["good"]


def test_an_untrained_model_is_marked_in_its_row(make_run):
    assert cells(results_table([make_run(trained=False)], "testB", caption="t"), 0)["model"] == "mini (untrained)"


def test_equal_dice_is_ordered_by_name(make_run):
    assert [run.name for run in by_dice([make_run("b"), make_run("a")], "testB")] == ["a", "b"]


def test_comparable_runs_carry_no_note(runs):
    assert results_table(runs, "testB", caption="t").notes == ()


def test_runs_on_other_images_or_sizes_are_said_not_to_compare(runs, make_run):
    other = make_run("other", ids=("x",), key={"size": (768, 768)})
    images, sizes = results_table([*runs, other], "testB", caption="t").notes
    assert "different images" in images
    assert "512x256 px: good, fair; 768x768 px: other" in sizes


def test_patches_of_one_region_are_said_to_count_twice_where_they_overlap(make_run, make_split):
    split = make_split({"d": GOOD, "e": GOOD}, sources={"d": "r", "e": "r"})
    (note,) = results_table([make_run(splits={"testB": split})], "testB", caption="t").notes
    assert "2 images are patches of 1 region" in note


def test_patients_that_were_trained_on_are_counted_below_results_and_systems(make_run):
    run = make_run("a", data={"shared_sources": {"testB": 3}})
    for table in (results_table([run], "testB", caption="t"), systems_table(find_systems([run]), "testB", title="t")):
        (note,) = [note for note in table.notes if note.startswith("3 patients or slides are both in testB")]
        assert "not those of unseen tissue" in note


def test_runs_that_shared_other_numbers_of_patients_are_named(make_run):
    runs = [make_run("a", data={"shared_sources": {"testB": 1}}), make_run("b")]
    notes = results_table(runs, "testB", caption="t").notes
    assert any("1 patient or slide is both in testB" in note and "images of a," in note for note in notes)


def test_every_class_of_every_run_has_a_row(runs):
    table = class_table(runs, "testB", title="t")
    assert [row[:3] for row in rows(table)] == [
        ("good", "background", "120"), ("good", "gland", "80"), ("fair", "background", "120"), ("fair", "gland", "80"),
    ]  # fmt: skip
    row = cells(table, 1)
    assert (row["Dice (= F1)"], row["IoU"], row["precision"], row["recall"]) == ("0.571", "0.400", "0.667", "0.500")


def test_the_ignored_class_has_no_row(make_run):
    table = class_table([make_run(classes=("outside", "gland"), ignore=0)], "testB", title="t")
    assert [row[1] for row in rows(table)] == ["gland"]


def test_images_are_listed_worst_first(make_split):
    split = make_split({"a": GOOD, "b": FAIR, "empty": np.zeros((2, 2), int)})
    assert [row[0] for row in rows(image_table(split, name="n", caption="t"))] == ["empty", "b", "a"]


def test_images_give_object_scores_and_uncertainty_where_they_are_recorded(make_split):
    assert len(image_table(make_split({"a": GOOD}), name="n", caption="t").header) == 5
    split = make_split({"a": GOOD, "b": GOOD}, objects={"a": FOUND}, uncertainty={"b": 0.25})
    table = image_table(split, name="n", caption="t")
    assert {row[0]: row[5:] for row in rows(table)} == {
        "a": ("1.000", "0.500", "3.0", DASH), "b": (DASH, DASH, DASH, "0.250"),
    }  # fmt: skip
    assert "tenth" in table.notes[0]


def two_images_with_objects() -> dict[str, ObjectSums]:
    """One of two objects found and one too many; nothing found of one."""
    return {
        "a": ObjectSums(1, 1, 1, 200, 200, 100.0, 100.0, 200, 200, 300.0, 500.0),
        "b": ObjectSums(0, 0, 1, 0, 200, 0.0, 0.0, left_out=1),
    }


def test_object_scores_by_hand(make_run, make_split):
    split = make_split({"a": GOOD, "b": GOOD}, objects=two_images_with_objects())
    row = cells(object_table([make_run("a", splits={"testB": split})], "testB", title="t"), 0)
    assert list(row.values()) == [
        "a", "as predicted", "1", "1", "2", "0.400", f"{(100 / 200 + 100 / 400) / 2:.3f}",
        f"{(300 / 200 + 500 / 200) / 2:.1f}", "0.250", "0.250", "2.0", "1",
    ]  # fmt: skip


def test_runs_whose_objects_were_counted_otherwise_are_named(make_run, make_split):
    def run(name, **rules):
        split = make_split({"a": GOOD}, objects={"a": FOUND}, **rules)
        return make_run(name, splits={"testB": split}, **rules)

    table = object_table([run("a"), run("b", connectivity="4", min_object_px=9)], "testB", title="t")
    note, *untuned = table.notes
    assert "8-connected (a); 4-connected (b)" in note
    assert [(cells(table, i)["run"], cells(table, i)["objects"]) for i in range(2)] == [
        ("a", "as predicted"), ("b", "at least 9 px"),
    ]  # fmt: skip
    assert any("b: --min-object-px 9 was passed" in text for text in untuned)
    assert any("a: the validation images hold no objects, or the run is of a release" in text for text in untuned)


def test_objects_as_predicted_stand_above_those_with_the_rule_chosen_on_validation_images(make_run, make_split):
    rule, many = ObjectRule(2000, fill_holes=True), dataclasses.replace(FOUND, fp=7)
    split = make_split({"a": GOOD}, objects={"a": many}, tuned={"a": FOUND}, tuned_rule=rule)
    tuning = ObjectTuning(rule, images=1, f1=0.9, dice=0.8, f1_as_predicted=0.2, dice_as_predicted=0.7)
    table = object_table(
        [make_run("r", splits={"testB": split}, metrics={"object_tuning": tuning})], "testB", title="t"
    )
    above, below = cells(table, 0), cells(table, 1)
    assert [row["objects"] for row in (above, below)] == [
        "as predicted", "at least 2,000 px, holes filled (chosen on 1 validation image)",
    ]  # fmt: skip
    assert [row["FP"] for row in (above, below)] == ["7", "0"]
    assert [row["F1 (pooled)"] for row in (above, below)] == ["0.222", "1.000"]
    assert [(row["val. F1 (pooled)"], row["val. Dice (pooled)"]) for row in (above, below)] == [
        ("0.200", "0.700"), ("0.900", "0.800"),
    ]  # fmt: skip
    assert "test images play no part" in table.notes[1]


def test_runs_without_objects_have_no_table_of_them(runs):
    assert object_table(runs, "testB", title="t") is None


def test_a_confusion_matrix_gives_counts_and_shares_of_the_row(make_run):
    table = confusion_table(make_run(ids=("d",)), "testB", name="n")
    assert rows(table) == [("background", "50", "10", "0.833", "0.167"), ("gland", "20", "20", "0.500", "0.500")]
    assert confusion_table(make_run(), "testA", name="n") is None


def test_the_cost_of_a_run_by_hand(make_run):
    read = {"seconds": 60.0, "epochs": 8, "bytes_read": 26_000_000, "heads_from_one_read": 13}
    table = cost_table([make_run(blocks=(4,), metrics=read), make_run(blocks=(5,))], title="t")
    row = cells(table, 0)
    assert (row["training steps, s"], row["s per epoch"]) == ("60.0", "7.50")
    assert (row["read from the store"], row["heads from one read"], row["read per head"]) == ("26.0 MB", "13", "2.0 MB")
    assert rows(table)[1][-3:] == (DASH, DASH, DASH)
    assert table.frame()["read per head"][0] == 2_000_000


def test_a_single_run_has_no_cost_table(make_run):
    assert cost_table([make_run()], title="t") is None


def test_a_system_gives_weights_seeds_mean_and_deviation(make_run):
    found = find_systems([make_run(trained=False, seed=0), make_run(trained=False, seed=1, matrix=FAIR)])
    row = systems_table(found, "testB", title="GlaS").lines[0].cells
    deviation = (DICE_GOOD - DICE_FAIR) / 2**0.5
    assert row[:7] == ("PathSegDiff", "mini (untrained)", "2 (0, 1)", "1", "1", "0.650 ± 0.071",
                       f"{(DICE_GOOD + DICE_FAIR) / 2:.3f} ± {deviation:.3f}")  # fmt: skip


def test_systems_stand_above_what_the_paper_reports(make_run):
    table = systems_table(find_systems([make_run()]), "testB", title="GlaS")
    assert [row[0] for row in rows(table)] == ["PathSegDiff"]
    paper = rows(table, "paper")
    assert (len(paper), paper[0][0], paper[-1][0]) == (8, "HIPT", "PathSegDiff")
    assert ("CIMD", "reported, Table 4", *[DASH] * 5, "0.569", "0.692", DASH, DASH) in paper
    assert "Table 4" in table.caption and "all 20 images of this split, ours on 2" in table.notes[1]


def test_a_system_says_what_its_head_costs(make_run):
    row = cells(systems_table(find_systems([make_run(data={"patch_bytes": 6_800_000})]), "testB", title="t"), 0)
    assert (row["parameters"], row["features a patch"]) == ("2,654,274", "6.8 MB")


def test_a_system_says_how_many_patches_a_second_its_features_took(make_run, make_joined_run, tmp_path):
    """20 passes in 4 s, 30 in 3 s; a head that reads both takes 1/5 + 1/10 s a patch."""
    mini, hipt = make_run(), make_run(key={"model": "hipt", "first_stage": "none"})
    joined = make_joined_run({"blocks": (4,)}, {"blocks": (4,), "key": {"model": "hipt", "first_stage": "none"}})
    baseline = make_run(network="res-unet")
    for run, passes, seconds in ((mini, 20, 4.0), (hipt, 30, 3.0)):
        record_speed(tmp_path, run.data.key, ExtractionSpeed(run.data.key.model, passes, seconds, "cpu"))
    systems = find_systems([mini, hipt, joined, baseline])
    table = systems_table(systems, "testB", title="t", workspace=tmp_path)
    speeds = {row["system"]: row["patches/s"] for row in (cells(table, i) for i in range(4))}
    assert speeds == {"PathSegDiff": "5", "HIPT": "10", "mini 4 + hipt 4": "3.33", "Res-UNet": DASH}
    assert "(mini on cpu; hipt on cpu)" in table.notes[-1] or "(hipt on cpu; mini on cpu)" in table.notes[-1]


def test_without_a_measurement_there_is_no_column_of_patches_a_second(make_run, tmp_path):
    table = systems_table(find_systems([make_run()]), "testB", title="t", workspace=tmp_path)
    assert "patches/s" not in table.header


def test_systems_are_compared_with_the_one_that_is_best_on_validation_images(make_run):
    runs = [make_run("mini", val=0.5), make_run("probe", head_type="linear", val=0.9, matrix=FAIR)]
    table = interval_tables(runs, "testB", title="t", systems=find_systems(runs))[-1]
    assert "Each system against linear probe" in table.caption
    assert [row[0] for row in rows(table)] == ["PathSegDiff"]


def test_a_data_set_that_the_paper_does_not_use_has_no_reported_rows(make_run):
    table = systems_table(find_systems([make_run(key={"dataset": "folder"})]), "testB", title="t")
    assert rows(table, "paper") == [] and "Table" not in table.caption


def test_settings_that_were_not_considered_are_counted_in_the_note(make_run):
    runs = [make_run(lr=1e-4), make_run(lr=1e-4, seed=1), make_run(lr=1e-3, val=0.9)]
    note = systems_table(find_systems(runs), "testB", title="t").notes[0]
    assert "(1 with fewer images or seeds left aside)" in note


def test_a_system_says_how_many_settings_it_was_chosen_from_and_on_how_many_images(make_run):
    images = {"images": {"train": ("a",), "val": ("b", "c", "x"), "testB": ("d", "e")}}
    runs = [make_run(lr=lr, val=lr, data=images) for lr in (1e-3, 1e-4, 1e-5)]
    table = systems_table(find_systems([*runs, make_run(network="res-unet", data=images)]), "testB", title="t")
    assert [(row[0], *row[3:5]) for row in rows(table)] == [("PathSegDiff", "3", "3"), ("Res-UNet", "1", "3")]
    assert "learning rate 0.001, 20 epochs, the best of 3 settings on 3 validation images." in table.notes[0]


def test_runs_that_were_best_in_their_last_epoch_are_named(make_run):
    last, seventh = make_run("last", metrics={"best_epoch": 30}), make_run("seventh")
    ensemble = make_run("all", head_type="pixel-ensemble", metrics={"best_epoch": 30})  # keeps its last epoch always
    (note,) = results_table([last, seventh, ensemble], "testB", caption="t").notes
    assert note.startswith("last: ") and "--epochs" in note


def test_systems_over_other_pixels_are_named(make_run):
    same = [make_run(), make_run(head_type="linear")]
    other = make_run(key={"condition": "none", "size": (768, 768)})
    note = systems_table(find_systems([*same, other]), "testB", title="t").notes[1]
    assert "2 images of 512x256 px: PathSegDiff, linear probe; 2 images of 768x768 px: PathSegDiff-uncond" in note
    notes = systems_table(find_systems(same), "testB", title="t").notes
    assert not any("same pixels" in note for note in notes)


def counted(make_run, make_split, connectivity: str, **settings):
    """A run with one object, counted by this rule."""
    split = make_split({"d": GOOD}, objects={"d": FOUND}, connectivity=connectivity)
    return make_run(splits={"testB": split}, connectivity=connectivity, **settings)


def test_systems_have_object_scores_and_the_rules_by_which_objects_were_counted(make_run, make_split):
    table = systems_table(find_systems([counted(make_run, make_split, "8")]), "testB", title="t")
    assert table.header[-5:-2] == ("object F1", "object Dice", "object Hausdorff, px")
    assert rows(table)[0][-5:-2] == ("1.000", "0.500", "3.0") and rows(table, "paper")[0][-5:-2] == (DASH,) * 3
    assert any("8-connected, of any size." in note for note in table.notes)


def test_tuned_object_scores_stand_beside_those_as_predicted_in_systems_and_intervals(make_run, make_split):
    rule, many = ObjectRule(2000, fill_holes=True), dataclasses.replace(FOUND, fp=8)
    split = make_split({"d": GOOD}, objects={"d": many}, tuned={"d": FOUND}, tuned_rule=rule)
    tuned = make_run("tuned", splits={"testB": split})
    untuned = counted(make_run, make_split, "8", name="untuned", head_type="linear")
    systems = systems_table(find_systems([tuned, untuned]), "testB", title="t")
    intervals = interval_tables([tuned, untuned], "testB", title="t")[0]
    for table, values in ((systems, ("0.200", "1.000")), (intervals, ("0.200 [0.200, 0.200]", "1.000 [1.000, 1.000]"))):
        header, (first, second, *_) = table.header, table.lines
        at = header.index("object F1"), header.index("tuned object F1")
        assert tuple(first.cells[i] for i in at) == values and second.cells[at[1]] == DASH
        assert any("chose on its validation images" in note for note in table.notes)


def objects_by_image(shares):
    """Object sums of images whose only object is found with this Dice (predicted and true weigh the same)."""
    return {name: dataclasses.replace(FOUND, predicted_dice=share * FOUND.predicted_px, true_dice=share * FOUND.true_px)
            for name, share in shares.items()}  # fmt: skip


def test_object_scores_of_systems_are_tested_against_the_best_in_pairs_of_images(make_run, make_split):
    best, other = ({f"i{n}": share + n / 100 * scale for n in range(6)} for share, scale in ((0.8, 1), (0.5, 2)))
    runs = [
        make_run(name, head_type=head, val=val, splits={"testB": make_split(
            dict.fromkeys(shares, GOOD), objects=objects_by_image(shares))})
        for name, head, val, shares in (("fcn", "fcn", 0.9, best), ("probe", "linear", 0.5, other))
    ]  # fmt: skip
    tables = interval_tables(runs, "testB", title="GlaS", systems=find_systems(runs))
    table = tables[-1]
    assert table.caption == "Objects: each system against PathSegDiff on testB, GlaS"
    assert table.header == ("system", "score", "score − PathSegDiff", "95% interval", "p (Wilcoxon)", "images")
    by_score = {row[1]: row for row in rows(table)}
    assert list(by_score) == ["object F1", "object Dice", "object Hausdorff, px"]
    difference = [other[name] - best[name] for name in best]  # of each image; equal areas: their mean is the pooled one
    p = stats.wilcoxon(difference).pvalue
    mean = sum(difference) / 6
    assert by_score["object Dice"][2:] == (
        f"{mean:+.3f}".replace("-", MINUS),
        by_score["object Dice"][3],
        f"{p:.3f}",
        "6",
    )
    assert by_score["object F1"][2:] == ("+0.000", "[+0.000, +0.000]", "1.000", "6")
    assert "PathSegDiff: fcn; linear probe: probe" in table.notes[0]
    assert "not corrected for the number of comparisons" in table.notes[1] and "Wilcoxon" in table.notes[1]
    assert tables[-2].caption.startswith("Objects: each run against") and "makes p too small" in tables[-2].notes[0]


def test_objects_that_were_counted_by_different_rules_are_not_compared(make_run, make_split):
    runs = [counted(make_run, make_split, "8"), counted(make_run, make_split, "4", head_type="linear")]
    assert not any("Objects" in table.caption for table in interval_tables(runs, "testB", title="t"))


def test_objects_counted_in_two_ways_have_no_mean(make_run, make_split):
    runs = [counted(make_run, make_split, *about) for about in (("8",), ("4",))]
    runs[1] = dataclasses.replace(runs[1], config=dataclasses.replace(
        runs[1].config, settings=dataclasses.replace(runs[1].settings, seed=1)))  # fmt: skip
    runs.append(counted(make_run, make_split, "8", head_type="linear"))
    table = systems_table(find_systems(runs), "testB", title="t")
    assert [row[-5] for row in rows(table)] == [DASH, "1.000"]
    assert any("8-connected, of any size (PathSegDiff, linear probe); 4-connected" in note for note in table.notes)


def test_the_classes_of_bcss_are_the_papers_table_3(make_run):
    run = make_run(key={"dataset": "bcss"}, classes=TISSUES, matrix=np.diag([10, 20, 30, 40, 50]) + 10)
    table = tissue_table(find_systems([run]), "testB", title="BCSS")
    ious = [(n + 10) / (n + 90) for n in (10, 20, 30, 40)]  # on the diagonal n + 10, in row and column 40 more
    assert rows(table)[0][5:] == tuple(f"{iou:.4f}" for iou in [*ious, sum(ious) / 4])
    assert [row[0] for row in rows(table, "paper")] == [
        "HistoSegNet", "SEAM", "C-CAM", "WSSS-Tissue", "PistoSeg", "PathSegDiff",
    ]  # fmt: skip


def test_other_classes_have_no_table_3(make_run):
    assert tissue_table(find_systems([make_run()]), "testB", title="t") is None


def test_the_papers_learning_rates_are_those_of_bcss():
    assert len(paper_rates_table("bcss").rows) == 3 and paper_rates_table("glas") is None


@pytest.fixture
def rates(make_run):
    """1e-3 with the validation Dice 0.4, 1e-4 with 0.5 and 0.7."""

    def make(**about):
        runs = [(1e-3, 0, 0.4), (1e-4, 0, 0.5), (1e-4, 1, 0.7)]
        (sweep,) = find_sweeps([make_run(lr=lr, seed=seed, val=val, **about) for lr, seed, val in runs])
        return sweep_table(sweep, name="rates-1", title="GlaS")

    return make


def test_a_point_of_a_sweep_gives_mean_and_sample_deviation_by_hand(rates):
    assert cells(rates(), 1) == {
        "learning rate": "0.0001", "n (seeds)": "2 (0, 1)", "val. accuracy": "0.800 ± 0.141",
        "val. mIoU": "0.500 ± 0.141", "val. Dice": "0.600 ± 0.141", "testB mIoU": "0.512 ± 0.000",
        "testB Dice": f"{DICE_GOOD:.3f} ± 0.000",
    }  # fmt: skip
    assert (cells(rates(), 0)["n (seeds)"], cells(rates(), 0)["val. Dice"]) == ("1 (0)", "0.400")


def test_the_highest_mean_validation_dice_is_marked(rates):
    assert [line.best for line in rates().lines][:2] == [False, True]


def test_the_constant_prediction_has_test_scores_only(rates):
    assert rows(rates(), "constant") == [
        ("always background", "constant prediction", DASH, DASH, DASH, "0.300", "0.375")
    ]


def test_the_papers_rates_stand_below_ours(rates):
    paper = rows(rates(), "paper")
    assert [row[0] for row in paper] == ["0.001", "0.0001", "1e-05"]
    assert paper[1] == ("0.0001", "reported, Table 5", "0.826", "0.646", "0.780", DASH, DASH)


@pytest.mark.parametrize(("dataset", "text"), [("glas", "another data set than this one"), ("bcss", "may be others")])
def test_the_papers_rates_are_said_to_be_on_bcss(rates, dataset, text):
    note = rates(key={"dataset": dataset}).notes[-1]
    assert "BCSS" in note and "not run here" in note and text in note


def test_other_sweeps_report_no_rates(make_run):
    (sweep,) = find_sweeps([make_run(t=10), make_run(t=50)])
    assert rows(sweep_table(sweep, name="n", title="t"), "paper") == []


def test_blocks_are_written_as_on_the_command_line(make_run):
    (sweep,) = find_sweeps([make_run(blocks=(4, 5, 6)), make_run(blocks=(7,)), make_run()])
    assert [row[0] for row in rows(sweep_table(sweep, name="n", title="t"))] == ["7", "4-6", "all"]


def test_a_seed_without_validation_scores_is_not_counted(make_run):
    (sweep,) = find_sweeps([make_run(t=10), make_run(t=10, seed=1, history=()), make_run(t=50)])
    assert cells(sweep_table(sweep, name="n", title="t"), 0)["val. Dice"] == "0.500 (n = 1)"


@pytest.mark.parametrize("trained", [True, False])
def test_the_caption_says_when_a_model_is_untrained(rates, trained):
    assert ("untrained model" in rates(trained=trained).caption) is not trained


def test_runs_that_differ_by_seed_are_one_row(make_run):
    table = seeds_table([make_run(seed=s, val=val) for s, val in enumerate((0.5, 0.7, 0.6))], title="t")
    row = cells(table, 0)
    assert len(table.rows) == 1 and (row["n (seeds)"], row["val. Dice"]) == ("3 (0, 1, 2)", "0.600 ± 0.100")


def test_settings_that_all_rows_share_are_named_once(make_run):
    table = seeds_table([make_run(t=t, seed=seed) for t in (10, 50) for seed in (0, 1)], title="t")
    assert [row[0] for row in rows(table)] == ["t = 10", "t = 50"]
    assert "All rows: model mini, condition ssl, blocks all, head fcn" in table.notes[1]


def test_single_seeds_make_no_table(make_run):
    assert seeds_table([make_run(t=10), make_run(t=50)], title="t") is None


def test_a_run_that_was_trained_twice_is_named_and_not_counted(make_run):
    table = seeds_table([make_run("a"), make_run("b"), make_run("c", seed=1)], title="t")
    assert cells(table, 0)["n (seeds)"] == "2 (0, 1)" and "b (as a)" in table.notes[-1]


def test_a_score_stands_with_its_interval(make_run):
    (table,) = interval_tables([make_run("one")], "testB", title="t")  # equal images: no width
    assert table.lines[0].cells[:2] == ("one", "0.700 [0.700, 0.700]")


def test_every_run_is_compared_with_the_best(runs):
    _, table = interval_tables(runs, "testB", title="GlaS")
    difference = f"−{DICE_GOOD - DICE_FAIR:.3f}"
    assert table.caption == "Each run against good on testB, GlaS"
    assert rows(table) == [("fair", difference, f"[{difference}, {difference}]", "0.500", "2")]
    assert "chosen on these images" in table.notes[0]


def test_systems_are_compared_with_the_first_whichever_is_better(make_run):
    runs = [make_run("ours", matrix=FAIR), make_run("unconditional"), make_run("another seed")]
    systems = [System(name, Repeats((run,)), (), 1) for name, run in zip(("P", "P-uncond"), runs, strict=False)]
    *_, table = interval_tables(runs, "testB", title="GlaS", systems=systems)
    difference = f"+{DICE_GOOD - DICE_FAIR:.3f}"
    assert table.caption == "Each system against P on testB, GlaS"
    assert table.header[:2] == ("system", "Dice − P")
    assert rows(table) == [("P-uncond", difference, f"[{difference}, {difference}]", "0.500", "2")]
    assert "P: ours; P-uncond: unconditional" in table.notes[0] and "chosen on these images" not in table.notes[1]


def test_one_system_is_compared_with_none(runs):
    assert len(interval_tables(runs, "testB", title="t", systems=[System("P", Repeats(tuple(runs)), (), 1)])) == 2


@pytest.mark.parametrize("about", [{"ids": ("x", "y")}, {"key": {"size": (768, 768)}}])
def test_runs_on_other_images_or_of_another_size_have_a_dash_and_a_note(make_run, about):
    _, table = interval_tables([make_run("good"), make_run("x", matrix=FAIR, **about)], "testB", title="t")
    assert rows(table) == [("x", *[DASH] * 4)]
    assert "different images" in table.notes[1] and "images of another size" in table.notes[1]


def test_a_split_without_runs_has_no_intervals(make_run):
    assert interval_tables([make_run()], "testA", title="t") == ()


def test_the_notes_name_what_was_resampled(make_run, make_split):
    (images,) = interval_tables([make_run()], "testB", title="t")
    assert "over the test images," in images.notes[0]
    regions = {"d": "r", "e": "r"}
    runs = [
        make_run(name, splits={"testB": make_split({"d": matrix, "e": matrix}, sources=regions)})
        for name, matrix in (("one", GOOD), ("two", FAIR))
    ]
    intervals, differences = interval_tables(runs, "testB", title="BCSS")
    assert "over the test regions," in intervals.notes[0]
    assert differences.header[-1] == "regions" and rows(differences)[0][-1] == "1"
    assert "each of the regions" in differences.notes[0]


def test_learned_weights_are_shown_by_layer_over_seeds_in_the_order_of_the_layers(make_run):
    def mixed(seed, *weights):
        layers = tuple(LayerWeight(0, 50, block, weight) for block, weight in zip((4, 5), weights, strict=True))
        return make_run(head_type="scalar-mix", blocks=(4, 5), seed=seed, metrics={"layer_weights": layers})

    ((settings, repeats),) = find_repeats([mixed(0, 0.2, 0.8), mixed(1, 0.4, 0.6)])
    table = mixing_table(repeats, settings, name="mixing-1", title="t")
    # means by hand: 0.3 and 0.7, sample deviation of both 0.1414
    assert [(row[0], row[1], row[2]) for row in rows(table)] == [
        ("4", "2 (0, 1)", "0.300 ± 0.141"), ("5", "2 (0, 1)", "0.700 ± 0.141"),
    ]  # fmt: skip
