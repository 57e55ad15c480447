"""A data set and a model that cost nothing, so that what is measured is what lies between them."""

from __future__ import annotations

import numpy as np
import torch

from pathseg.extract.datasets.registry import Dataset, Pixels, Sample
from pathseg.store.grid import PatchGrid
from pathseg.store.key import Preprocessing

FULL = {  # channels and side of each block of the paper's model: 12.1 MB a patch, native, float16
    **{0: (960, 8), 1: (960, 8), 2: (960, 8), 3: (960, 16), 4: (576, 16), 5: (576, 16), 6: (576, 32)},
    **{7: (384, 32), 8: (384, 32), 9: (384, 64), 10: (192, 64), 11: (192, 64), 12: (192, 64)},
}
TINY = {9: (1, 8)}


class FreeModel:
    """A `FeatureModel` that computes nothing: block b is filled with b."""

    name, trained, digest, first_stage, condition = "free", False, "0" * 64, "none", "none"
    device, latent_shape, timesteps = torch.device("cpu"), None, None

    def __init__(self, blocks: dict[int, tuple[int, int]]) -> None:
        self.blocks = blocks

    def prepare(self, images):
        return torch.zeros(len(images)), torch.zeros(len(images))

    def denoise(self, z0, context, t, blocks, noise):
        return {b: torch.full((len(z0), self.blocks[b][0], *2 * self.blocks[b][1:]), float(b)) for b in blocks}


def blank_dataset(images: int, size: tuple[int, int]) -> Dataset:
    """Images (H, W) of one colour; each is made when it is loaded."""

    def load(sample: Sample) -> Pixels:
        return Pixels(np.full((*size, 3), 200, np.uint8), np.zeros(size, np.uint8))

    return Dataset(
        name="blank",
        samples=tuple(Sample(f"image_{i:07d}", "train", *size) for i in range(images)),
        load=load,
        classes=("all",),
        size=size,
        test_split="test",
        preprocessing=Preprocessing(),
        mpp=0.5,
    )


def patches_of(size: tuple[int, int]) -> int:
    return PatchGrid.of(*size).patches
