"""The test images of a run as pictures: which ones are shown, read from the store, with what can be said of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.train.report.figures import error_shares, legend, panels
from pathseg.train.report.tables import number
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import natural_order
from pathseg.train.runs.split_scores import PartScores


@dataclass(frozen=True)
class Picture:
    """One test image: its id, a line about it, what is wrong in words, and the four pictures of `figures.PANELS`.

    unsure (h, w, 3) uint8 is a map of how unsure the head is, white where it cannot be more so; None where it says not.
    """

    id: str
    caption: str
    errors: str
    panels: tuple[np.ndarray, ...]
    unsure: np.ndarray | None = None


@dataclass(frozen=True)
class Lost:
    """A test image whose picture cannot be made, and why."""

    id: str
    reason: str


class Stores:
    """The stores that runs name, each opened once; one that cannot be opened keeps its reason."""

    def __init__(self) -> None:
        self._opened: dict[str, FeatureStore | str] = {}

    def get(self, path: str) -> FeatureStore | str:
        """The store, or one line why it cannot be had."""
        if path not in self._opened:
            try:
                self._opened[path] = FeatureStore.open(path)
            except (StoreError, OSError, ValueError) as e:
                self._opened[path] = str(e)
        return self._opened[path]


def worst_first(run: FinishedRun, split: str) -> list[str]:
    """Ids of a test part's images, lowest Dice of the image first; those without a value come last."""
    scores = run.parts[split].per_image
    return sorted(
        scores, key=lambda name: (2.0 if scores[name].dice is None else scores[name].dice, natural_order(name))
    )


def spread(ids: Sequence[str], count: int) -> list[str]:
    """At most `count` ids from the first to the last, evenly spaced."""
    ranks = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)
    return [ids[rank] for rank in ranks]


def pictures(run: FinishedRun, split: str, ids: Sequence[str], store: FeatureStore) -> Iterator[Picture | Lost]:
    """Make the pictures of these images one after the other; one that cannot be made is Lost, the rest goes on."""
    where = {name: index for index, name in enumerate(store.ids)}
    for name in ids:
        if name not in where:
            yield Lost(name, f"it is not in {store.location}")
            continue
        try:
            yield _picture(run, store, where[name], run.parts[split])
        except (StoreError, OSError, ValueError) as e:
            yield Lost(name, str(e))


def _picture(run: FinishedRun, store: FeatureStore, index: int, part: PartScores) -> Picture:
    classes, ignore, name = run.data["classes"], run.data["ignore"], store.ids[index]
    image, truth, predicted = store.image(index), store.mask(index), run.folder.read_prediction(name)
    made = panels(image, truth, predicted, classes=classes, ignore=ignore)
    shares = error_shares(truth, predicted, classes=classes, ignore=ignore)
    named = legend(classes, ignore).errors
    errors = ", ".join(f"{100 * share:.1f} % {name}" for (name, _), share in zip(named, shares, strict=True))
    scores, unsure = part.per_image[name], run.folder.read_uncertainty(name)
    caption = f"Dice {number(scores.dice)} · accuracy {number(scores.accuracy)}"
    if name in part.uncertainty:
        caption += f" · uncertainty {number(part.uncertainty[name])} nats"
    return Picture(name, caption, errors, made, None if unsure is None else _as_panel(unsure, made[0]))


def _as_panel(values: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """(H, W) uint8 in gray, at the size of a panel (h, w, 3)."""
    size = (panel.shape[1], panel.shape[0])
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BOX).convert("RGB"))
