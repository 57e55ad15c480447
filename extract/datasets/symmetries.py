"""Turned and flipped training images as further samples of a data set: `extract --views flips`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pathseg.extract.datasets.registry import Dataset, Pixels, Sample
from pathseg.store.grid import fitted_size

ALL = (0, 1, 2, 3, 4, 5, 6, 7)
KEEPING_AXES = (0, 2, 4, 6)  # half a turn and both flips: height stays height


def with_symmetries(dataset: Dataset) -> Dataset:
    """Add the other symmetries of each training image, as samples of the same source and of one group.

    View k is the image after `turned(…, k)` and has the id `<id>_v<k>`; view 0 is the image itself under its own id, so
    that its noise does not change. An image that is square, in its file and at the data set's size, has the views 0 to
    7. Any other has the four that keep its axes (0, 2, 4, 6), so that tissue which a resize has stretched stays
    stretched along the same axis. Padding is not turned: it stays right and below. Images of other splits stay alone.
    Raises ValueError where such an id is taken.
    """
    samples = [view for sample in dataset.samples for view in _views(sample, dataset.size)]
    ids = {sample.id for sample in dataset.samples}
    if taken := next((sample for sample in samples if sample.view and sample.id in ids), None):
        raise ValueError(
            f"--views flips names a turned {taken.group} {taken.id}, but an image has this name already; rename it"
        )
    settings = {**dataset.preprocessing.settings, "views": "flips"}
    if dataset.preprocessing.padded:  # tells these stores from earlier ones, in which padding was turned with the image
        settings["padding_in_views"] = "kept"
    return dataclasses.replace(
        dataset,
        samples=tuple(samples),
        load=partial(_load, dataset.load, dataset.size if dataset.preprocessing.padded else None),
        load_surroundings=dataset.load_surroundings and partial(_load_surroundings, dataset.load_surroundings),
        files=partial(_files, dataset.files),
        load_mask=None if dataset.load_mask is None else partial(_load_mask, dataset.load_mask),
        preprocessing=dataclasses.replace(dataset.preprocessing, settings=settings),
        with_splits=None if dataset.with_splits is None else partial(_with_splits, dataset.with_splits),
    )


def _with_splits(with_splits: Callable[[Mapping[str, str]], Dataset], splits: Mapping[str, str]) -> Dataset:
    return with_symmetries(with_splits(splits))


def turned(values: np.ndarray, view: int) -> np.ndarray:
    """Turn (H, W, ...) by view % 4 quarter turns anticlockwise, then mirror it left to right from view 4 on."""
    values = np.rot90(values, view % 4)
    return np.ascontiguousarray(values[:, ::-1] if view >= 4 else values)


def _views(sample: Sample, size: tuple[int, int]) -> list[Sample]:
    if sample.split != "train":
        return [sample]
    square = sample.height == sample.width and size[0] == size[1]
    return [
        dataclasses.replace(sample, id=f"{sample.id}_v{view}" if view else sample.id, group=sample.id, view=view)
        for view in (ALL if square else KEEPING_AXES)
    ]


def _original(sample: Sample) -> Sample:
    """Return the sample that a view was made of, as the data set listed it."""
    return sample if sample.group is None else dataclasses.replace(sample, id=sample.group, group=None, view=0)


def _load(load: Callable[[Sample], Pixels], padded: tuple[int, int] | None, sample: Sample) -> Pixels:
    """Load a view. padded: the size that images are padded to, None where they fill theirs."""
    pixels = load(_original(sample))
    if not sample.view:
        return pixels
    filled = pixels.mask.shape if padded is None else fitted_size((sample.height, sample.width), padded)
    return Pixels(
        image=_turned_inside(pixels.image, filled, sample.view),
        mask=_turned_inside(pixels.mask, filled, sample.view),
        instances=None if pixels.instances is None else turned(pixels.instances, sample.view),
    )


def _turned_inside(values: np.ndarray, filled: tuple[int, ...], view: int) -> np.ndarray:
    """Turn the upper left (h, w) of (H, W, ...), which keeps its shape: it is square or keeps its axes."""
    height, width = filled
    result = values.copy()
    result[:height, :width] = turned(values[:height, :width], view)
    return result


def _load_mask(load_mask: Callable[[Sample], np.ndarray], sample: Sample) -> np.ndarray:
    return turned(load_mask(_original(sample)), sample.view)


def _load_surroundings(load: Callable[[Sample, int], np.ndarray], sample: Sample, margin: int) -> np.ndarray:
    return turned(load(_original(sample), margin), sample.view)


def _files(
    files: Callable[[Sample], tuple[Path | tuple[Path, ...], ...]], sample: Sample
) -> tuple[Path | tuple[Path, ...], ...]:
    return files(_original(sample))
