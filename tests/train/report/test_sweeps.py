"""Which runs make a sweep, and the mean and deviation over their seeds."""

import dataclasses
import statistics
from typing import Any

import pytest

from pathseg.store.blocks import BLOCKS
from pathseg.train.report.sweeps import (
    Repeats,
    Sweep,
    block_label,
    describe,
    distinct_settings,
    duplicates,
    features_label,
    find_repeats,
    find_sweeps,
    seeds_label,
)


def values(runs) -> dict[str, list[Any]]:
    return {sweep.axis: [point.value for point in sweep.points] for sweep in find_sweeps(runs)}


def test_one_run_is_no_sweep(make_run):
    assert find_sweeps([make_run()]) == () and find_repeats([make_run()]) == ()


def test_seeds_alone_are_no_sweep(make_run):
    assert find_sweeps([make_run(seed=0), make_run(seed=1)]) == ()


@pytest.mark.parametrize(
    ("axis", "given", "ordered"),
    [
        ("t", [200, 50, 10], [10, 50, 200]),
        ("blocks", [BLOCKS, (6, 5, 4), (10,), (2,)], [(2,), (10,), (4, 5, 6), BLOCKS]),
        ("lr", [1e-5, 1e-3, 1e-4], [1e-3, 1e-4, 1e-5]),
    ],
)
def test_points_of_a_sweep_are_in_order(make_run, axis, given, ordered):
    assert values([make_run(**{axis: value}) for value in given]) == {axis: ordered}


def test_runs_that_differ_in_two_settings_are_no_sweep(make_run):
    assert find_sweeps([make_run(t=10), make_run(lr=1e-3)]) == ()


def test_a_grid_of_two_settings_is_a_sweep_along_each_line(make_run):
    found = find_sweeps([make_run(t=t, lr=lr) for t in (10, 50) for lr in (1e-3, 1e-4)])
    assert [sweep.axis for sweep in found] == ["t", "t", "lr", "lr"]


@pytest.mark.parametrize("other", [{"epochs": 3}, {"split_seed": 1}, {"precision": "bfloat16"}, {"augment": "flips"}])
def test_another_setting_keeps_runs_apart(make_run, other):
    assert find_sweeps([make_run(t=10), make_run(t=50, **other)]) == ()


@pytest.mark.parametrize("other", [{"images": {"train": ("x",)}}, {"test_split": "testA"}, {"digest": "other"}])
def test_other_images_keep_runs_apart(make_run, other):
    assert find_sweeps([make_run(t=10), make_run(t=50, data=other)]) == ()


def test_other_features_keep_runs_apart(make_run):
    assert find_sweeps([make_run(t=10), make_run(t=50, key={"seed": 1})]) == ()


def test_a_store_that_was_moved_is_the_same_store(make_run):
    assert values([make_run(t=10), make_run(t=50, data={"store": "/moved.zarr"})]) == {"t": [10, 50]}


def test_channels_follow_from_the_blocks_and_do_not_count(make_run):
    runs = [make_run(blocks=(4,)), make_run(blocks=(5,), data={"channels": {5: 2}})]
    assert values(runs) == {"blocks": [(4,), (5,)]}


def test_baselines_make_a_sweep_over_the_learning_rate(make_run):
    runs = [make_run(network="res-unet", weights="none", lr=lr) for lr in (1e-3, 1e-4)]
    assert values(runs) == {"lr": [1e-3, 1e-4]}


def test_seeds_of_a_point_are_in_order(make_run):
    (sweep,) = find_sweeps([make_run(t=t, seed=seed) for t in (10, 50) for seed in (2, 0, 1)])
    assert [point.seeds for point in sweep.points] == [(0, 1, 2)] * 2


def test_the_sweep_with_the_most_values_comes_first(make_run):
    few = [make_run(t=t, lr=1e-3) for t in (10, 50)]
    many = [make_run(t=t) for t in (10, 50, 100)]
    assert [len(sweep.points) for sweep in find_sweeps([*few, *many]) if sweep.axis == "t"] == [3, 2]


def test_the_same_run_under_another_name_counts_once(make_run):
    runs = [make_run("b"), make_run("a"), make_run("c", seed=1)]
    assert duplicates(runs) == (("b", "a"),)
    ((_, repeats),) = find_repeats(runs)
    assert [run.name for run in repeats.runs] == ["a", "c"]


@pytest.mark.parametrize("rule", [{"connectivity": "4"}, {"min_object_px": 50}])
def test_objects_counted_otherwise_are_no_other_training(make_run, rule):
    """Such a run is no second seed and no second setting; the run with the default rules is shown."""
    runs = [make_run("a", **rule), make_run("b"), make_run("c", seed=1)]
    assert duplicates(runs) == (("a", "b"),)
    ((settings, repeats),) = find_repeats(runs)
    assert [run.name for run in repeats.runs] == ["b", "c"]
    assert settings == describe(make_run())


def test_a_sweep_may_count_objects_in_two_ways(make_run):
    assert values([make_run(t=10), make_run(t=50, connectivity="4")]) == {"t": [10, 50]}


def test_repeats_differ_by_seed_only(make_run):
    found = find_repeats([make_run(seed=0), make_run(seed=1), make_run(seed=0, t=10)])
    assert [repeats.seeds for _, repeats in found] == [(0, 1)]


def test_validation_scores_are_those_of_the_epoch_that_was_kept(make_run):
    assert Repeats((make_run(val=0.7),)).scores("val", "dice") == (0.7,)


def test_test_scores_are_those_of_the_quoted_split(make_run):
    repeats, scores = Repeats((make_run(),)), make_run().test_scores.scores
    assert [repeats.scores("test", metric)[0] for metric in ("accuracy", "dice", "miou", "f1")] == [
        scores.accuracy, scores.dice, scores.miou, scores.f1,
    ]  # fmt: skip


def test_a_run_without_history_has_no_validation_score(make_run):
    assert Repeats((dataclasses.replace(make_run(), history=()),)).spread("val", "dice") is None


def test_the_best_point_has_the_highest_mean_validation_dice(make_run):
    scores = {10: (0.9, 0.1), 50: (0.6, 0.6)}
    (sweep,) = find_sweeps([make_run(t=t, seed=s, val=val) for t, both in scores.items() for s, val in enumerate(both)])
    assert statistics.fmean(scores[50]) > statistics.fmean(scores[10]) and sweep.best.value == 50


def test_the_shared_settings_leave_out_the_one_that_varies(make_run):
    (sweep,) = find_sweeps([make_run(t=t, blocks=(4, 5, 6), batch_size=2) for t in (10, 50)])
    assert ", ".join(sweep.fixed) == (
        "model mini, condition ssl, blocks 4-6, head fcn, learning rate 0.0001, 20 epochs, batch size 2"
    )


def test_an_untrained_model_is_called_so(make_run):
    described = describe(make_run(trained=False, key={"condition": "none"}))
    assert described[:2] == ("model mini (untrained)", "condition none")


def test_a_baseline_is_described_without_features(make_run):
    described = describe(make_run(network="res-unet", weights="none", trained=False))
    assert described == ("network res-unet", "learning rate 0.0001", "20 epochs", "weights none")


def test_with_several_stores_a_sweep_names_its_own(make_run):
    runs = [make_run(t=10), make_run(t=50), make_run(t=50, key={"seed": 1})]
    assert ", ".join(find_sweeps(runs)[0].fixed).endswith("glas.zarr with 2 training images of 512x256 px")


def test_all_thirteen_blocks_are_called_all_but_of_models_that_may_have_more(make_run):
    key = make_run().data.key
    assert (block_label(BLOCKS, key), block_label((4, 5, 6), key)) == ("all", "4-6")
    vit = {"architecture": "vit", "mean": [0, 0, 0], "std": [1, 1, 1], "input_px": 256, "norm": "final"}
    for settings in ({"diffusers": {"context": "zero"}}, {"vit": vit}):
        assert block_label(BLOCKS, make_run(key=settings).data.key) == "0-12"


def test_unequal_numbers_of_seeds_are_a_range(make_run):
    (sweep,) = find_sweeps([make_run(t=10), make_run(t=50), make_run(t=50, seed=1)])
    assert seeds_label(sweep.points) == "1–2 seeds" and seeds_label(sweep.points[:1]) == "1 seed"


def of_images(make_run, count: int | str, seed: int = 0, **settings):
    ids = tuple(f"{seed}.{n}" for n in range(count)) if isinstance(count, int) else tuple("abcdefgh")
    images = {"train": ids, "val": ("v",), "testB": ("d", "e")}
    return make_run(train_images=count, seed=seed, data={"images": images, "train_images": len(ids)}, **settings)


def test_numbers_of_training_images_make_a_sweep_over_seeds_that_drew_other_images(make_run):
    runs = [of_images(make_run, count, seed) for count in ("all", 5, 2) for seed in (1, 0)]
    (sweep,) = find_sweeps(runs)
    assert sweep.axis == "train_images"
    assert [(point.value, point.seeds) for point in sweep.points] == [(2, (0, 1)), (5, (0, 1)), (8, (0, 1))]
    assert len(find_repeats(runs)) == 3
    fixed = ", ".join(sweep.fixed)
    assert "images" not in fixed and "store" not in fixed


def test_learning_curves_of_two_heads_are_told_apart_by_what_differs(make_run):
    runs = [of_images(make_run, count, head_type=head, lr=1e-3, epochs=9)
            for count in (2, "all") for head in ("fcn", "linear")]  # fmt: skip
    assert set(distinct_settings(find_sweeps(runs))) == {"head fcn", "head linear"}


def test_images_cut_in_another_way_are_no_learning_curve_of_one_setting(make_run):
    few, many = of_images(make_run, 2, t=10), of_images(make_run, "all", t=50)
    assert find_sweeps([few, many]) == ()


MINI, HIPT = {"blocks": (4, 5, 6)}, {"blocks": (4, 5, 6), "key": {"model": "mini-hipt"}}


def test_a_joined_run_names_each_model_with_its_blocks_and_its_timestep_where_they_differ(make_joined_run):
    assert features_label(make_joined_run(MINI, HIPT)) == "mini 4-6 + mini-hipt 4-6"
    assert features_label(make_joined_run(MINI, MINI | {"t": 200, "blocks": (0,)})) == "mini t 50 4-6 + mini t 200 0"
    described = describe(make_joined_run(MINI, HIPT | {"blocks": (0,)}))
    assert described[:4] == ("model mini + mini-hipt", "condition ssl", "t = 50", "blocks 4-6 + 0")


def test_joined_runs_make_sweeps_over_timesteps_and_blocks(make_joined_run):
    over_t = [make_joined_run(MINI | {"t": t}, HIPT | {"t": t}) for t in (200, 50)]
    assert values([*over_t, make_joined_run(MINI | {"t": 50}, HIPT | {"t": 200})]) == {"t": [50, 200, (50, 200)]}
    over_blocks = [make_joined_run(MINI | {"blocks": blocks}, HIPT) for blocks in ((4, 5), (0,))]
    assert values(over_blocks) == {"blocks": [((0,), (4, 5, 6)), ((4, 5), (4, 5, 6))]}


def test_a_setting_whose_words_hold_a_comma_stays_whole():
    settings = [("head fcn", "pad to 512, 768 px"), ("head fcn", "pad to 512, 1024 px"), ("head fcn", "768 px")]
    sweeps = [Sweep("lr", (), fixed) for fixed in settings]
    assert distinct_settings(sweeps) == ("pad to 512, 768 px", "pad to 512, 1024 px", "768 px")
    assert distinct_settings([sweeps[0], Sweep("t", (), ("768 px", settings[0][1]))]) == ("head fcn", "768 px")
