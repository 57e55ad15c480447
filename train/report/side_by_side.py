"""The paper's Figures 2 and 3: rows of an image, its ground truth and what each system makes of it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from pathseg.store.features import FeatureStore
from pathseg.train.report.figures import Legend, legend, sheet
from pathseg.train.report.gallery import Picture, Stores, pictures, spread, worst_first
from pathseg.train.report.systems import System

ROWS = 4  # test images, from the first system's worst to its best
TISSUE, TRUTH, PREDICTION = 0, 1, 2  # of figures.PANELS


@dataclass(frozen=True)
class SideBySide:
    """The figure as a PNG file, and a line for each column: which run it shows."""

    png: bytes
    shown: tuple[str, ...]


def side_by_side(systems: Sequence[System], stores: Stores, title: str) -> SideBySide | None:
    """Each system's best run on the same test images; a picture that cannot be made stays empty.

    None where none can be made.
    """
    first = systems[0].run
    ids = spread(worst_first(first, first.test_split), ROWS)
    made = [_pictures(one, ids, stores) for one in systems]
    rows = []
    for name in ids:
        row = [found.get(name) for found in made]
        whole = next((picture for picture in row if picture is not None), None)
        if whole is not None:
            predictions = [picture and picture.panels[PREDICTION] for picture in row]
            rows.append((name, (whole.panels[TISSUE], whole.panels[TRUTH], *predictions)))
    if not rows:
        return None
    columns = ("image", "ground truth", *(textwrap.fill(one.name, 22) for one in systems))
    colours = Legend(legend(first.data["classes"], first.data["ignore"]).classes, ())
    picture = sheet(rows, colours, f"{first.test_split} of {title}, from the worst to the best image", columns)
    return SideBySide(picture, tuple(f"{one.name}: run {one.run.name}, {one.weights}" for one in systems))


def _pictures(system: System, ids: Sequence[str], stores: Stores) -> dict[str, Picture]:
    run = system.run
    store = stores.get(run.data["store"])
    known = [name for name in ids if name in run.quoted.per_image]
    if not isinstance(store, FeatureStore):
        return {}
    return {one.id: one for one in pictures(run, run.test_split, known, store) if isinstance(one, Picture)}
