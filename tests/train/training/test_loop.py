import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pathseg.store.contents import ImageEntry
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.data.splits import split_images
from pathseg.train.heads.registry import HEADS
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training import loop
from pathseg.train.training.checkpoint import seeded
from pathseg.train.training.loop import class_weights, train_heads

CPU = torch.device("cpu")
CONFIG = HeadConfig(blocks=(4, 9), lr=1e-3, epochs=3)
QUICK = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=2)


def train(store, folder, config=CONFIG, **more):
    """One head alone; its run."""
    (state,) = train_heads(store, [(config, RunFolder(folder))], **more)
    assert state.failure is None
    return state.run


def weights(run):
    return load_file(run.weights)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy_contents, toy_key, fill_store):
    """A store of five images of one patch, the last one to test, and the run of the paper's head on it."""
    folder = tmp_path_factory.mktemp("trained")
    store = fill_store(StoreWriter(folder / "toy.zarr", toy_contents(key=toy_key(size=(256, 256)))))
    return store, train(store, folder / "run")


def test_a_head_learns_what_the_features_say(trained):
    split = trained[1].read_metrics().splits["test"]
    assert split.scores.dice > 0.9 > split.constant.scores.dice


def test_a_head_learns_as_much_from_signed_bytes_as_from_float16(tmp_path, toy_contents, toy_key, fill_store):
    dice = {}
    for packing in ("none", "int8"):
        key = toy_key(size=(256, 256), packing=packing)
        store = fill_store(StoreWriter(tmp_path / f"{packing}.zarr", toy_contents(key=key)))
        metrics = train(store, tmp_path / packing, dataclasses.replace(QUICK, lr=0.05, epochs=8)).read_metrics()
        dice[packing] = metrics.splits["test"].scores.dice
        # 3 images to train on, 1 to validate, 1 to test, each read once: 6 x 16 x 16 values, and the mask
        value_bytes = 2 * 6 * 16 * 16 if packing == "none" else 6 * 16 * 16 + 6 * 4
        assert metrics.bytes_read == 5 * (value_bytes + 256 * 256)
    assert dice["none"] > 0.9
    assert dice["int8"] == pytest.approx(dice["none"], abs=0.01)


@pytest.mark.usefixtures("two_networks")
@pytest.mark.parametrize(
    "head", [pytest.param(name, marks=pytest.mark.slow) if name in ("fcn", "scalar-mix") else name for name in HEADS]
)
def test_the_same_seed_gives_the_same_head(one_patch_store, tmp_path, head):
    few = {"pixels": 200} if head == "pixel-ensemble" else {}
    config = HeadConfig(blocks=(4,), head_type=head, epochs=1, seed=3, **few)
    a, b = (train(one_patch_store, tmp_path / name, config) for name in "ab")
    assert same(weights(a), weights(b))


def test_another_seed_gives_another_head(toy_store, tmp_path):
    a, b = (
        train(toy_store, tmp_path / str(seed), HeadConfig(blocks=(4,), head_type="linear", epochs=1, seed=seed))
        for seed in (0, 1)
    )
    assert not same(weights(a), weights(b))


def test_seeding_gives_the_numbers_of_manual_seed_and_restores_the_state():
    torch.manual_seed(7)
    expected, state = torch.rand(3), torch.random.get_rng_state()
    with pytest.raises(KeyError), seeded(CPU, 7):
        assert torch.equal(torch.rand(3), expected)
        raise KeyError
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_are_flushed_to_the_disk_before_the_run_is_finished(toy_store, tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def record(descriptor):
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    train(toy_store, tmp_path / "run", dataclasses.replace(QUICK, epochs=1))
    weights = ["head-new.safetensors", "last.safetensors", "head-last.safetensors"]
    names = [name.removesuffix(".partial") for name in flushed]
    assert [name for name in names if name in weights] == weights
    assert names[-1] == "metrics.json"


def test_training_leaves_the_global_generator_alone(toy_store, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train(toy_store, tmp_path / "run", QUICK)
    assert torch.equal(torch.rand(1), expected)


def test_the_run_folder_holds_every_file_of_a_finished_run_and_no_other(trained):
    _, run = trained
    assert {path.name for path in run.path.iterdir()} == {
        "config.json", "head.safetensors", "head-last.safetensors", "history.jsonl", "checksums.json", "metrics.json",
        "predictions",
    }  # fmt: skip
    assert [epoch.epoch for epoch in run.read_history()] == [1, 2, 3]
    assert run.read_config().settings == CONFIG
    assert run.read_prediction("test_4").shape == (256, 256)


def test_the_metrics_are_those_of_the_predictions(trained):
    store, run = trained
    right = run.read_prediction("test_4") == store.mask(4)
    assert run.read_metrics().splits["test"].scores.accuracy == pytest.approx(right.mean())


def test_the_best_epoch_is_kept(trained):
    dices = [epoch.val_dice for epoch in trained[1].read_history()]
    assert trained[1].read_metrics().best_epoch == 1 + int(np.argmax(dices))


SWEEP = [
    HeadConfig(blocks=(4,), epochs=1, lr=1e-3),
    HeadConfig(blocks=(4, 9), epochs=2, head_type="linear", seed=5),
    HeadConfig(blocks=(0,), epochs=2, head_type="linear", lr=1e-2, augment="flips"),
]


def test_heads_trained_together_come_out_as_if_trained_alone(one_patch_store, tmp_path):
    runs = [(config, RunFolder(tmp_path / f"together{i}")) for i, config in enumerate(SWEEP)]
    train_heads(one_patch_store, runs, without=(1,))
    for (config, together), number in zip(runs, range(3), strict=True):
        alone = train(one_patch_store, tmp_path / f"alone{number}", config, without=(1,))
        assert same(weights(together), weights(alone))
        assert together.read_metrics().splits == alone.read_metrics().splits


@pytest.mark.parametrize(
    ("name", "values"), [("batch_size", (1, 2)), ("val_fraction", (0.15, 0.3)), ("split_seed", (0, 3))]
)
def test_heads_that_differ_in_a_shared_setting_are_refused(toy_store, tmp_path, name, values):
    runs = [(dataclasses.replace(QUICK, **{name: v}), RunFolder(tmp_path / str(v))) for v in values]
    with pytest.raises(ValueError, match=f"{name} must be the same .* {values[0]} and {values[1]}"):
        train_heads(toy_store, runs)


def test_an_image_is_read_once_an_epoch_for_all_heads(toy_store, tmp_path, monkeypatch):
    read, seen = toy_store.read_stored, []
    monkeypatch.setattr(toy_store, "read_stored", lambda index, **kw: seen.append(index) or read(index, **kw))
    runs = [(HeadConfig(blocks=(b,), head_type="linear", epochs=2), RunFolder(tmp_path / str(b))) for b in (0, 4, 5, 9)]
    train_heads(toy_store, runs, memory_bytes=0)
    (val,) = split_images(toy_store, val_fraction=0.15, seed=0).val
    # train and validation in each epoch, then validation, to choose how objects are post-processed, and test
    assert sorted(seen[:8]) == sorted([*range(4)] * 2)
    assert seen[8:] == [val, 4]


def cut_after(store, folder, config, epochs, monkeypatch):
    """Train until an epoch has ended, then be interrupted in the middle of the next one."""
    step, calls = loop._train_step, []

    def interrupted(*arguments, epoch, **more):
        if epoch > epochs and len(calls) > 0:
            raise KeyboardInterrupt
        calls.append(epoch > epochs) if epoch > epochs else None
        return step(*arguments, epoch=epoch, **more)

    monkeypatch.setattr(loop, "_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_heads(store, [(config, RunFolder(folder))])
    monkeypatch.setattr(loop, "_train_step", step)


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(toy_store, tmp_path, monkeypatch, epochs):
    config = HeadConfig(blocks=(4, 9), head_type="linear", lr=1e-2, epochs=3, augment="flips")
    whole = train(toy_store, tmp_path / "whole", config)
    cut_after(toy_store, tmp_path / "cut", config, epochs, monkeypatch)
    again = train(toy_store, tmp_path / "cut", config)
    assert same(weights(whole), weights(again))
    assert whole.read_metrics().splits == again.read_metrics().splits
    losses = [[epoch.train_loss for epoch in run.read_history()] for run in (whole, again)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["last.safetensors", "head.safetensors"])
def test_a_changed_bit_in_what_a_run_goes_on_from_is_named(toy_store, tmp_path, monkeypatch, name):
    config = HeadConfig(blocks=(4,), head_type="linear", lr=1e-30, epochs=3)  # no epoch is better than the first
    cut_after(toy_store, tmp_path / "cut", config, 2, monkeypatch)
    content = bytearray((tmp_path / "cut" / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / "cut" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is .*damaged.*delete"):
        train(toy_store, tmp_path / "cut", config)


@pytest.mark.parametrize(("name", "best"), [("save_last", 1), ("keep_best", 2)])
def test_a_kill_while_a_new_best_epoch_is_saved_loses_no_weights(toy_store, tmp_path, monkeypatch, name, best):
    """Killed before or after the training state; trained again, the epoch may come out below the best before."""
    config = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=2)
    function, validate = getattr(loop, name), loop.validate

    def with_dice(*by_epoch):
        def validated(training, *rest):
            scored = list(validate(training, *rest))
            return [(loss, SimpleNamespace(accuracy=None, miou=None, f1=None, dice=by_epoch[training[0].epoch]))
                    for loss, _ in scored]  # fmt: skip

        return validated

    def killed(state):
        if state.epoch == 2:
            raise KeyboardInterrupt
        function(state)

    monkeypatch.setattr(loop, name, killed)
    monkeypatch.setattr(loop, "validate", with_dice(0.5, 0.6))
    with pytest.raises(KeyboardInterrupt):
        train_heads(toy_store, [(config, RunFolder(tmp_path / "run"))])
    monkeypatch.setattr(loop, name, function)
    monkeypatch.setattr(loop, "validate", with_dice(0.5, 0.4))
    run = train(toy_store, tmp_path / "run", config)
    assert run.read_metrics().best_epoch == best
    assert same(weights(run), load_file(run.last_weights)) == (best == 2)
    assert not run.new_weights.exists() and run.new_weights.name not in (run.path / "checksums.json").read_text()


def test_a_run_that_0_1_0_left_unfinished_goes_on(toy_store, tmp_path, monkeypatch):
    """Its training state held the progress as plain JSON, without checksums."""
    whole = train(toy_store, tmp_path / "whole", QUICK)
    cut_after(toy_store, tmp_path / "cut", QUICK, 1, monkeypatch)
    last = tmp_path / "cut" / "last.safetensors"
    with safe_open(last, framework="pt") as file:
        body = json.loads(file.metadata()["about"])["body"]
    about = {name: body[name] for name in ("epoch", "best", "best_epoch", "seconds")}
    save_file(load_file(last), last, metadata={"about": json.dumps(about)})
    assert same(weights(whole), weights(train(toy_store, tmp_path / "cut", QUICK)))


def test_an_unfinished_run_of_other_settings_is_not_taken_up(toy_store, tmp_path, monkeypatch):
    cut_after(toy_store, tmp_path / "cut", QUICK, 1, monkeypatch)
    with pytest.raises(ValueError, match="unfinished run of other settings"):
        train(toy_store, tmp_path / "cut", HeadConfig(blocks=(4,), head_type="linear", lr=1e-3, epochs=2))


def test_patience_ends_a_head_that_no_longer_gets_better(toy_store, tmp_path):
    config = HeadConfig(blocks=(4,), head_type="linear", lr=1e-9, epochs=20, patience=2)
    metrics = train(toy_store, tmp_path / "run", config).read_metrics()
    assert metrics.epochs < 20
    assert metrics.epochs == metrics.best_epoch + 2


def test_the_last_weights_are_kept_beside_the_best(toy_store, tmp_path):
    # an epoch too many at a rate that spoils the head: what came before it is the best, and both can be looked at
    run = train(toy_store, tmp_path / "run", HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=3))
    best = run.read_metrics().best_epoch
    same_as_best = same(load_file(run.last_weights), weights(run))
    assert same_as_best == (best == 3)
    two = train(toy_store, tmp_path / "two", HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=2))
    assert not same(load_file(run.last_weights), load_file(two.last_weights))


@pytest.mark.parametrize(("head", "lr"), [("fcn", 1e20), ("linear", 1e37)])
def test_a_head_that_the_last_step_ruins_is_given_up_too(one_patch_store, tmp_path, head, lr):
    config = HeadConfig(blocks=(4,), head_type=head, lr=lr, epochs=1)
    (state,) = train_heads(one_patch_store, [(config, RunFolder(tmp_path / "run"))], without=(1,))
    assert "training diverged; pass a smaller --lr" in state.failure
    assert not state.run.finished


def test_nothing_is_read_any_more_when_every_head_was_given_up(toy_store, tmp_path, monkeypatch):
    seen, read = [], toy_store.read_stored
    monkeypatch.setattr(toy_store, "read_stored", lambda index, **kw: seen.append(index) or read(index, **kw))
    wild = HeadConfig(blocks=(4,), head_type="linear", lr=1e37, epochs=50)
    train_heads(toy_store, [(wild, RunFolder(tmp_path / "wild"))], memory_bytes=0)
    assert len(seen) <= 5  # one epoch at the most; never the test image
    assert 4 not in seen


def test_heads_are_trained_in_float32_where_the_process_allows_tf32(one_patch_store, tmp_path):
    seen = set()
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda *_: seen.add((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))
    )
    try:
        train(one_patch_store, tmp_path / "run", QUICK)
    finally:
        hook.remove()
    assert seen == {("ieee", "ieee")}


def test_a_head_that_diverges_is_given_up_and_the_others_go_on(toy_store, tmp_path):
    wild = HeadConfig(blocks=(4,), head_type="linear", lr=1e37, epochs=5)
    trained = train_heads(toy_store, [(wild, RunFolder(tmp_path / "wild")), (QUICK, RunFolder(tmp_path / "tame"))])
    assert "training diverged; pass a smaller --lr" in trained[0].failure
    assert not trained[0].run.finished
    assert same(weights(trained[1].run), weights(train(toy_store, tmp_path / "alone", QUICK)))


@pytest.mark.parametrize(
    "config",
    [
        HeadConfig(blocks=(4, 9), head_type="linear", lr=0.1, epochs=8, precision="bfloat16"),
        pytest.param(dataclasses.replace(CONFIG, precision="bfloat16"), marks=pytest.mark.slow),  # minutes without AMX
    ],
    ids=lambda config: config.head_type,
)
def test_mixed_precision_learns_as_well(toy_store, tmp_path, config):
    assert train(toy_store, tmp_path / "run", config).read_metrics().splits["test"].scores.dice > 0.9


def test_class_weights_are_the_papers():
    # 1 - N_c / N by hand for 10, 30 and 60 of 100 pixels and none; 0 for "don't care"
    assert class_weights(np.array([10, 30, 60, 0]), None).tolist() == pytest.approx([0.9, 0.7, 0.4, 1.0])
    assert class_weights(np.array([10, 30, 60, 0]), 255).tolist() == pytest.approx([0.9, 0.7, 0.4, 1.0])
    assert class_weights(np.array([0, 30, 60, 10]), 0).tolist() == pytest.approx([0.0, 0.7, 0.4, 0.9])


@pytest.fixture
def view_store(tmp_path, toy_contents, toy_key, fill_store):
    """Three training patches of three views, of a region each; a validation and a test patch of one."""
    images = [
        ImageEntry(f"p{patch}_v{view}", "train", 256, 256, f"r{patch}", f"p{patch}", view)
        for patch in range(3)
        for view in range(3)
    ]
    images += [ImageEntry(f"{split}_v0", split, 256, 256, split, split, 0) for split in ("val", "test")]
    return fill_store(
        StoreWriter(tmp_path / "views.zarr", toy_contents(key=toy_key(size=(256, 256)), images=tuple(images)))
    )


def views_read(store, folder, config, monkeypatch):
    """What each epoch of a run reads, in order."""
    read, seen = store.read_stored, []
    monkeypatch.setattr(store, "read_stored", lambda index, **kw: seen.append(store.ids[index]) or read(index, **kw))
    train(store, folder, config, memory_bytes=0)
    return [seen[start : start + 4] for start in range(0, 4 * config.epochs, 4)], seen[4 * config.epochs :]


def test_an_epoch_reads_one_view_of_each_patch_then_the_centre_of_the_validation_patch(
    view_store, tmp_path, monkeypatch
):
    config = HeadConfig(blocks=(4,), head_type="linear", epochs=6)
    epochs, rest = views_read(view_store, tmp_path / "run", config, monkeypatch)
    for epoch in epochs:
        assert sorted(name.split("_")[0] for name in epoch[:3]) == ["p0", "p1", "p2"]
        assert epoch[3] == "val_v0"
    assert rest == ["val_v0", "test_v0"]  # validation again, to choose how objects are post-processed
    assert len({name for epoch in epochs for name in epoch[:3]}) > 3


def test_heads_of_one_split_seed_see_the_same_views_in_the_same_order(view_store, tmp_path, monkeypatch):
    runs = [
        views_read(view_store, tmp_path / str(number), config, monkeypatch)
        for number, config in enumerate(
            HeadConfig(blocks=(4,), head_type="linear", epochs=4, seed=seed, split_seed=split_seed)
            for seed, split_seed in ((0, 0), (1, 0), (0, 1))
        )
    ]
    assert runs[0] == runs[1] != runs[2]


def test_a_run_on_views_that_was_cut_off_ends_as_if_it_had_not_been(view_store, tmp_path, monkeypatch):
    config = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=3)
    whole = train(view_store, tmp_path / "whole", config)
    cut_after(view_store, tmp_path / "cut", config, 1, monkeypatch)
    assert same(weights(whole), weights(train(view_store, tmp_path / "cut", config)))


def test_class_weights_count_all_views_that_training_draws_from(view_store, tmp_path):
    config = HeadConfig(blocks=(4,), head_type="linear", epochs=1, class_weights="balanced")
    (state,) = train_heads(view_store, [(config, RunFolder(tmp_path / "run"))])
    glands = sum(int((view_store.mask(index) == 1).sum()) for index in range(9))
    share = glands / (9 * 256 * 256)
    assert state.class_weights.tolist() == pytest.approx([share, 1 - share])  # 1 - N_c / N of two classes


def test_metrics_name_what_an_image_was_cut_from(view_store, toy_store, tmp_path):
    config = HeadConfig(blocks=(4,), head_type="linear", epochs=1)
    for store, expected in ((view_store, [("test_v0", "test")]), (toy_store, [("test_4", None)])):
        run = train(store, tmp_path / store.ids[0], config)
        images = run.read_metrics().splits["test"].per_image
        assert [(image.id, image.source) for image in images] == expected


def test_an_unfinished_run_on_other_images_is_not_taken_up(toy_store, tmp_path):
    def cut(run, epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_heads(toy_store, [(QUICK, RunFolder(tmp_path / "run"))], without=(0,), on_epoch=cut)
    with pytest.raises(ValueError, match="begun on other images"):
        train(toy_store, tmp_path / "run", QUICK)
    assert train(toy_store, tmp_path / "run", QUICK, without=(0,)).finished
