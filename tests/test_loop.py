import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pathseg.train import loop
from pathseg.train.config import HeadConfig
from pathseg.train.heads import HEADS
from pathseg.train.loop import class_weights, train_heads
from pathseg.train.runs import RunFolder

CONFIG = HeadConfig(blocks=(4, 9), lr=1e-3, epochs=3)
QUICK = HeadConfig(blocks=(4,), head="linear", lr=1e-2, epochs=2)


def train(store, folder, config=CONFIG, **more):
    """One head alone; its run."""
    (trainee,) = train_heads(store, [(config, RunFolder(folder))], **more)
    assert trainee.failure is None
    return trainee.run


def weights(run):
    return load_file(run.weights)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_head_learns_what_the_features_say(toy_store, tmp_path):
    part = train(toy_store, tmp_path / "run").read_metrics()["splits"]["test"]
    assert part["scores"]["dice"] > 0.9 > part["constant"]["scores"]["dice"]


@pytest.mark.parametrize("head", list(HEADS))
def test_the_same_seed_gives_the_same_head(toy_store, tmp_path, head):
    config = HeadConfig(blocks=(4,), head=head, epochs=1, seed=3)
    a, b = (train(toy_store, tmp_path / name, config) for name in "ab")
    assert same(weights(a), weights(b))


def test_another_seed_gives_another_head(toy_store, tmp_path):
    a, b = (
        train(toy_store, tmp_path / str(seed), HeadConfig(blocks=(4,), head="linear", seed=seed)) for seed in (0, 1)
    )
    assert not same(weights(a), weights(b))


def test_training_leaves_the_global_generator_alone(toy_store, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train(toy_store, tmp_path / "run", QUICK)
    assert torch.equal(torch.rand(1), expected)


def test_the_run_folder_holds_all_that_was_promised_and_no_more(toy_store, tmp_path):
    run = train(toy_store, tmp_path / "run")
    assert {path.name for path in run.path.iterdir()} == {
        "config.json", "head.safetensors", "history.jsonl", "metrics.json", "predictions"
    }  # fmt: skip
    assert [line["epoch"] for line in run.read_history()] == [1, 2, 3]
    assert HeadConfig.from_dict(run.read_config()["head"]) == CONFIG
    assert run.read_prediction("test_4").shape == (256, 512)


def test_the_metrics_are_those_of_the_predictions(toy_store, tmp_path):
    run = train(toy_store, tmp_path / "run")
    right = run.read_prediction("test_4") == toy_store.mask(4)
    assert run.read_metrics()["splits"]["test"]["scores"]["accuracy"] == pytest.approx(right.mean())


def test_the_best_epoch_is_kept(toy_store, tmp_path):
    run = train(toy_store, tmp_path / "run")
    dices = [line["val_dice"] for line in run.read_history()]
    assert run.read_metrics()["best_epoch"] == 1 + int(np.argmax(dices))


SWEEP = [
    HeadConfig(blocks=(4,), epochs=2, lr=1e-3),
    HeadConfig(blocks=(4, 9), epochs=1, seed=5),
    HeadConfig(blocks=(0,), epochs=2, head="linear", lr=1e-2, augment="flips"),
]


def test_heads_trained_together_come_out_as_if_trained_alone(toy_store, tmp_path):
    runs = [(config, RunFolder(tmp_path / f"together{i}")) for i, config in enumerate(SWEEP)]
    train_heads(toy_store, runs)
    for (config, together), number in zip(runs, range(3), strict=True):
        alone = train(toy_store, tmp_path / f"alone{number}", config)
        assert same(weights(together), weights(alone))
        assert together.read_metrics()["splits"] == alone.read_metrics()["splits"]


def test_an_image_is_read_once_an_epoch_for_all_heads(toy_store, tmp_path, monkeypatch):
    read, seen = toy_store.read, []
    monkeypatch.setattr(toy_store, "read", lambda index, **kw: seen.append(index) or read(index, **kw))
    runs = [(HeadConfig(blocks=(b,), head="linear", epochs=2), RunFolder(tmp_path / str(b))) for b in (0, 4, 5, 9)]
    train_heads(toy_store, runs, memory_bytes=0)
    assert sorted(seen) == sorted([*range(4)] * 2 + [4])  # train and validation in each epoch, then the test image


def cut_after(store, folder, config, epochs, monkeypatch):
    """Train until an epoch has ended, then be interrupted in the middle of the next one."""
    step, calls = loop._step, []

    def interrupted(*arguments, epoch, **more):
        if epoch > epochs and len(calls) > 0:
            raise KeyboardInterrupt
        calls.append(epoch > epochs) if epoch > epochs else None
        return step(*arguments, epoch=epoch, **more)

    monkeypatch.setattr(loop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_heads(store, [(config, RunFolder(folder))])
    monkeypatch.setattr(loop, "_step", step)


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(toy_store, tmp_path, monkeypatch, epochs):
    config = HeadConfig(blocks=(4, 9), head="linear", lr=1e-2, epochs=3, augment="flips")
    whole = train(toy_store, tmp_path / "whole", config)
    cut_after(toy_store, tmp_path / "cut", config, epochs, monkeypatch)
    again = train(toy_store, tmp_path / "cut", config)
    assert same(weights(whole), weights(again))
    assert whole.read_metrics()["splits"] == again.read_metrics()["splits"]
    losses = [[line["train_loss"] for line in run.read_history()] for run in (whole, again)]
    assert losses[0] == losses[1]


def test_an_unfinished_run_of_other_settings_is_not_taken_up(toy_store, tmp_path, monkeypatch):
    cut_after(toy_store, tmp_path / "cut", QUICK, 1, monkeypatch)
    with pytest.raises(ValueError, match="unfinished run of other settings"):
        train(toy_store, tmp_path / "cut", HeadConfig(blocks=(4,), head="linear", lr=1e-3, epochs=2))


def test_patience_ends_a_head_that_no_longer_gets_better(toy_store, tmp_path):
    config = HeadConfig(blocks=(4,), head="linear", lr=1e-9, epochs=20, patience=2)
    metrics = train(toy_store, tmp_path / "run", config).read_metrics()
    assert metrics["epochs"] < 20
    assert metrics["epochs"] == metrics["best_epoch"] + 2


def test_a_head_that_diverges_is_given_up_and_the_others_go_on(toy_store, tmp_path):
    wild = HeadConfig(blocks=(4,), head="linear", lr=1e37, epochs=5)
    trained = train_heads(toy_store, [(wild, RunFolder(tmp_path / "wild")), (QUICK, RunFolder(tmp_path / "tame"))])
    assert "training diverged; pass a smaller --lr" in trained[0].failure
    assert not trained[0].run.finished
    assert same(weights(trained[1].run), weights(train(toy_store, tmp_path / "alone", QUICK)))


def test_mixed_precision_learns_as_well(toy_store, tmp_path):
    config = HeadConfig(blocks=(4, 9), lr=1e-3, epochs=3, precision="bfloat16")
    assert train(toy_store, tmp_path / "run", config).read_metrics()["splits"]["test"]["scores"]["dice"] > 0.9


def test_class_weights_are_the_papers():
    # 1 - N_c / N by hand for 10, 30 and 60 of 100 pixels; a class without pixels counts nowhere
    assert class_weights(np.array([10, 30, 60, 0])).tolist() == pytest.approx([0.9, 0.7, 0.4, 0.0])
