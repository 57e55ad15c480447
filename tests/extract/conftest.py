"""A model of a few operations and a data set of random images, for tests of the pipeline alone."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pathseg.extract.datasets.registry import Dataset, Pixels, Sample
from pathseg.store.key import Preprocessing


class ToyModel:
    """A `FeatureModel` whose blocks are means of the patch and its noise."""

    name, trained, digest, first_stage, condition = "toy", False, "ab" * 32, "vq-f4", "none"
    blocks = {0: (8, 8), 4: (4, 16), 9: (2, 64)}  # noqa: RUF012
    device = torch.device("cpu")
    latent_shape, timesteps = (3, 64, 64), 1000
    default_blocks, vit, diffusers, zoom, notes = (0, 4, 9), None, None, None, ()

    def prepare(self, images):
        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
        return F.avg_pool2d(pixels, 4) / 255, pixels.new_zeros(len(images), 0, 0)

    def denoise(self, z0, context, t, blocks, noise):
        zt = (z0 + noise * (t / 1000)).mean(1, keepdim=True)  # (N, 1, 64, 64)
        sides = {block: self.blocks[block] for block in blocks}
        return {b: F.avg_pool2d(zt, 64 // side).expand(-1, channels, -1, -1) for b, (channels, side) in sides.items()}


class CountingModel(ToyModel):
    """Counts how often each patch is computed, by its pixels."""

    def __init__(self):
        self.computed = Counter()

    def prepare(self, images):
        self.computed.update(image.tobytes() for image in images)
        return super().prepare(images)


def random_pixels(sample):
    if sample.id.startswith("unreadable"):
        raise ValueError(f"{sample.id}.png: the file is damaged")
    image = np.random.default_rng(list(sample.id.encode())).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    return Pixels(image, (image[..., 2] > 127).astype(np.uint8))


@pytest.fixture
def toy_model():
    return ToyModel()


@pytest.fixture
def toy_dataset():
    """Make a data set of 512x256 px images, two patches each, with these ids."""

    def make(*ids: str) -> Dataset:
        return Dataset(
            name="toy",
            samples=tuple(Sample(id_, "train" if index else "test", 256, 512) for index, id_ in enumerate(ids)),
            load=random_pixels,
            classes=("dark", "light"),
            size=(256, 512),
            test_split="test",
            preprocessing=Preprocessing(),
            background=0,
            mpp=0.5,
        )

    return make


def write_slide(path, seed):
    """Write a TIFF of 256 px a side with 0.5 um/px."""
    pixels = np.random.default_rng(seed).integers(60, 220, (256, 256, 3), np.uint8)
    Image.fromarray(pixels).save(path, dpi=(50800, 50800))


def write_outlines(path):
    """Write the outlines of two objects of different classes on such a slide."""
    rings = {"left": (10, 10, 60, 60), "right": (200, 10, 250, 60)}
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x, y], [u, y], [u, v], [x, v], [x, y]]]},
            "properties": {"classification": {"name": name}},
        }
        for name, (x, y, u, v) in rings.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
