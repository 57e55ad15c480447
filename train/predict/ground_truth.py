"""Ground truth masks to score predictions by: checked against image and classes, then counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pathseg.store.sampling import InputImage
from pathseg.train.metrics.pixel import Scores, confusion_matrix, constant_prediction
from pathseg.train.predict.mosaic import Mosaic, resize_nearest
from pathseg.train.predict.records import Matrix, PredictedImage, PredictionMetrics
from pathseg.train.predict.trained_head import TrainedHead
from pathseg.train.runs.record import Constant, ImageScores


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth masks by image id.

    source: where the masks come from, for messages. read_mask: image id -> (h, w) integer codes, None without a mask.
    """

    source: str
    read_mask: Callable[[str], np.ndarray | None]

    def class_codes(self, image_id: str, head: TrainedHead) -> np.ndarray | None:
        """Return the class codes of an image's mask, at the mask's own size; None without a mask.

        With two classes (and padding) of which the first is the background, every code above 0 is the second class, so
        that masks of 0 and 255 and masks of numbered objects can be used as they are. Raises ValueError for a code
        without a class.
        """
        mask = self.read_mask(image_id)
        if mask is None:
            return None
        counted = [code for code in range(len(head.classes)) if code != head.ignore]
        if counted == [0, 1] and head.background == 0 and (head.ignore is None or head.sampling.padded):
            return (mask > 0).astype(np.uint8)
        unknown = (mask < 0) | (mask >= len(head.classes))
        if head.sampling.padded:  # the ignored class is padding, which no file holds
            unknown |= mask == head.ignore
        elif head.ignore is not None:
            unknown &= mask != head.ignore
        if unknown.any():
            raise ValueError(
                f"the mask of {image_id} in {self.source} holds the code {mask[unknown][0]}, but the head's classes "
                f"are {', '.join(f'{k} {name}' for k, name in enumerate(head.classes))}; number the mask like them"
            )
        return mask


def mask_digest(mask: np.ndarray, image: InputImage) -> str:
    """Return the hex SHA-256 of a mask's codes, which tells scores by it from scores by a mask that has changed since.

    A mask may be of any resolution. Raises ValueError for one of another aspect ratio (beyond a rounding of its sides)
    than its image: it belongs to a region of it, or to another image.
    """
    (h, w), (height, width) = mask.shape, image.file_px
    if mask.shape != tuple(image.size) and abs(h * width - w * height) > height + width:
        raise ValueError(
            f"the mask of {image.id} must have the shape of its image, {width}x{height} px, in any resolution, but "
            f"it is {w}x{h} px; give the mask made for this image"
        )
    return hashlib.sha256(np.ascontiguousarray(mask).tobytes()).hexdigest()


def mosaic_confusion(mosaic: Mosaic, mask: np.ndarray, head: TrainedHead) -> np.ndarray:
    """Return the confusion matrix (K, K) int64 of a mosaic at its own size, rows = ground truth.

    mask: class codes (h, w) in any resolution; each pixel takes the nearest of the mask.
    """
    matrix = np.zeros((len(head.classes), len(head.classes)), np.int64)
    for rows, cols, predicted in mosaic.tiles():
        expected = resize_nearest(mask, mosaic.size, rows, cols)
        matrix += confusion_matrix(expected, predicted, classes=len(head.classes), ignore=head.ignore)
    return matrix


def prediction_metrics(images: Sequence[PredictedImage], head: TrainedHead) -> PredictionMetrics:
    """Score the images that have a mask, pooled and each alone, with the report's pixel scores.

    Raises ValueError when none has one.
    """
    matrices = {image.id: np.array(image.confusion) for image in images if image.confusion is not None}
    if not matrices:
        raise ValueError("no image has a mask in the folder of --truth; a mask is called like its image, NAME.png")
    pooled = np.sum(list(matrices.values()), axis=0)
    constant = constant_prediction(pooled, head.classes.index(head.constant_class))
    return PredictionMetrics(
        run=head.name,
        images=len(matrices),
        without_mask=tuple(image.id for image in images if image.confusion is None),
        scores=Scores.of(pooled, head.ignore),
        confusion=as_matrix(pooled),
        constant=Constant(head.constant_class, Scores.of(constant, head.ignore)),
        per_image=tuple(
            ImageScores(name, Scores.of(matrix, head.ignore), as_matrix(matrix)) for name, matrix in matrices.items()
        ),
    )


def as_matrix(counts: np.ndarray) -> Matrix:
    """Return a confusion matrix (K, K) as the tuples of a record."""
    return tuple(tuple(row) for row in counts.tolist())
