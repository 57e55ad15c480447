"""A data set and a model that compute nothing, so that only the code between them is measured."""

from __future__ import annotations

import numpy as np
import torch

from pathseg.extract.datasets.registry import Dataset, Pixels, Sample
from pathseg.store.key import Preprocessing

FULL_SIZE = {  # block -> channels and side of the paper's model: 12.1 MB a patch in native layout, float16
    **{0: (960, 8), 1: (960, 8), 2: (960, 8), 3: (960, 16), 4: (576, 16), 5: (576, 16), 6: (576, 32)},
    **{7: (384, 32), 8: (384, 32), 9: (384, 64), 10: (192, 64), 11: (192, 64), 12: (192, 64)},
}
TINY = {9: (1, 8)}


class ConstantModel:
    """A `FeatureModel` that computes nothing: block b is filled with the number b."""

    name, trained, digest, first_stage, condition = "constant", False, "0" * 64, "none", "none"
    device, latent_shape, timesteps = torch.device("cpu"), None, None
    vit, diffusers, zoom, notes = None, None, None, ()

    def __init__(self, blocks: dict[int, tuple[int, int]]) -> None:
        self.blocks, self.default_blocks = blocks, tuple(blocks)

    def prepare(self, images):
        return torch.zeros(len(images)), torch.zeros(len(images))

    def denoise(self, z0, context, t, blocks, noise):
        return {b: torch.full((len(z0), self.blocks[b][0], *2 * self.blocks[b][1:]), float(b)) for b in blocks}


def blank_dataset(images: int, size: tuple[int, int]) -> Dataset:
    """Return a data set of `images` images (H, W) of one colour, each made when it is loaded."""

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
