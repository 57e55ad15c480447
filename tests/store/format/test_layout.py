import pytest
import torch
import torch.nn.functional as F

from pathseg.store.format.layout import resample, to_layout


def test_a_ramp_is_upsampled_with_half_cell_centres():
    ramp = torch.tensor([[[[0.0, 1.0]]]]).expand(1, 1, 2, 2)
    # cell centres at 0.5 and 1.5 of 2 cells are at 1 and 3 of 4: 0, 1/4, 3/4, 1 by hand
    assert resample(ramp, 4)[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_a_map_of_the_right_size_is_not_copied():
    maps = torch.zeros(1, 2, 64, 64)
    assert resample(maps, 64) is maps


@pytest.mark.parametrize(("channels", "side"), [(2, 8), (64, 8), (7, 18), (130, 32), (6, 64)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_grid_has_the_values_of_pytorchs_interpolation_to_the_bit(channels, side, memory_format):
    maps = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(maps, size=(64, 64), mode="bilinear", align_corners=False).half()
    assert torch.equal(to_layout(maps.contiguous(memory_format=memory_format), "grid", torch.float16), wanted)


@pytest.mark.parametrize(("layout", "side"), [("grid", 64), ("native", 16), ("image", 256)])
def test_each_layout_has_its_side(layout, side):
    assert to_layout(torch.zeros(2, 3, 16, 16), layout).shape == (2, 3, side, side)
