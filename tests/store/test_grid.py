import numpy as np
import pytest
import torch

from pathseg.store.grid import PatchGrid


def test_a_768_px_image_has_nine_patches():
    assert PatchGrid.of(768, 768).patches == 9


def test_patches_are_numbered_row_by_row():
    image = np.zeros((512, 768, 3), np.uint8)
    image[256:, 256:512] = 7  # second row, second column: number 4 of 2x3
    patches = PatchGrid(2, 3).cut(image)
    assert patches.shape == (6, 256, 256, 3)
    assert [int(patch.max()) for patch in patches] == [0, 0, 0, 0, 7, 0]


def test_stitching_undoes_cutting():
    image = np.random.default_rng(0).integers(0, 256, (512, 768, 3), dtype=np.uint8)
    patches = PatchGrid(2, 3).cut(image)
    whole = PatchGrid(2, 3).stitch(patches.transpose(0, 3, 1, 2)[None])
    assert np.array_equal(whole[0].transpose(1, 2, 0), image)


def test_tensors_are_stitched_like_arrays():
    maps = np.random.default_rng(0).normal(size=(2, 6, 5, 8, 8))
    assert np.array_equal(PatchGrid(2, 3).stitch(maps), PatchGrid(2, 3).stitch(torch.from_numpy(maps)).numpy())


@pytest.mark.parametrize("size", [(700, 768), (768, 700), (0, 256), (100, 100)])
def test_a_size_that_is_no_multiple_of_the_patch_names_the_way_out(size):
    with pytest.raises(ValueError, match=r"must be a multiple of the 256 px patch; pass --resize \d+"):
        PatchGrid.of(*size)
