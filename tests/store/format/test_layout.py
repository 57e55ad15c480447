import pytest
import torch

from pathseg.store.format.layout import resample, to_layout


def test_a_ramp_is_upsampled_with_half_cell_centres():
    ramp = torch.tensor([[[[0.0, 1.0]]]]).expand(1, 1, 2, 2)
    # cell centres at 0.5 and 1.5 of 2 cells are at 1 and 3 of 4: 0, 1/4, 3/4, 1 by hand
    assert resample(ramp, 4)[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_a_map_of_the_right_size_is_not_copied():
    maps = torch.zeros(1, 2, 64, 64)
    assert resample(maps, 64) is maps


@pytest.mark.parametrize(("layout", "side"), [("grid", 64), ("native", 16), ("image", 256)])
def test_each_layout_has_its_side(layout, side):
    assert to_layout(torch.zeros(2, 3, 16, 16), layout).shape == (2, 3, side, side)
