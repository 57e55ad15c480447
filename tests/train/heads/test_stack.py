import pytest
import torch

from pathseg.store.format.layout import to_layout
from pathseg.train.heads.stack import to_head_grid


@pytest.mark.parametrize("side", [1, 8, 16, 32, 64])
def test_the_head_grid_of_an_image_map_is_that_of_its_native_map(side):
    native = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(to_head_grid(to_layout(native, "image")), to_layout(native, "grid"), rtol=0, atol=1e-12)
