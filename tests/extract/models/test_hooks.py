import pytest
import torch

from pathseg.extract.models.hooks import block_modules, captured
from pathseg.extract.models.ldm.config import UNetDesign
from pathseg.extract.models.ldm.unet import empty_unet

DESIGN = UNetDesign(3, 3, 32, (1, 1, 2, 2), 2, (8, 4, 2), 16, 1, 1, None)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return empty_unet(DESIGN).eval().requires_grad_(False)


@pytest.fixture
def inputs():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), 50, torch.ones(2, 2, 16)


def hooks(unet):
    return sum(len(module._forward_hooks) for module in unet.modules())


def names(unet):
    by_module = {module: name for name, module in unet.named_modules()}
    return [by_module[module] for module in block_modules(unet)]


def test_blocks_are_the_middle_and_the_last_layers_of_the_output_blocks(unet):
    assert names(unet) == [
        "mid_block",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
        "up_blocks.0.upsamplers.0",
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
        "up_blocks.1.upsamplers.0",
        "up_blocks.2.attentions.0",
        "up_blocks.2.attentions.1",
        "up_blocks.2.upsamplers.0",
        "up_blocks.3.resnets.0",
        "up_blocks.3.resnets.1",
        "up_blocks.3.resnets.2",
    ]


def test_all_blocks_come_in_running_order(unet, inputs):
    with captured(unet, range(13)) as features:
        unet(*inputs)
    assert list(features) == list(range(13))


def test_the_last_block_is_what_the_output_layers_get(unet, inputs):
    with captured(unet, [12]) as features:
        unet(*inputs)
    expected = unet(*inputs).sample
    assert torch.equal(unet.conv_out(unet.conv_act(unet.conv_norm_out(features[12]))), expected)


@pytest.mark.parametrize("block", range(13))
def test_nothing_runs_after_the_last_wanted_block(unet, inputs, block):
    ran = []
    modules = block_modules(unet)
    watches = [m.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, m in enumerate([*modules, unet.conv_out])]
    try:
        with captured(unet, [0, block]) as features:
            unet(*inputs)
    finally:
        for watch in watches:
            watch.remove()
    assert ran == list(range(block + 1))
    assert set(features) == {0, block}


def test_a_block_is_the_same_whichever_others_are_wanted(unet, inputs):
    with captured(unet, range(13)) as everything:
        unet(*inputs)
    with captured(unet, (5, 4)) as few:
        unet(*inputs)
    assert list(few) == [4, 5]
    assert torch.equal(few[5], everything[5])


def test_hooks_are_gone_after_the_pass(unet, inputs):
    with captured(unet, range(13)):
        unet(*inputs)
    assert hooks(unet) == 0


def test_hooks_are_gone_after_an_error_which_comes_through(unet):
    with pytest.raises(KeyError, match="mine"), captured(unet, range(13)):
        raise KeyError("mine")
    assert hooks(unet) == 0


def test_the_unet_works_as_before_afterwards(unet, inputs):
    before = unet(*inputs).sample
    with captured(unet, [3]):
        unet(*inputs)
    assert torch.equal(unet(*inputs).sample, before)


@pytest.mark.parametrize("blocks", [[13], [-1, 2], []])
def test_a_block_that_is_not_there_is_refused(unet, blocks):
    with pytest.raises(ValueError, match="not within 0-12"), captured(unet, blocks):
        pass
