"""Features of a coarser magnification: each patch is seen in the wider tissue around it, `extract --surroundings N`."""

from __future__ import annotations

import numpy as np
import torch

from pathseg.extract.datasets.image_files import mirrored_region
from pathseg.extract.datasets.registry import Dataset, Sample
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.store.grid import margin_px
from pathseg.store.key import Surroundings


def surroundings_of(dataset: Dataset, times: int) -> Surroundings | None:
    """Return how a data set shows its images in their surroundings, None for 1: the patches alone."""
    if times == 1:
        return None
    if dataset.preprocessing.padded:
        raise ValueError("--surroundings does not go with --keep-aspect, which pads with white; leave one of them out")
    return Surroundings(times, "mirrored" if dataset.load_surroundings is None else "region")


def load_field(dataset: Dataset, sample: Sample, image: np.ndarray, times: int) -> np.ndarray:
    """Return an image (H, W, 3) with a margin of `margin_px` on each side, (H + 2m, W + 2m, 3) uint8.

    The margin is the tissue around the image where the data set has it, otherwise the mirrored image. Raises ValueError
    naming the file where it cannot be read.
    """
    margin = margin_px(times)
    if dataset.load_surroundings is not None:
        return dataset.load_surroundings(sample, margin)
    height, width = image.shape[:2]
    return mirrored_region(image, -margin, -margin, height + 2 * margin, width + 2 * margin)


def centre_side(side: int, times: int) -> int:
    """Return the side of the centre of a field's map of `side` cells: the cells that lie on the patch."""
    return side // times


def centre(maps: torch.Tensor, times: int) -> torch.Tensor:
    """Return the cells of fields' maps (N, C, h, w) that lie on their patches, (N, C, h / times, w / times)."""
    if times == 1:
        return maps
    side = maps.shape[-1]
    start = (side - centre_side(side, times)) // 2
    inside = slice(start, start + centre_side(side, times))
    return maps[..., inside, inside]


def require_centre(model: FeatureModel, blocks: tuple[int, ...], times: int) -> None:
    """Raise ValueError unless the cells on the patch are whole ones in the maps of these blocks."""
    for block in blocks:
        _, side = model.blocks[block]
        if side % times or (side - side // times) % 2:
            raise ValueError(
                f"block {block} of model {model.name} has maps of {side}x{side} cells, of which no whole ones lie on "
                f"the patch with --surroundings {times}; choose other --blocks or --surroundings, or for a timm model "
                "an --input-px that gives an even number of cells"
            )
