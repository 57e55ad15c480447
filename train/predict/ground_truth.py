"""Masks to score predictions by: read, brought to classes and to the prediction's size, counted."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathseg.store.sampling import InputImage
from pathseg.train.metrics.pixel import Scores, confusion_matrix, constant_prediction
from pathseg.train.predict.mosaic import Canvas, nearest
from pathseg.train.predict.trained_head import TrainedHead
from pathseg.train.report.figures import is_background


@dataclass(frozen=True)
class Truth:
    """Masks by the id of their image. place: where they lie, for the record. mask: id -> (h, w) codes, None = none."""

    place: str
    mask: Callable[[str], np.ndarray | None]

    def read(self, image_id: str, head: TrainedHead) -> np.ndarray | None:
        """The class codes of an image's mask, at the mask's own size.

        With two classes of which the first is the background, every code above 0 is the second, so that masks of 0 and
        255 and masks of numbered objects can be used as they are. Raises ValueError for a code that is no class.
        """
        mask = self.mask(image_id)
        if mask is None:
            return None
        if len(head.classes) == 2 and is_background(head.classes[0]) and head.ignore is None:
            return (mask > 0).astype(np.uint8)
        odd = (mask < 0) | (mask >= len(head.classes))
        if head.ignore is not None:
            odd &= mask != head.ignore
        if odd.any():
            raise ValueError(
                f"the mask of {image_id} in {self.place} holds the code {mask[odd][0]}, but the head's classes are "
                f"{', '.join(f'{k} {name}' for k, name in enumerate(head.classes))}; number the mask like them"
            )
        return mask


def digest_for(mask: np.ndarray, picture: InputImage) -> str:
    """Hex SHA-256 of a mask's codes, so that scores by a mask that was changed since are not taken for scores by it.

    A mask may be of any resolution. Raises ValueError for one of another aspect ratio (beyond a rounding of its sides)
    than its picture: it is of a part, or of another image.
    """
    (h, w), (height, width) = mask.shape, picture.file_px
    if mask.shape != tuple(picture.size) and abs(h * width - w * height) > height + width:
        raise ValueError(
            f"the mask of {picture.id} must have the shape of its image, {width}x{height} px, in any resolution, but "
            f"it is {w}x{h} px; give the mask made for this image"
        )
    return hashlib.sha256(np.ascontiguousarray(mask)).hexdigest()


def count(canvas: Canvas, truth: np.ndarray, head: TrainedHead) -> np.ndarray:
    """The confusion matrix (K, K) of a canvas, rows truth, at the canvas' size; nearest pixel of the truth."""
    matrix = np.zeros((len(head.classes), len(head.classes)), np.int64)
    for rows, cols in canvas.tiles():
        there = nearest(truth, canvas.size, rows, cols)
        found = np.asarray(canvas.codes[0][rows, cols])
        matrix += confusion_matrix(there, found, classes=len(head.classes), ignore=head.ignore)
    return matrix


def score(records: Sequence[dict[str, Any]], head: TrainedHead) -> dict[str, Any]:
    """What metrics.json holds: the report's scores over the images that have a mask, and of each one alone.

    Raises ValueError when none has.
    """
    matrices = {r["id"]: np.array(r["confusion"]) for r in records if r.get("confusion") is not None}
    if not matrices:
        raise ValueError("no image has a mask in the folder of --truth; a mask is called like its image, NAME.png")
    whole = sum(matrices.values())
    constant = constant_prediction(whole, head.classes.index(head.constant))
    return {
        "run": head.name,
        "images": len(matrices),
        "without_mask": [record["id"] for record in records if record.get("confusion") is None],
        "scores": dataclasses.asdict(Scores.of(whole, head.ignore)),
        "confusion": whole.tolist(),
        "constant": {"class": head.constant, "scores": dataclasses.asdict(Scores.of(constant, head.ignore))},
        "per_image": [
            {"id": name, "scores": dataclasses.asdict(Scores.of(matrix, head.ignore)), "confusion": matrix.tolist()}
            for name, matrix in matrices.items()
        ],
    }
