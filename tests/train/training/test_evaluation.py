import pytest
import torch

from pathseg.train.training.evaluation import pixel_loss


def test_ignored_pixels_do_not_count():
    scores = torch.tensor([[[[2.0, 0.0]], [[0.0, 3.0]]]])  # (1, 2, 1, 2)
    loss = pixel_loss(scores, torch.tensor([[[0, 255]]], dtype=torch.uint8), weights=None, ignore=255)
    assert loss.item() == pytest.approx(torch.log(1 + torch.exp(torch.tensor(-2.0))).item())


def test_an_image_without_counted_pixels_has_no_loss_and_no_gradient():
    scores = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = pixel_loss(scores, torch.full((1, 4, 4), 255, dtype=torch.uint8), weights=None, ignore=255)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_ignored_pixels_do_not_count_in_a_weighted_mean():
    scores = torch.tensor([[[[2.0, 0.0, 5.0]], [[0.0, 3.0, 1.0]]]])  # (1, 2, 1, 3)
    masks = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    loss = pixel_loss(scores, masks, weights=torch.tensor([0.25, 0.75]), ignore=255)
    # by hand: -log softmax of the true class is log(1 + e^-2) and log(1 + e^-3); the third pixel is ignored
    assert loss.item() == pytest.approx((0.25 * 0.126928 + 0.75 * 0.048587) / (0.25 + 0.75), rel=1e-4)


def test_an_image_of_classes_that_weigh_nothing_has_no_loss():
    masks = torch.tensor([[[1, 255]]], dtype=torch.uint8)
    loss = pixel_loss(torch.randn(1, 2, 1, 2), masks, weights=torch.tensor([1.0, 0.0]), ignore=255)
    assert loss.item() == 0
