"""Which runs make a sweep, and the mean and deviation over their seeds."""

import dataclasses
import statistics
from typing import Any

import pytest

from pathseg.store.blocks import BLOCKS
from pathseg.train.config import HeadConfig
from pathseg.train.metrics.pixel import Scores
from pathseg.train.report.sweeps import Repeat, Spread, block_label, described, repeats, seeds_label, sweeps, twins
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.split_scores import PartScores

DATA = {
    "store": "/s.zarr", "key": "k", "dataset": "glas", "classes": ["background", "gland"], "ignore": None,
    "model": {"name": "mini", "trained": True, "condition": "ssl"}, "mpp": 0.62, "size": [256, 512], "layout": "grid",
    "preprocessing": "none", "channels": {"4": 1}, "test_split": "testB", "images": {"train": ["a"], "val": ["b"]},
}  # fmt: skip


def finished(*, name: str = "", data: dict[str, Any] | None = None, val: float = 0.5, **settings: Any) -> FinishedRun:
    head = dataclasses.asdict(HeadConfig(**settings))
    head["blocks"] = list(head["blocks"])  # as JSON gives it back
    scores = Scores.from_dict({"pixels": 4, "accuracy": 0.9, "dice": 0.8, "miou": 0.7, "precision": None,
                               "recall": None, "f1": 0.6, "classes": []})  # fmt: skip
    part = PartScores(1, scores, "background", scores, {"c": scores})
    history = tuple({"epoch": e, "val_dice": val - 0.1 * (e == 1), "val_miou": None} for e in (1, 2))
    config = {"head": head, "data": {**DATA, **(data or {})}, "parameters": 1}
    folder = RunFolder(name or "-".join(f"{key}{value}" for key, value in settings.items()) or "default")
    return FinishedRun(folder, config, history, 2, 2, 1.0, "testB", {"testB": part})


def values(runs: list[FinishedRun]) -> dict[str, list[Any]]:
    return {sweep.axis: [point.value for point in sweep.points] for sweep in sweeps(runs)}


def test_one_run_is_no_sweep():
    assert sweeps([finished()]) == () and repeats([finished()]) == ()


def test_seeds_alone_are_no_sweep():
    assert sweeps([finished(seed=0), finished(seed=1)]) == ()


def test_timesteps_go_upwards():
    assert values([finished(t=t) for t in (200, 50, 10)]) == {"t": [10, 50, 200]}


def test_single_blocks_come_before_groups_and_all_comes_last():
    chosen = [BLOCKS, (4, 5, 6), (10,), (2,)]
    assert values([finished(blocks=blocks) for blocks in chosen]) == {"blocks": [(2,), (10,), (4, 5, 6), BLOCKS]}


def test_the_highest_learning_rate_comes_first():
    assert values([finished(lr=lr) for lr in (1e-5, 1e-3, 1e-4)]) == {"lr": [1e-3, 1e-4, 1e-5]}


def test_runs_that_differ_in_two_settings_are_no_sweep():
    assert sweeps([finished(t=10), finished(lr=1e-3)]) == ()


def test_a_grid_of_two_settings_is_a_sweep_along_each_line():
    found = sweeps([finished(t=t, lr=lr) for t in (10, 50) for lr in (1e-3, 1e-4)])
    assert [sweep.axis for sweep in found] == ["t", "t", "lr", "lr"]


@pytest.mark.parametrize("other", [{"epochs": 3}, {"split_seed": 1}, {"precision": "bfloat16"}, {"augment": "flips"}])
def test_another_setting_keeps_runs_apart(other):
    assert sweeps([finished(t=10), finished(t=50, **other)]) == ()


@pytest.mark.parametrize("other", [{"key": "other"}, {"images": {"train": ["x"]}}, {"test_split": "testA"}])
def test_other_features_or_images_keep_runs_apart(other):
    assert sweeps([finished(t=10), finished(t=50, data=other)]) == ()


def test_a_store_that_was_moved_is_the_same_store():
    assert values([finished(t=10), finished(t=50, data={"store": "/moved.zarr"})]) == {"t": [10, 50]}


def test_without_a_key_the_address_of_the_store_counts():
    moved = [finished(t=10, data={"key": None}), finished(t=50, data={"key": None, "store": "/other.zarr"})]
    assert sweeps(moved) == ()


def test_channels_differ_with_the_blocks_and_do_not_count():
    assert values([finished(blocks=(4,)), finished(blocks=(5,), data={"channels": {"5": 2}})]) == {
        "blocks": [(4,), (5,)]
    }


def test_a_setting_that_an_older_run_does_not_name_has_its_default():
    older = finished(t=10)
    del older.head["patience"]
    assert values([older, finished(t=50)]) == {"t": [10, 50]}


def test_seeds_of_a_point_are_in_order():
    (sweep,) = sweeps([finished(t=t, seed=seed) for t in (10, 50) for seed in (2, 0, 1)])
    assert [point.seeds for point in sweep.points] == [(0, 1, 2)] * 2


def test_the_sweep_with_the_most_values_comes_first():
    few = [finished(t=t, lr=1e-3) for t in (10, 50)]
    many = [finished(t=t) for t in (10, 50, 100)]
    assert [len(sweep.points) for sweep in sweeps([*few, *many]) if sweep.axis == "t"] == [3, 2]


def test_the_same_run_under_another_name_counts_once():
    runs = [finished(name="b"), finished(name="a"), finished(name="c", seed=1)]
    assert twins(runs) == (("b", "a"),)
    ((_, repeat),) = repeats(runs)
    assert [run.name for run in repeat.runs] == ["a", "c"]


@pytest.mark.parametrize("rule", [{"connectivity": "4"}, {"min_object_px": 50}])
def test_objects_counted_otherwise_are_no_other_training(rule):
    """A repeat is no second seed and no second setting, whatever its name; the run with the default rules is shown."""
    runs = [finished(name="a", **rule), finished(name="b"), finished(name="c", seed=1)]
    assert twins(runs) == (("a", "b"),)
    ((words, repeat),) = repeats(runs)
    assert [run.name for run in repeat.runs] == ["b", "c"]
    assert words == described(finished(), leave_out=(), place=False)


def test_a_sweep_may_count_objects_in_two_ways():
    assert values([finished(t=10), finished(t=50, connectivity="4")]) == {"t": [10, 50]}


def test_repeats_differ_by_seed_only():
    found = repeats([finished(seed=0), finished(seed=1), finished(seed=0, t=10)])
    assert [repeat.seeds for _, repeat in found] == [(0, 1)]


def test_the_deviation_is_that_of_the_sample():
    spread = Spread.of([0.1, 0.2, 0.6])
    assert (spread.mean, spread.count) == (pytest.approx(0.3), 3)
    assert spread.deviation == pytest.approx((0.14 / 2) ** 0.5)  # squares 0.04 + 0.01 + 0.09, divisor n - 1


def test_one_value_has_no_deviation():
    assert Spread.of([0.5, None]) == Spread(0.5, None, 1)


def test_no_value_has_no_spread():
    assert Spread.of([None, None]) is None


def test_validation_scores_are_those_of_the_epoch_that_was_kept():
    assert Repeat((finished(val=0.7),)).scores("val", "dice") == (0.7,)


def test_test_scores_are_those_of_the_quoted_split():
    assert [Repeat((finished(),)).scores("test", metric)[0] for metric in ("accuracy", "dice", "miou", "f1")] == [
        0.9, 0.8, 0.7, 0.6,
    ]  # fmt: skip


def test_a_run_without_history_has_no_validation_score():
    assert Repeat((dataclasses.replace(finished(), history=()),)).spread("val", "dice") is None


def test_the_best_point_has_the_highest_mean_validation_dice():
    scores = {10: (0.9, 0.1), 50: (0.6, 0.6)}
    (sweep,) = sweeps([finished(t=t, seed=s, val=val) for t, both in scores.items() for s, val in enumerate(both)])
    assert statistics.fmean(scores[50]) > statistics.fmean(scores[10]) and sweep.best.value == 50


def test_what_is_fixed_leaves_out_what_varies():
    (sweep,) = sweeps([finished(t=t, blocks=(4, 5, 6), batch_size=2) for t in (10, 50)])
    assert sweep.fixed == (
        "model mini, condition ssl, blocks 4-6, head fcn, learning rate 0.0001, 20 epochs, batch size 2"
    )


def test_an_untrained_model_is_called_so():
    model = {"name": "mini", "trained": False, "condition": "none"}
    words = described(finished(data={"model": model}), leave_out=(), place=False)
    assert words[:2] == ("model mini (untrained)", "condition none")


def test_with_several_stores_a_sweep_names_its_own():
    runs = [finished(t=10), finished(t=50), finished(t=50, data={"key": "other"})]
    assert sweeps(runs)[0].fixed.endswith("store /s.zarr with 1 training image of 512x256 px")


def test_all_thirteen_blocks_are_called_all():
    assert (block_label(BLOCKS), block_label((4, 5, 6))) == ("all", "4-6")


def test_unequal_numbers_of_seeds_are_a_range():
    (sweep,) = sweeps([finished(t=10), finished(t=50), finished(t=50, seed=1)])
    assert seeds_label(sweep.points) == "1–2 seeds" and seeds_label(sweep.points[:1]) == "1 seed"
