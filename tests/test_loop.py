import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pathseg.train.config import HeadConfig
from pathseg.train.heads import HEADS
from pathseg.train.loop import class_weights, train_head, train_or_keep
from pathseg.train.runs import RunFolder

CONFIG = HeadConfig(blocks=(4, 9), lr=1e-3, epochs=3)


def test_a_head_learns_what_the_features_say(toy_store, tmp_path):
    metrics = train_head(toy_store, CONFIG, RunFolder(tmp_path / "run"))
    part = metrics["splits"]["test"]
    assert part["scores"]["dice"] > 0.9 > part["constant"]["scores"]["dice"]


@pytest.mark.parametrize("head", list(HEADS))
def test_the_same_seed_gives_the_same_head(toy_store, tmp_path, head):
    config = HeadConfig(blocks=(4,), head=head, epochs=1, seed=3)
    for name in ("a", "b"):
        train_head(toy_store, config, RunFolder(tmp_path / name))
    a, b = (load_file(tmp_path / name / "head.safetensors") for name in ("a", "b"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_training_leaves_the_global_generator_alone(toy_store, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_head(toy_store, HeadConfig(blocks=(4,), epochs=1), RunFolder(tmp_path / "run"))
    assert torch.equal(torch.rand(1), expected)


def test_the_run_folder_holds_all_that_was_promised(toy_store, tmp_path):
    run = RunFolder(tmp_path / "run")
    train_head(toy_store, CONFIG, run)
    assert {path.name for path in run.path.iterdir()} == {
        "config.json",
        "head.safetensors",
        "history.jsonl",
        "metrics.json",
        "predictions",
    }
    assert [line["epoch"] for line in run.read_history()] == [1, 2, 3]
    assert HeadConfig.from_dict(run.read_config()["head"]) == CONFIG
    assert run.read_prediction("test_4").shape == (256, 512)


def test_the_metrics_are_those_of_the_predictions(toy_store, tmp_path):
    run = RunFolder(tmp_path / "run")
    metrics = train_head(toy_store, CONFIG, run)
    right = run.read_prediction("test_4") == toy_store.mask(4)
    assert metrics["splits"]["test"]["scores"]["accuracy"] == pytest.approx(right.mean())


def test_the_best_epoch_is_kept(toy_store, tmp_path):
    run = RunFolder(tmp_path / "run")
    metrics = train_head(toy_store, CONFIG, run)
    dices = [line["val_dice"] for line in run.read_history()]
    assert metrics["best_epoch"] == 1 + int(np.argmax(dices))


def test_a_finished_run_is_not_trained_again(toy_store, tmp_path):
    first = train_or_keep(toy_store, CONFIG, tmp_path / "run")
    written = (tmp_path / "run" / "head.safetensors").stat().st_mtime_ns
    assert train_or_keep(toy_store, CONFIG, tmp_path / "run") == json.loads(json.dumps(first))
    assert (tmp_path / "run" / "head.safetensors").stat().st_mtime_ns == written


def test_a_finished_run_of_other_settings_is_not_overwritten(toy_store, tmp_path):
    train_or_keep(toy_store, CONFIG, tmp_path / "run")
    with pytest.raises(ValueError, match=r"lr is 0.001 there, 0.01 asked for; pass another --name"):
        train_or_keep(toy_store, HeadConfig(blocks=(4, 9), lr=1e-2, epochs=3), tmp_path / "run")


def test_divergence_ends_with_a_clear_message(toy_store, tmp_path):
    with pytest.raises(ValueError, match="training diverged; pass a smaller --lr"):
        train_head(toy_store, HeadConfig(blocks=(4,), head="linear", lr=1e37, epochs=5), RunFolder(tmp_path / "run"))


def test_class_weights_are_the_papers():
    # 1 - N_c / N by hand for 10, 30 and 60 of 100 pixels; a class without pixels counts nowhere
    assert class_weights(np.array([10, 30, 60, 0])).tolist() == pytest.approx([0.9, 0.7, 0.4, 0.0])
