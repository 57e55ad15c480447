"""The images that the weights of a run have seen: its own, and those of the runs that it started from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pathseg.train.config import HeadConfig
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.record import RunConfig, RunData, SeenImages


def seen_images(folder: RunFolder, config: RunConfig, *, sources: Mapping[str, str]) -> SeenImages:
    """Return the training and validation images of a run and of its ancestors.

    A run records those of its ancestors. Of one that does not, the ancestors that still exist are read, as far as the
    first whose folder is gone, is damaged or holds other weights by now.

    sources: image id -> source as known today, for images of runs that recorded none.
    """
    seen, read = SeenImages(), set[Path]()
    while True:
        seen |= _own_images(config.data, sources)
        if config.data.ancestors is not None:
            return seen | config.data.ancestors
        read.add(folder.path.resolve())
        parent = _parent(folder, config)
        if parent is None or parent[0].path.resolve() in read:
            return seen
        folder, config = parent


def _own_images(data: RunData, sources: Mapping[str, str]) -> SeenImages:
    ids = [data.images.get(name, ()) for name in ("train", "val")]
    known = [
        {*data.image_sources.get(name, ()), *(sources[id_] for id_ in own if id_ in sources)}
        for name, own in zip(("train", "val"), ids, strict=True)
    ]
    return SeenImages(*(tuple(sorted(names)) for names in (*ids, *known)))


def _parent(folder: RunFolder, config: RunConfig) -> tuple[RunFolder, RunConfig] | None:
    """Return the run that a run started from, where it was or beside it; None where it cannot be read."""
    settings = config.settings
    if not isinstance(settings, HeadConfig) or settings.initial_weights is None:
        return None
    then = Path(settings.initial_weights.run)
    for run in (RunFolder(then), RunFolder(folder.path.parent / then.name)):
        try:
            if run.weights_digests().get(run.weights.name) == settings.initial_weights.sha256:
                return run, run.read_config()
        except (OSError, ValueError):  # damaged: it tells nothing
            continue
    return None
