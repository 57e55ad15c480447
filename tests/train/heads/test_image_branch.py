"""A head that sees the image: its scores are those of one last layer on the concatenated channels."""

import pytest
import torch
from torch import nn

from pathseg.store.grid import PatchGrid
from pathseg.train.config import IMAGE, HeadConfig, Layer
from pathseg.train.heads.fcn import FCNHead
from pathseg.train.heads.image_branch import ImageBranch
from pathseg.train.heads.registry import HEADS
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

BLOCK = Layer(0, 50, 4)


def inputs(patches=2):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, patches, 3, 256, 256), generator=generator, dtype=torch.uint8)
    return {IMAGE: image, BLOCK: torch.randn(1, patches, 6, 16, 16, generator=generator)}


def build(kind, channels):
    torch.manual_seed(0)
    return kind(channels, 2).eval()


@pytest.mark.parametrize("name", ["fcn", "scalar-mix"])
def test_without_its_weights_a_head_is_the_one_without_the_image(name):
    kind, maps = HEADS[name], inputs()
    seeing, blind = build(kind, {IMAGE: 3, BLOCK: 6}), build(kind, {BLOCK: 6})
    with torch.no_grad():
        assert not torch.equal(seeing(maps, (1, 2)), blind({BLOCK: maps[BLOCK]}, (1, 2)))
        seeing.image.scores.weight.zero_()
        assert torch.equal(seeing(maps, (1, 2)), blind({BLOCK: maps[BLOCK]}, (1, 2)))


def test_the_fast_head_gives_the_scores_of_the_plain_one():
    head, maps = build(FCNHead, {IMAGE: 3, BLOCK: 6}), inputs()
    with torch.no_grad():
        torch.testing.assert_close(head(maps, (2, 1)), head.plain_forward(maps, (2, 1)), rtol=1e-4, atol=1e-5)


def test_adding_its_scores_is_a_last_layer_on_the_concatenated_channels():
    torch.manual_seed(0)
    branch, last = ImageBranch(2).double(), nn.Conv2d(64, 2, 3, padding=1).double()
    image, tail = inputs(1)[IMAGE], torch.randn(1, 64, 256, 256, dtype=torch.float64)
    both = nn.Conv2d(64 + 8, 2, 3, padding=1).double()
    with torch.no_grad():
        both.weight.copy_(torch.cat([last.weight, branch.scores.weight], 1))
        both.bias.copy_(last.bias)
        channels = branch.first(image[:, 0].double() / 127.5 - 1).relu()  # one patch is the image
        expected = both(torch.cat([tail, channels], 1))
        torch.testing.assert_close(last(tail) + branch(image, PatchGrid(1, 1)), expected, rtol=1e-12, atol=1e-12)


def test_the_settings_name_the_image_first_and_the_run_after_it():
    config = HeadConfig(blocks=(4,), image_in_head=True)
    assert config.layers == (IMAGE, (0, 50, 4))
    assert config.run_name("toy") == "toy-t50-b4-fcn-lr0.0001-imageinhead-s0"


@pytest.mark.parametrize("name", [pytest.param("fcn", marks=pytest.mark.slow), "scalar-mix"])
def test_a_run_that_sees_the_image_is_resumed_with_the_same_weights_and_records_that_of_each_layer(
    one_patch_store, tmp_path, name
):
    def cut(run, epoch):
        raise KeyboardInterrupt

    config = HeadConfig(blocks=(0, 4), head_type=name, image_in_head=True, epochs=2, augment="flips")
    whole, again = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "again")
    train_heads(one_patch_store, [(config, whole)], without=(1,))
    with pytest.raises(KeyboardInterrupt):
        train_heads(one_patch_store, [(config, again)], without=(1,), on_epoch=cut)
    train_heads(one_patch_store, [(config, again)], without=(1,))
    assert whole.weights.read_bytes() == again.weights.read_bytes()
    layers = whole.read_metrics().layer_weights
    assert layers == again.read_metrics().layer_weights
    if name == "scalar-mix":
        assert [(layer.source, layer.t, layer.block) for layer in layers] == [(0, 50, 0), (0, 50, 4)]
        assert sum(layer.weight for layer in layers) == pytest.approx(1)
