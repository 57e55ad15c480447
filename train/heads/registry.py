"""Networks by the names that the command line and config.json use."""

from __future__ import annotations

from pathseg.train.heads.baselines import VGG16FCN8, ResUNet
from pathseg.train.heads.fcn import FCNHead
from pathseg.train.heads.linear import LinearHead
from pathseg.train.heads.pixel_ensemble import PixelEnsemble
from pathseg.train.heads.scalar_mix import ScalarMixHead

HEADS: dict[str, type[FCNHead | ScalarMixHead | LinearHead | PixelEnsemble]] = {
    "fcn": FCNHead,
    "scalar-mix": ScalarMixHead,
    "linear": LinearHead,
    "pixel-ensemble": PixelEnsemble,
}
BASELINES: dict[str, type[ResUNet | VGG16FCN8]] = {"res-unet": ResUNet, "vgg16-fcn8": VGG16FCN8}
