"""Resolutions that scans of tissue have, in um/px."""

from __future__ import annotations

from typing import Literal

# where the um/px of an image is from: a flag, tags of the file or properties of a slide, the file's name, or that of
# the training images, which is assumed
MppSource = Literal["flag", "tag", "name", "training"]

MIN_MPP, MAX_MPP = 0.05, 10.0  # a 100x objective has 0.1, the overview of a slide 4; a tag of 2400 dpi would be 10.6


def plausible_mpp(mpp: float) -> bool:
    """Return whether a scan can have this resolution in um/px; False for inf and nan."""
    return MIN_MPP <= mpp <= MAX_MPP


def require_plausible_mpp(mpp: float, *, source: str, flag: str) -> None:
    """Raise ValueError, naming source, value and flag, for um/px that no scan of tissue has."""
    if not plausible_mpp(mpp):
        raise ValueError(
            f"{source}: {mpp:g} um/px is none that scans have ({MIN_MPP:g} to {MAX_MPP:g}); pass the true {flag}"
        )
