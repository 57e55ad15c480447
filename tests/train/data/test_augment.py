import pytest
import torch

from pathseg.store.grid import PatchGrid
from pathseg.train.data.augment import apply_symmetry, apply_symmetry_to_features, symmetry


@pytest.mark.parametrize("number", range(8))
def test_features_turn_as_the_whole_image_does(number):
    grid = PatchGrid(2, 2)
    maps = torch.randn(1, 4, 3, 8, 8)
    turned = apply_symmetry_to_features({0: maps}, grid, number)[0]
    assert torch.equal(grid.stitch(turned), apply_symmetry(grid.stitch(maps), number))


@pytest.mark.parametrize("number", [0, 2, 4, 6])
def test_an_oblong_grid_keeps_its_shape(number):
    grid = PatchGrid(2, 3)
    maps = torch.randn(1, 6, 2, 4, 4)
    assert torch.equal(
        grid.stitch(apply_symmetry_to_features({0: maps}, grid, number)[0]), apply_symmetry(grid.stitch(maps), number)
    )


def test_the_eight_symmetries_differ():
    square = torch.arange(9.0).reshape(3, 3)
    assert len({tuple(apply_symmetry(square, number).flatten().tolist()) for number in range(8)}) == 8


def test_draws_depend_on_seed_epoch_and_step_only():
    draw = [symmetry(PatchGrid(3, 3), seed=s, epoch=e, step=n) for s in (0, 1) for e in (1, 2) for n in range(20)]
    assert draw == [
        symmetry(PatchGrid(3, 3), seed=s, epoch=e, step=n) for s in (0, 1) for e in (1, 2) for n in range(20)
    ]
    assert set(draw) == set(range(8))
    assert {symmetry(PatchGrid(2, 3), seed=0, epoch=1, step=n) for n in range(50)} == {0, 2, 4, 6}
