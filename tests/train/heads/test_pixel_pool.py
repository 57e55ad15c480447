import copy

import numpy as np
import pytest
import torch

from pathseg.store.contents import Contents
from pathseg.store.grid import PatchGrid
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.heads import pixel_ensemble as pixels
from pathseg.train.heads import pixel_pool as pools
from pathseg.train.heads.pixel_ensemble import PixelEnsemble
from pathseg.train.heads.pixel_pool import BATCH_PX, FREE_EPOCHS, PixelPool, judge, learn_from
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

CONFIG = HeadConfig(blocks=(4,), head="pixel-ensemble", epochs=2, pixels=200)


def filled(count=200, ignore=None, seed=0):
    """A pool of the pixels of one image, in which each pixel's only feature is its class."""
    mask = torch.zeros(1, 256, 256, dtype=torch.uint8)
    mask[:, :, 128:] = 1
    mask[:, 200:] = 255
    maps = {4: mask[0, None, None, None].half()}  # (N, P, C, 256, 256)
    pool = PixelPool()
    pool.draw(maps, mask, PatchGrid(1, 1), count=count, ignore=ignore, seed=[seed])
    return pool


def test_an_ignored_pixel_is_never_drawn():
    features, labels = filled(count=60_000, ignore=255).take()
    assert labels.unique().tolist() == [0, 1]
    assert len(labels) == 200 * 256  # all there are
    assert torch.equal(features[:, 0], labels.half())


def test_as_many_pixels_are_drawn_as_asked_for_and_none_twice():
    pool = filled(count=256 * 256)
    assert len(pool) == 256 * 256
    assert pool.take()[1].bincount()[255] == 56 * 256
    assert len(filled(count=200)) == 200
    assert len(pool) == 0


def test_the_pixels_of_several_draws_are_taken_in_their_order_without_a_copy():
    mask = torch.arange(4, dtype=torch.uint8).repeat_interleave(64).expand(1, 256, 256)
    maps = {4: mask[0, None, None, None].half()}
    pool, parts = PixelPool(), []
    for seed in (0, 1):
        alone = PixelPool()
        for one in (pool, alone):
            one.draw(maps, mask, PatchGrid(1, 1), count=100, ignore=None, seed=[seed])
        parts.append(alone.take())
    held = pool._features.data_ptr()
    features, labels = pool.take()
    assert features.data_ptr() == held and len(pool) == 0
    assert torch.equal(features, torch.cat([part[0] for part in parts]))
    assert torch.equal(labels, torch.cat([part[1] for part in parts]))


def test_what_a_pool_takes_is_counted(monkeypatch):
    """Draws of 200 pixels of one channel in float16 fill a pool of 300 with 400: two bytes each, beside their room."""
    monkeypatch.setattr(pools, "POOL_PX", 300)
    pool = filled()
    assert pool._features.nbytes == pools.pool_bytes(1, 2, drawn=200) == 1000


def test_other_seeds_draw_other_pixels():
    a, b, c = (filled(seed=seed).take()[1] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def learned(epoch=1, stopped=()):
    torch.manual_seed(0)
    head = PixelEnsemble({4: 1}, 2)
    head.stopped[list(stopped)] = True
    before = copy.deepcopy(head.state_dict())
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    losses = learn_from(filled(300, ignore=255), head, optimizer, epoch=epoch, weights=None, seed=[0])
    return head, before, losses


def test_pixels_that_fill_no_batch_are_left_out():
    assert len(learned()[2]) == 300 // BATCH_PX


def test_a_network_that_has_stopped_is_left_as_it_is():
    head, before, _ = learned(stopped=(3,))
    after = head.state_dict()
    changed = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {str(m) for m in range(10) if m != 3}


def test_networks_learn_as_if_each_had_an_optimizer_of_its_own():
    together, _, _ = learned()
    alone, _, _ = learned(stopped=[m for m in range(10) if m != 7])
    for a, b in zip(together.models[7].state_dict().values(), alone.models[7].state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("epoch", "judged"), [(FREE_EPOCHS, False), (FREE_EPOCHS + 1, True)])
def test_no_loss_is_judged_in_the_first_epochs(epoch, judged):
    head, _, _ = learned(epoch=epoch)
    assert bool(head.best_loss.isfinite().all()) is judged


def test_a_network_stops_after_more_than_50_batches_without_a_better_loss():
    head = PixelEnsemble({4: 1}, 2)
    judge(head, [0, 1], torch.tensor([0.5, 0.5]))
    for _ in range(50):
        judge(head, [0, 1], torch.tensor([0.5, 0.6]))
    assert not head.stopped.any()
    judge(head, [0, 1], torch.tensor([0.4, 0.6]))  # the first is better again
    assert head.stopped.tolist() == [False, True, *[False] * 8]
    assert head.stale_steps[:2].tolist() == [0, 51]
    assert head.best_loss[:2].tolist() == pytest.approx([0.4, 0.5])


@pytest.fixture
def two_networks(monkeypatch):
    """For speed: an ensemble of two."""
    monkeypatch.setattr(pixels, "MODELS", 2)


def train(store, folder, config=CONFIG):
    (trainee,) = train_heads(store, [(config, RunFolder(folder))])
    return trainee


@pytest.mark.usefixtures("two_networks")
def test_an_ensemble_learns_what_the_features_say(toy_store, tmp_path):
    run = train(toy_store, tmp_path / "run", HeadConfig(**{**vars(CONFIG), "pixels": 2000, "epochs": 4})).run
    part = run.read_metrics()["splits"]["test"]
    assert part["scores"]["dice"] > 0.8 > part["constant"]["scores"]["dice"]


@pytest.mark.usefixtures("two_networks")
def test_the_last_epoch_is_kept_and_each_test_image_has_its_uncertainty(toy_store, tmp_path):
    run = train(toy_store, tmp_path / "run").run
    metrics = run.read_metrics()
    assert metrics["best_epoch"] == metrics["epochs"] == 2
    (image,) = metrics["splits"]["test"]["per_image"]
    assert 0 <= image["uncertainty"] <= np.log(2)
    assert (run.path / "uncertainty" / "test_4.png").is_file()
    assert run.read_config()["head"]["lr"] == 1e-3


@pytest.mark.usefixtures("two_networks")
def test_training_ends_when_every_network_has_stopped(toy_store, tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "STALE_STEPS", 0)
    config = HeadConfig(**{**vars(CONFIG), "epochs": 100})
    assert train(toy_store, tmp_path / "run", config).run.read_metrics()["epochs"] < 20


@pytest.mark.usefixtures("two_networks")
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(toy_store, tmp_path):
    whole = train(toy_store, tmp_path / "whole").run

    def cut(run, line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_heads(toy_store, [(CONFIG, RunFolder(tmp_path / "cut"))], on_epoch=cut)
    again = train(toy_store, tmp_path / "cut").run
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    assert again.read_metrics()["splits"] == whole.read_metrics()["splits"]


@pytest.mark.usefixtures("two_networks")
def test_too_few_pixels_that_count_are_said(tmp_path, toy_contents, fill_store):
    contents: Contents = toy_contents(ignore=0, classes=("unknown", "background", "gland"))
    store = fill_store(StoreWriter(tmp_path / "a.zarr", contents))
    trainee = train(store, tmp_path / "run", HeadConfig(**{**vars(CONFIG), "pixels": 10}))
    assert "fewer than 64 pixels of the training images count" in trainee.failure


@pytest.mark.usefixtures("two_networks")
def test_an_epoch_whose_last_image_fills_the_pool_ends_well(toy_store, tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "POOL_PX", 3 * CONFIG.pixels)  # just what the three training images have
    assert train(toy_store, tmp_path / "run").run.read_metrics()["epochs"] == 2


def test_an_empty_pool_gives_no_steps():
    head = PixelEnsemble({0: 4}, 2)
    optimizer = torch.optim.Adam(head.parameters())
    assert learn_from(PixelPool(), head, optimizer, epoch=1, weights=None, seed=[0]) == []
