import pytest
import torch
from diffusers import UNet2DModel
from torch.profiler import profile

from pathseg.extract.models.arithmetic import CPU_THREADS, fixed_arithmetic, skip_divisions_by_one
from pathseg.extract.models.load import load_model


@pytest.fixture
def threads():
    """Sets PyTorch's threads and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_number_is_put_back(threads):
    threads(3)
    with fixed_arithmetic(torch.device("cpu")):
        assert torch.get_num_threads() == CPU_THREADS
    assert torch.get_num_threads() == 3


@pytest.mark.soak
def test_features_do_not_depend_on_the_threads_of_the_process(threads):
    images = torch.randint(0, 256, (2, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model, found = load_model("mini"), []
    for number in (1, 2, 4):
        threads(number)
        found.append(model.features(images))
    for other in found[1:]:
        assert all(torch.equal(other[block], found[0][block]) for block in found[0])


def test_forward_passes_do_not_use_tf32_where_the_process_allows_it():
    model, seen = load_model("mini"), set()
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda *_: seen.add((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))
    )
    try:
        model.features(torch.zeros(1, 256, 256, 3, dtype=torch.uint8), blocks=[0])
    finally:
        hook.remove()
    assert seen == {("ieee", "ieee")}


def test_divisions_by_one_that_are_left_out_change_no_bit():
    torch.manual_seed(0)
    unet = UNet2DModel(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        mid_block_scale_factor=1.5,  # this division stays
    )
    images, found, divisions = torch.randn(2, 3, 16, 16), [], []
    for change in (lambda network: network, skip_divisions_by_one):
        change(unet)
        with torch.inference_mode(), profile() as profiler:
            found.append(unet(images, 50).sample)
        divisions += [event.count for event in profiler.key_averages() if event.key == "aten::div"]
    assert torch.equal(*found)
    assert divisions[1] < divisions[0]
