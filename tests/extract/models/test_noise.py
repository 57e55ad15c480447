import pytest
import torch

from pathseg.extract.models.noise import add_noise, patch_noise


def test_noise_follows_the_published_rule():
    # printf '0/train_1/8/50' | sha256sum  ->  b1107c68f72f70e2...; the top bit of b1 is cleared: 31
    expected = torch.randn((3, 64, 64), generator=torch.Generator("cpu").manual_seed(0x31107C68F72F70E2))
    assert torch.equal(patch_noise((3, 64, 64), seed=0, image_id="train_1", patch=8, t=50), expected)


def test_image_ids_are_hashed_as_utf8():
    # printf '3/école/0/999' | sha256sum  ->  f8b5f28aa3bfa658...
    expected = torch.randn((4, 2, 2), generator=torch.Generator("cpu").manual_seed(0x78B5F28AA3BFA658))
    assert torch.equal(patch_noise((4, 2, 2), seed=3, image_id="école", patch=0, t=999), expected)


@pytest.mark.parametrize("other", [{"seed": 1}, {"image_id": "b"}, {"patch": 1}, {"t": 51}], ids=str)
def test_everything_that_names_a_patch_changes_its_noise(other):
    same = {"seed": 0, "image_id": "a", "patch": 0, "t": 50}
    assert not torch.equal(patch_noise((3, 4, 4), **same), patch_noise((3, 4, 4), **(same | other)))


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    patch_noise((3, 4, 4), seed=0, image_id="a", patch=0, t=50)
    assert torch.equal(torch.rand(1), expected)


def test_equation_3_by_hand():
    zt = add_noise(torch.tensor([1.0, 2.0]), torch.tensor([10.0, -10.0]), 0.64)
    assert torch.allclose(zt, torch.tensor([0.8 + 6.0, 1.6 - 6.0]))
