import pytest
import torch
import torch.nn.functional as F

from pathseg.store.grid import PatchGrid
from pathseg.train.heads.linear import LinearHead
from pathseg.train.heads.stack import stack_blocks


@pytest.mark.parametrize("grid", [(1, 2), (2, 1)])
def test_scores_are_a_1x1_convolution_of_the_stack_upsampled_to_pixels(grid):
    shapes, generator = {9: (3, 64), 4: (6, 16)}, torch.Generator().manual_seed(0)
    maps = {block: torch.randn((2, 2, c, side, side), generator=generator) for block, (c, side) in shapes.items()}
    head = LinearHead({9: 3, 4: 6}, 5)
    coarse = head.scores(stack_blocks(maps, PatchGrid(*grid)))
    expected = F.interpolate(coarse, scale_factor=4, mode="bilinear")
    found = head(maps, grid)
    assert found.shape == (2, 5, 256 * grid[0], 256 * grid[1])
    assert torch.allclose(found, expected, atol=1e-5)
