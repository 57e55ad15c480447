"""Test images of runs as pictures: tissue, ground truth, prediction and errors, read from the store and the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pathseg.store.classes import object_class
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.train.colours import NEUTRAL, blend, class_colours, overlay, painted_classes, to_uint8
from pathseg.train.report.systems import System
from pathseg.train.report.table_formats import score
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import natural_order
from pathseg.train.runs.record import RunData, SplitScores

FALSE_POSITIVE, FALSE_NEGATIVE = "#E69F00", "#0072B2"  # over gray tissue, never beside class colours
WRONG = "#D55E00"
PANELS = ("tissue", "ground truth", "prediction", "errors")
TISSUE, GROUND_TRUTH, PREDICTION = 0, 1, 2  # of PANELS
PANEL_PX = 352  # longest side of a panel: sharp at the 290 px that a wide page shows, small enough for twelve rows
COMPARED_IMAGES = 4  # of the figure of all systems, from the first system's worst to its best


@dataclass(frozen=True)
class Legend:
    """Names and hex colours of the classes in the overlays, and of the kinds of wrong pixels in the error map."""

    classes: tuple[tuple[str, str], ...]
    errors: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, data: RunData) -> Legend:
        """Return the legend of `panels` for the classes of a run."""
        classes, background, ignore = data.classes, data.background, data.ignore
        colours = class_colours(classes, background=background, ignore=ignore, own=data.colours)
        painted = [(classes[k], colours[k]) for k in painted_classes(classes, background=background, ignore=ignore)]
        if ignore is not None:
            painted.append(("not counted", NEUTRAL))
        target = object_class(classes, background=background, ignore=ignore)
        if target is None:
            return cls(tuple(painted), (("wrong class", WRONG),))
        name = classes[target]
        return cls(tuple(painted), ((f"false {name}", FALSE_POSITIVE), (f"missed {name}", FALSE_NEGATIVE)))


@dataclass(frozen=True)
class TestImage:
    """One test image: its scores and its wrong pixels in words, and its `PANELS`, each (h, w, 3) uint8.

    uncertainty (h, w, 3) uint8 is white where the ensemble disagrees most; None for a head without uncertainty.
    """

    __test__ = False  # pytest takes a class of this name for tests

    id: str
    scores: str
    errors: str
    panels: tuple[np.ndarray, ...]
    uncertainty: np.ndarray | None = None


@dataclass(frozen=True)
class MissingImage:
    """A test image that cannot be shown, and why."""

    id: str
    reason: str


class Stores:
    """The stores of the runs, each opened once."""

    def __init__(self) -> None:
        self._opened: dict[str, FeatureStore | str] = {}

    def get(self, path: str) -> FeatureStore | str:
        """Return the store, or one line on why it cannot be opened."""
        if path not in self._opened:
            try:
                self._opened[path] = FeatureStore.open(path)
            except (StoreError, OSError, ValueError) as e:
                self._opened[path] = str(e)
        return self._opened[path]


def worst_first(split: SplitScores) -> list[str]:
    """Return the ids of a split's images, lowest Dice first; those without a value come last."""
    dice = {image.id: 2.0 if image.scores.dice is None else image.scores.dice for image in split.per_image}
    return sorted(dice, key=lambda name: (dice[name], natural_order(name)))


def evenly_spaced(ids: Sequence[str], count: int) -> list[str]:
    """Return at most `count` ids from the first to the last."""
    ranks = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)
    return [ids[rank] for rank in ranks]


def read_test_images(run: FinishedRun, ids: Sequence[str], store: FeatureStore) -> Iterator[TestImage | MissingImage]:
    """Yield the images of the quoted split one after the other; what cannot be read is a MissingImage."""
    index_of = {name: index for index, name in enumerate(store.ids)}
    for name in ids:
        if name not in index_of:
            yield MissingImage(name, f"it is not in {store.location}")
            continue
        try:
            yield _read_test_image(run, store, index_of[name])
        except (StoreError, OSError, ValueError) as e:
            yield MissingImage(name, str(e))


def compare_systems(systems: Sequence[System], stores: Stores) -> list[tuple[str, tuple[np.ndarray | None, ...]]]:
    """Return rows of (image id, panels): tissue, ground truth and the prediction of each system's run.

    A prediction that cannot be read is None; an image without any is left out.
    """
    ids = evenly_spaced(worst_first(systems[0].run.test_scores), COMPARED_IMAGES)
    found = [_images_by_id(one.run, ids, stores) for one in systems]
    rows = []
    for name in ids:
        images = [by_id.get(name) for by_id in found]
        first = next((image for image in images if image is not None), None)
        if first is not None:
            predictions = (None if image is None else image.panels[PREDICTION] for image in images)
            rows.append((name, (first.panels[TISSUE], first.panels[GROUND_TRUTH], *predictions)))
    return rows


def panels(
    image: np.ndarray, true: np.ndarray, predicted: np.ndarray, data: RunData, *, longest_px: int = PANEL_PX
) -> tuple[np.ndarray, ...]:
    """Return tissue, ground truth and prediction over tissue, and errors over gray tissue: (h, w, 3) uint8 each.

    image: (H, W, 3) uint8. true, predicted: class codes (H, W). Classes are tinted and outlined, background is left
    as it is, ignored pixels of the ground truth are gray. Raises ValueError when the sizes differ.
    """
    if not image.shape[:2] == true.shape == predicted.shape:
        raise ValueError(
            f"image {image.shape[:2]}, ground truth {true.shape} and prediction {predicted.shape} must have one size; "
            "this prediction was made from another store, train the run again"
        )
    tissue, true, predicted = _shrink(image, true, predicted, longest_px)
    overlays = [
        overlay(tissue, codes, classes=data.classes, background=data.background, ignore=data.ignore, own=data.colours)
        for codes in (true, predicted)
    ]
    gray = tissue @ np.array([0.299, 0.587, 0.114], np.float32)  # (h, w)
    errors = np.repeat((0.45 * gray + 0.55 * 255)[..., None], 3, axis=2)  # (h, w, 3)
    if data.ignore is not None:
        for picture in (overlays[0], errors):
            blend(picture, true == data.ignore, NEUTRAL, 0.75)
    for pixels, (_, colour) in zip(_wrong(true, predicted, data), Legend.of(data).errors, strict=True):
        blend(errors, pixels, colour, 0.85)
    return tuple(to_uint8(picture) for picture in (tissue, *overlays, errors))


def error_shares(true: np.ndarray, predicted: np.ndarray, data: RunData) -> tuple[float, ...]:
    """Return the share (0..1) of the counted pixels in each colour of the legend's errors; 0 without counted pixels."""
    counted = true.size if data.ignore is None else np.count_nonzero(true != data.ignore)
    return tuple(np.count_nonzero(pixels) / max(1, counted) for pixels in _wrong(true, predicted, data))


def _read_test_image(run: FinishedRun, store: FeatureStore, index: int) -> TestImage:
    name = store.ids[index]
    true, predicted = store.mask(index), run.folder.read_prediction(name)
    _require_same_ground_truth(run, store, name, true)
    shown = panels(store.image(index), true, predicted, run.data)
    kinds = zip(Legend.of(run.data).errors, error_shares(true, predicted, run.data), strict=True)
    errors = ", ".join(f"{100 * share:.1f} % {kind}" for (kind, _), share in kinds)
    image, uncertainty = run.test_scores.by_image[name], run.folder.read_uncertainty(name)
    scores = f"Dice {score(image.scores.dice)} · accuracy {score(image.scores.accuracy)}"
    if image.uncertainty is not None:
        scores += f" · uncertainty {score(image.uncertainty)} nats"
    return TestImage(name, scores, errors, shown, None if uncertainty is None else _as_panel(uncertainty, shown[0]))


def _require_same_ground_truth(run: FinishedRun, store: FeatureStore, name: str, true: np.ndarray) -> None:
    """Raise ValueError where a mask is no longer the one that the run was scored against."""
    data, contents = run.data, store.contents
    if (data.classes, data.background, data.ignore) != (contents.classes, contents.background, contents.ignore):
        raise ValueError(f"the classes of {store.location} have changed since the run; train again for pictures")
    pixels = np.bincount(true.ravel(), minlength=256)
    if data.ignore is not None:
        pixels[data.ignore] = 0
    matrix = run.test_scores.matrices[name]
    if not np.array_equal(pixels[: len(matrix)], matrix.sum(axis=1)) or pixels[len(matrix) :].any():
        raise ValueError(f"its mask in {store.location} has changed since the run; train again for pictures")


def _images_by_id(run: FinishedRun, ids: Sequence[str], stores: Stores) -> dict[str, TestImage]:
    store = stores.get(run.data.store)
    if isinstance(store, str):
        return {}
    known = [name for name in ids if name in run.test_scores.by_image]
    return {image.id: image for image in read_test_images(run, known, store) if isinstance(image, TestImage)}


def _wrong(true: np.ndarray, predicted: np.ndarray, data: RunData) -> tuple[np.ndarray, ...]:
    """(H, W) bool for each kind of wrong pixels in the legend."""
    wrong = true != predicted
    if data.ignore is not None:
        wrong &= true != data.ignore
    target = object_class(data.classes, background=data.background, ignore=data.ignore)
    return (wrong,) if target is None else (wrong & (true != target), wrong & (true == target))


def _shrink(image: np.ndarray, true: np.ndarray, predicted: np.ndarray, px: int) -> tuple[np.ndarray, ...]:
    """Bring image (float32) and codes to a longest side of at most `px`."""
    scale = min(1.0, px / max(true.shape))
    size = (max(1, round(true.shape[1] * scale)), max(1, round(true.shape[0] * scale)))
    tissue = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    codes = [Image.fromarray(one.astype(np.uint8)) for one in (true, predicted)]
    smaller = (np.asarray(one.resize(size, Image.Resampling.NEAREST)) for one in codes)
    return np.asarray(tissue, np.float32), *smaller


def _as_panel(values: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """(H, W) uint8 as gray at the size of a panel, (h, w, 3)."""
    size = (panel.shape[1], panel.shape[0])
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BOX).convert("RGB"))
