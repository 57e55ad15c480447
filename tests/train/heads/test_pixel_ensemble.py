import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pathseg.store.grid import PatchGrid
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.heads import pixel_ensemble
from pathseg.train.heads.pixel_ensemble import (
    BATCH_PX,
    FREE_EPOCHS,
    MODELS,
    PixelBuffer,
    PixelEnsemble,
    buffer_bytes,
    image_uncertainty,
    pixel_features,
    train_on_buffer,
    update_stopping,
    vote,
)
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

SHAPES = {0: (5, 8), 4: (6, 16), 9: (3, 64)}
# the thirteen blocks of the full-size model, FACTS of the paper's Table 1
CONFIG = HeadConfig(blocks=(4,), head_type="pixel-ensemble", epochs=2, pixels=200)
CHANNELS = (960,) * 4 + (576,) * 3 + (384,) * 3 + (192,) * 3
SIDES = (8,) * 3 + (16,) * 3 + (32,) * 3 + (64,) * 4
FULL = dict(enumerate(zip(CHANNELS, SIDES, strict=True)))


def features(grid, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return {
        b: torch.randn((1, grid.patches, c, s, s), generator=generator, dtype=dtype) for b, (c, s) in shapes.items()
    }


def dense(maps, grid):
    """The stack of equation 4 for one image: each patch of each block upsampled by itself, (d, H, W)."""
    fine = [
        F.interpolate(m[0], (256, 256), mode="bilinear", align_corners=False)[None] for _, m in sorted(maps.items())
    ]
    return torch.cat([grid.stitch(m)[0] for m in fine])


def ensemble(classes=3, shapes=SHAPES, models=3):
    torch.manual_seed(0)
    head = PixelEnsemble({b: c for b, (c, _) in shapes.items()}, classes).double().eval()
    head.models = head.models[:models]  # for speed
    for model in head.models:  # as after some training: no statistic is trivial
        for layer in (model[2], model[5]):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        model[0].weight.data *= 50
        model[6].weight.data *= 50
    return head


@pytest.mark.parametrize("grid", [PatchGrid(1, 1), PatchGrid(2, 1), PatchGrid(1, 2)])
def test_a_pixels_features_are_those_of_the_dense_upsampled_stack(grid):
    maps = features(grid)
    pixels = torch.randperm(math.prod(grid.size), generator=torch.Generator().manual_seed(1))[:2000]
    corners = torch.tensor([0, grid.size[1] - 1, math.prod(grid.size) - 1])
    pixels = torch.cat([pixels, corners])
    sampled = pixel_features({b: m[0] for b, m in maps.items()}, pixels, grid)
    assert torch.allclose(sampled, dense(maps, grid).flatten(1).T[pixels], rtol=0, atol=1e-12)


def test_half_precision_features_are_blended_in_float32():
    maps = {4: torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]], dtype=torch.float16)}
    # between cell centres at 64 and 192 px of 256: pixel 100 lies at 100.5, a share of 36.5/128 on the way
    assert pixel_features(maps, torch.tensor([100]), PatchGrid(1, 1)).item() == pytest.approx(36.5 / 128, rel=1e-6)


def test_a_prediction_is_that_of_every_network_on_the_dense_stack():
    grid, head = PatchGrid(1, 2), ensemble(models=2)
    maps = features(grid)
    stack = dense(maps, grid).flatten(1).T  # (H W, d)
    with torch.no_grad():
        logits = torch.stack([model(stack) for model in head.models])
    labels, scores, uncertainty, _ = vote(logits)
    found = head.predict(maps, (1, 2))
    assert torch.allclose(found.log_probabilities[0].flatten(1).T, scores, rtol=0, atol=1e-9)
    assert torch.allclose(found.uncertainty.flatten(), uncertainty[:, 0], rtol=0, atol=1e-9)
    assert torch.equal(found.labels.flatten(), labels[:, 0])
    assert len(found.labels.unique()) > 1


def test_most_votes_win():
    # three networks, one pixel: class 2, 2, 0, the last one surest
    logits = torch.tensor([[[0.0, 0, 1]], [[0, 0, 1]], [[9, 0, 0]]])
    assert vote(logits).labels.item() == 2
    torch.testing.assert_close(vote(logits).shares, torch.tensor([[1 / 3, 0, 2 / 3]]))


def test_a_tie_goes_to_the_smallest_class():
    logits = torch.tensor([[[0.0, 0, 9]], [[0, 1, 0]], [[0, 0, 9]], [[0, 1, 0]]])
    assert vote(logits).labels.item() == 1


def test_uncertainty_is_the_jensen_shannon_divergence():
    # p = (3/4, 1/4) and (1/4, 3/4): the mean has entropy ln 2, each has ln 4 - 3/4 ln 3
    p = torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]]], dtype=torch.float64)
    expected = math.log(2) - (math.log(4) - 0.75 * math.log(3))
    assert vote(p.log()).uncertainty.item() == pytest.approx(expected, abs=1e-12)


def test_networks_that_agree_are_certain():
    logits = torch.randn(1, 50, 4, dtype=torch.float64).expand(MODELS, -1, -1)
    assert vote(logits).uncertainty.abs().max() < 1e-12


def test_an_ignored_class_gets_no_vote_and_no_probability():
    labels, scores, uncertainty, _ = vote(torch.tensor([[[5.0, 1, 0]], [[5.0, 1, 0]]]), ignore=0)
    assert labels.item() == 1
    assert scores.exp()[0, 0] == 0
    assert uncertainty.isfinite().all()


def test_the_uncertainty_of_an_image_is_the_mean_of_its_most_uncertain_tenth():
    values = torch.arange(100.0).reshape(10, 10)
    assert image_uncertainty(values) == pytest.approx(sum(range(90, 100)) / 10)


def test_the_networks_are_those_of_ddpmseg():
    head = PixelEnsemble({0: 500}, 2)
    one = 500 * 128 + 128 + 2 * 128 + 128 * 32 + 32 + 2 * 32 + 32 * 2 + 2  # linear layers and normalisations, by hand
    assert sum(p.numel() for p in head.parameters()) == 10 * one
    assert head.models[0][0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(model[i].bias.abs().max() == 0 for model in head.models for i in (0, 3, 6))
    assert not torch.equal(head.models[0][0].weight, head.models[1][0].weight)


class Largest(TorchDispatchMode):
    """Records the number of values of the largest tensor that any operation returns."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = made if isinstance(made, tuple | list) else (made,)
        self.values = max([self.values, *(t.numel() for t in tensors if isinstance(t, torch.Tensor))])
        return made


def test_a_prediction_holds_no_tensor_larger_than_the_maps_or_128_channels_of_a_patch():
    with torch.device("meta"):
        head = PixelEnsemble({b: c for b, (c, _) in FULL.items()}, 6).eval()
        head.models = head.models[:2]  # for speed
        maps = {b: torch.empty(1, 9, c, s, s, dtype=torch.float16) for b, (c, s) in FULL.items()}
        with Largest() as largest:
            assert head.predict(maps, (3, 3)).log_probabilities.shape == (1, 6, 768, 768)
    assert sum(head.channels.values()) == 7296
    # the stack of the whole image would be 7296 * 768 * 768
    assert largest.values == max(128 * 256 * 256, *(m.numel() for m in maps.values()))


def test_drawing_pixels_holds_no_tensor_larger_than_the_maps():
    maps = {b: torch.empty(9, c, s, s, dtype=torch.float16, device="meta") for b, (c, s) in FULL.items()}
    with Largest() as largest:
        drawn = pixel_features(maps, torch.empty(1024, dtype=torch.long, device="meta"), PatchGrid(3, 3))
    assert drawn.shape == (1024, 7296)
    assert largest.values == max(1024 * 7296, *(m.numel() for m in maps.values()))


def filled(count=200, ignore=None, seed=0):
    """A buffer of the pixels of one image, in which each pixel's only feature is its class."""
    mask = torch.zeros(1, 256, 256, dtype=torch.uint8)
    mask[:, :, 128:] = 1
    mask[:, 200:] = 255
    maps = {4: mask[0, None, None, None].half()}  # (N, P, C, 256, 256)
    buffer = PixelBuffer()
    buffer.draw(maps, mask, PatchGrid(1, 1), count=count, ignore=ignore, seed=[seed])
    return buffer


def test_an_ignored_pixel_is_never_drawn():
    features, labels = filled(count=60_000, ignore=255).take()
    assert labels.unique().tolist() == [0, 1]
    assert len(labels) == 200 * 256  # all there are
    assert torch.equal(features[:, 0], labels.half())


def test_the_requested_number_of_pixels_is_drawn_and_none_twice():
    buffer = filled(count=256 * 256)
    assert len(buffer) == 256 * 256
    assert buffer.take()[1].bincount()[255] == 56 * 256
    assert len(filled(count=200)) == 200
    assert len(buffer) == 0


def test_the_pixels_of_several_draws_are_taken_in_their_order_without_a_copy():
    mask = torch.arange(4, dtype=torch.uint8).repeat_interleave(64).expand(1, 256, 256)
    maps = {4: mask[0, None, None, None].half()}
    buffer, each = PixelBuffer(), []
    for seed in (0, 1):
        alone = PixelBuffer()
        for one in (buffer, alone):
            one.draw(maps, mask, PatchGrid(1, 1), count=100, ignore=None, seed=[seed])
        each.append(alone.take())
    features, labels = buffer.take()
    assert features.untyped_storage().nbytes() > features.nbytes  # a view of the buffer's own array
    assert len(buffer) == 0
    assert torch.equal(features, torch.cat([one[0] for one in each]))
    assert torch.equal(labels, torch.cat([one[1] for one in each]))


def test_the_bytes_of_a_pool_are_known_before_it_is_filled(monkeypatch):
    monkeypatch.setattr(pixel_ensemble, "POOL_PX", 300)
    features, _ = filled(count=200).take()
    assert features.untyped_storage().nbytes() == buffer_bytes(1, 2, drawn=200) == 2 * (300 + 200)


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
    losses = train_on_buffer(filled(300, ignore=255), head, optimizer, epoch=epoch, weights=None, seed=[0])
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


@pytest.mark.parametrize(("epoch", "counted"), [(FREE_EPOCHS, False), (FREE_EPOCHS + 1, True)])
def test_the_stopping_rule_counts_no_batch_of_the_first_epochs(epoch, counted):
    head, _, _ = learned(epoch=epoch)
    assert bool(head.best_loss.isfinite().all()) is counted


def test_a_network_stops_after_more_than_50_batches_without_a_better_loss():
    head = PixelEnsemble({4: 1}, 2)
    update_stopping(head, [0, 1], torch.tensor([0.5, 0.5]))
    for _ in range(50):
        update_stopping(head, [0, 1], torch.tensor([0.5, 0.6]))
    assert not head.stopped.any()
    update_stopping(head, [0, 1], torch.tensor([0.4, 0.6]))  # the first is better again
    assert head.stopped.tolist() == [False, True, *[False] * 8]
    assert head.stale_steps[:2].tolist() == [0, 51]
    assert head.best_loss[:2].tolist() == pytest.approx([0.4, 0.5])


def train(store, folder, config=CONFIG):
    (state,) = train_heads(store, [(config, RunFolder(folder))])
    return state


@pytest.mark.usefixtures("two_networks")
def test_an_ensemble_learns_what_the_features_say(one_patch_store, tmp_path):
    run = train(one_patch_store, tmp_path / "run", HeadConfig(**{**vars(CONFIG), "pixels": 2000, "epochs": 4})).run
    split = run.read_metrics().splits["test"]
    assert split.scores.dice > 0.8 > split.constant.scores.dice


@pytest.mark.usefixtures("two_networks")
def test_the_last_epoch_is_kept_and_each_test_image_has_its_uncertainty(one_patch_store, tmp_path):
    run = train(one_patch_store, tmp_path / "run").run
    metrics = run.read_metrics()
    assert metrics.best_epoch == metrics.epochs == 2
    (image,) = metrics.splits["test"].per_image
    assert 0 <= image.uncertainty <= np.log(2)
    assert (run.path / "uncertainty" / "test_3.png").is_file()
    assert run.read_config().settings.lr == 1e-3


@pytest.mark.usefixtures("two_networks")
def test_training_ends_when_every_network_has_stopped(one_patch_store, tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_ensemble, "STALE_STEPS", 0)
    config = HeadConfig(**{**vars(CONFIG), "epochs": 100})
    assert train(one_patch_store, tmp_path / "run", config).run.read_metrics().epochs < 20


@pytest.mark.usefixtures("two_networks")
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(one_patch_store, tmp_path):
    whole = train(one_patch_store, tmp_path / "whole").run

    def cut(run, line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_heads(one_patch_store, [(CONFIG, RunFolder(tmp_path / "cut"))], on_epoch=cut)
    again = train(one_patch_store, tmp_path / "cut").run
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    assert again.read_metrics().splits == whole.read_metrics().splits


@pytest.mark.usefixtures("two_networks")
def test_a_run_with_too_few_counted_pixels_fails_and_says_so(tmp_path, toy_contents, fill_store):
    contents = toy_contents(ignore=0, classes=("unknown", "background", "gland"))
    store = fill_store(StoreWriter(tmp_path / "a.zarr", contents))
    state = train(store, tmp_path / "run", HeadConfig(**{**vars(CONFIG), "pixels": 10}))
    assert "fewer than 64 pixels of the training images count" in state.failure


@pytest.mark.usefixtures("two_networks")
def test_an_epoch_whose_last_image_fills_the_pool_ends_normally(one_patch_store, tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_ensemble, "POOL_PX", 2 * CONFIG.pixels)  # just what the two training images have
    assert train(one_patch_store, tmp_path / "run").run.read_metrics().epochs == 2


def test_an_empty_pool_gives_no_steps():
    head = PixelEnsemble({0: 4}, 2)
    optimizer = torch.optim.Adam(head.parameters())
    assert train_on_buffer(PixelBuffer(), head, optimizer, epoch=1, weights=None, seed=[0]) == []


def test_pixels_of_classes_that_weigh_nothing_teach_nothing():
    """`--class-weights balanced` gives the only class of an image the weight 0."""
    torch.manual_seed(0)
    head = PixelEnsemble({4: 1}, 2)
    buffer, mask = PixelBuffer(), torch.zeros(1, 256, 256, dtype=torch.uint8)
    buffer.draw({4: mask[0, None, None, None].half()}, mask, PatchGrid(1, 1), count=100, ignore=None, seed=[0])
    before = [parameter.clone() for parameter in head.parameters()]
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    weights = torch.tensor([0.0, 1.0])
    assert train_on_buffer(buffer, head, optimizer, epoch=1, weights=weights, seed=[0]) == [0.0]
    assert all(torch.equal(new, old) for new, old in zip(head.parameters(), before, strict=True))
