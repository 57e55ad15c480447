"""Measure how far the features of a turned or flipped image are from the turned or flipped features.

    python -m benchmarks.extract.flips --images ../shared/data/glas_sample --model mini

The upper left 256 px patch of each of the first `--count` images in the folder, all seven turns and flips. Relative
difference of a block: norm of the difference over the norm of the turned features, mean over patches and turns. It is
given with the noise of the patch turned too, and with noise of its own, as `extract --views flips` stores it. Prints
JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from pathseg.extract.datasets.image_files import list_files, read_image
from pathseg.extract.datasets.symmetries import ALL, turned
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.models.load import load_model
from pathseg.extract.models.noise import patch_noise
from pathseg.store.grid import PATCH_PX
from pathseg.train.data.augment import apply_symmetry


def differences(model: FeatureModel, patch: np.ndarray, name: str, t: int) -> dict[str, dict[int, float]]:
    """Return the relative difference of each block, mean over turns, with turned noise and with noise of its own.

    patch: (256, 256, 3) uint8.
    """
    noise = patch_noise(model.latent_shape, seed=0, image_id=name, patch=0, t=t)
    upright = _features(model, patch, noise, t)
    found: dict[str, dict[int, list[float]]] = {
        kind: {block: [] for block in upright} for kind in ("noise turned too", "noise of its own")
    }
    for view in ALL[1:]:
        own = patch_noise(model.latent_shape, seed=0, image_id=f"{name}_v{view}", patch=0, t=t)
        for kind, drawn in (("noise turned too", apply_symmetry(noise, view)), ("noise of its own", own)):
            for block, values in _features(model, turned(patch, view), drawn, t).items():
                expected = apply_symmetry(upright[block], view)
                found[kind][block].append(float((values - expected).norm() / expected.norm()))
    return {kind: {block: float(np.mean(own)) for block, own in blocks.items()} for kind, blocks in found.items()}


@torch.inference_mode()
def _features(model: FeatureModel, patch: np.ndarray, noise: torch.Tensor, t: int) -> Mapping[int, torch.Tensor]:
    z0, context = model.prepare(patch[None])
    return model.denoise(z0, context, t, tuple(model.blocks), noise[None])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--t", type=int, default=50)
    options = parser.parse_args()
    model = load_model(options.model)
    files = [path for path in list_files(options.images) if not path.stem.endswith("_anno")][: options.count]
    patches = {path.stem: read_image(path)[:PATCH_PX, :PATCH_PX] for path in files}
    each = [differences(model, patch, name, options.t) for name, patch in patches.items()]
    mean = {
        kind: {block: round(float(np.mean([one[kind][block] for one in each])), 3) for block in each[0][kind]}
        for kind in each[0]
    }
    about = {"model": options.model, "t": options.t, "images": list(patches)}
    print(json.dumps({**about, "relative difference by block": mean}, indent=2))


if __name__ == "__main__":
    main()
