"""The embeddings that condition ZoomLDM: those of a timm ViT for the 20x patches that a picture covers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pathseg.extract.models.patches import channels_first
from pathseg.extract.models.timm_features import TimmFeatures
from pathseg.store.grid import PATCH_PX
from pathseg.store.key import MAGNIFICATIONS, Magnification, ZoomSettings

if TYPE_CHECKING:
    from pathseg.extract.models.feature_model import Images

MPP_20X = 0.5  # um/px


def magnification_of(mpp: float | None) -> Magnification:
    """Return the magnification of pictures with so many um/px, the nearest of MAGNIFICATIONS.

    Raises ValueError where um/px is not known, and where the nearest step is none of them.
    """
    way_out = f"pass --magnification ({', '.join(MAGNIFICATIONS)})"
    if mpp is None:
        raise ValueError(f"ZoomLDM's condition needs the images' magnification, but um/px is not known; {way_out}")
    step = round(math.log2(mpp / MPP_20X))
    if not 0 <= step < len(MAGNIFICATIONS):
        raise ValueError(
            f"images of {mpp:g} um/px are at {20 * MPP_20X / mpp:.3g}x, but ZoomLDM's condition is for "
            f"{MAGNIFICATIONS[0]} to {MAGNIFICATIONS[-1]}; bring them to {MPP_20X} um/px, or {way_out}"
        )
    return MAGNIFICATIONS[step]


class ZoomEmbeddings:
    """A ViT and a magnification: the embeddings of the 20x patches that pictures cover.

    At 20x it is the picture itself. At coarser magnifications the cells are cut from the picture enlarged to 20x: 2 x 2
    at 10x, 4 x 4 at 5x, ... A picture that was shrunk from a wider field (`key.Surroundings`) is no exception: the
    sharper pixels of the field are not used, so that a condition is that of the 256 px alone, wherever they come from.
    """

    def __init__(self, vit: TimmFeatures, magnification: Magnification) -> None:
        """Raise ValueError for a magnification that is none of MAGNIFICATIONS."""
        if magnification not in MAGNIFICATIONS:
            raise ValueError(f"magnification must be one of {', '.join(MAGNIFICATIONS)}, got {magnification!r}")
        assert vit.vit is not None  # every TimmFeatures has its settings
        self.settings = ZoomSettings(magnification, vit.vit)
        self.level = MAGNIFICATIONS.index(magnification)  # as ZoomConditioning numbers them
        self.side = 2**self.level  # cells
        self.width, _ = vit.blocks[0]
        self.digest, self.name = vit.digest, vit.name
        self._vit = vit

    def __str__(self) -> str:
        """One line for people."""
        cells = "the 256 px that the model is shown"
        if self.side > 1:
            cells = f"the {self.side} x {self.side} cells of {cells}, enlarged to 20x and so blurred"
        model = f"{self.name} ({self.settings.vit.architecture}, {self.settings.vit.input_px} px)"
        return f"condition at {self.settings.magnification}: embeddings of {model} for {cells}"

    def __call__(self, images: Images) -> torch.Tensor:
        """Return the embeddings of the cells of pictures: uint8 RGB (N, 256, 256, 3) -> (N, D, side, side).

        The ViT runs on N cells at a time. Raises ValueError for one that does not give one embedding an image.
        """
        cells = self._cells(images)
        embeddings = torch.cat([self._vit.embed(some) for some in cells.split(len(images))])
        if embeddings.ndim != 2:
            raise ValueError(
                f"the ViT {self.name} gives an embedding of each token (its global_pool is ''), but ZoomLDM takes one "
                "of each cell; write token for global_pool in its config.json"
            )
        return embeddings.unflatten(0, (len(images), self.side, self.side)).permute(0, 3, 1, 2)

    def _cells(self, images: Images) -> torch.Tensor:
        """Cut pictures, enlarged to 20x, into cells: (N, 256, 256, 3) -> (N * side**2, 256, 256, 3) uint8, row by row.

        One picture is enlarged at a time: in float32 it takes up to 200 MB.
        """
        pixels, cells = channels_first(images, self._vit.device), []
        for picture in pixels.split(1):
            enlarged = picture
            if self.side > 1:
                enlarged = F.interpolate(picture, scale_factor=self.side, mode="bicubic").round().clamp(0, 255)
            grid = enlarged[0].to(torch.uint8).unflatten(2, (-1, PATCH_PX)).unflatten(1, (-1, PATCH_PX))
            cells.append(grid.permute(1, 3, 2, 4, 0).flatten(0, 1))  # (3, h, 256, w, 256) -> (h * w, 256, 256, 3)
        return torch.cat(cells)
