import numpy as np
import pytest
import torch

from pathseg.extract.models.patches import network_input

CPU = torch.device("cpu")


def test_pixels_are_mapped_to_minus_one_and_one():
    images = np.zeros((1, 256, 256, 3), np.uint8)
    images[0, 10, 20] = 255, 0, 51
    pixels = network_input(images, CPU)
    assert pixels.shape == (1, 3, 256, 256)
    assert pixels[0, :, 10, 20].tolist() == pytest.approx([1.0, -1.0, -0.6])


def test_read_only_arrays_and_tensors_are_taken():
    images = np.full((1, 256, 256, 3), 7, np.uint8)
    images.flags.writeable = False
    assert torch.equal(
        network_input(images, CPU), network_input(torch.full((1, 256, 256, 3), 7, dtype=torch.uint8), CPU)
    )


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((1, 256, 256, 3), np.float32), r"float32 \(1, 256, 256, 3\)"),
        (np.zeros((256, 256, 3), np.uint8), r"uint8 \(256, 256, 3\)"),
        (np.zeros((1, 3, 256, 256), np.uint8), r"uint8 \(1, 3, 256, 256\)"),
        (torch.zeros(1, 224, 224, 3, dtype=torch.uint8), r"uint8 \(1, 224, 224, 3\)"),
        (torch.zeros(1, 256, 256, 3, dtype=torch.int64), r"int64 \(1, 256, 256, 3\)"),
    ],
)
def test_other_images_are_refused(images, found):
    with pytest.raises(ValueError, match=rf"must be uint8 \(N, 256, 256, 3\), got {found}"):
        network_input(images, CPU)
