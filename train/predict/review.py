"""Where to annotate next: the regions of an image whose prediction is least certain."""

from __future__ import annotations

from typing import NamedTuple

from pathseg.train.predict.mosaic import NOT_COMPUTED, ConfidenceMap

REGION_PX = 256  # side of a region at the head's um/px; a part of a mosaic tile, so that no region crosses tiles
LEAST_COMPUTED = 0.5  # of a region's pixels: the rest of it is background
SMALLEST = 0.25  # of a whole square: what the right and lower edge leave of it, or a small image, may be a region


class ReviewRegion(NamedTuple):
    """A square region within the image: first row and column at the head's um/px, and its mean uncertainty in nats."""

    y: int
    x: int
    uncertainty: float


def most_uncertain_regions(uncertainty: ConfidenceMap, count: int) -> list[ReviewRegion]:
    """Return at most `count` regions of REGION_PX px a side with the highest mean uncertainty, the highest first.

    Regions lie side by side from the first px on; those that the edges of the image cut off count from SMALLEST of a
    square on. The mean is over computed pixels, which are at least LEAST_COMPUTED of a region's. Of equally uncertain
    ones the upper left comes first.
    """
    found = []
    for rows, cols, steps in uncertainty.tiles():
        if steps.min() == NOT_COMPUTED:
            continue
        for y in range(0, steps.shape[0], REGION_PX):
            for x in range(0, steps.shape[1], REGION_PX):
                part = steps[y : y + REGION_PX, x : x + REGION_PX]
                if part.size < SMALLEST * REGION_PX**2:
                    continue
                computed = part[part != NOT_COMPUTED]
                if computed.size >= LEAST_COMPUTED * part.size:
                    found.append(ReviewRegion(rows.start + y, cols.start + x, uncertainty.mean(computed)))
    return sorted(found, key=lambda region: (-region.uncertainty, region.y, region.x))[:count]
