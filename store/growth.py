"""Growth of a store: its description follows the data set, and what is stored stays.

The order of writes, after which a process may be killed each time: copies of the masks that are to be replaced, records
that no longer vouch for these masks, `_done/growth.json` with all descriptions that change, the descriptions of the
arrays, the root's, the manifest. From `growth.json` on the rest can be repeated from that file alone.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping

import numpy as np

from pathseg.store.contents import Contents
from pathseg.store.errors import Damaged, StoreError
from pathseg.store.features import FeatureStore, replaced_file
from pathseg.store.format.arrays import zarr_metadata
from pathseg.store.format.manifest import read_growth, replace_in_manifest
from pathseg.store.format.names import FOLDER, GROWTH, MANIFEST, REPLACED, ROOT
from pathseg.store.location.location import Location
from pathseg.store.records import PIXELS, seal

LABELS = ("masks", "instances")  # the arrays that follow the data set


def grow(store: FeatureStore, contents: Contents, relabelled: Mapping[int, Collection[str]]) -> None:
    """Give a store another description (`Contents.grown` of its own), and take back masks that are to be replaced.

    relabelled: index of an image -> those of LABELS that no longer are what the data set has. What the store lacks
    afterwards is written by `StoreWriter`. The caller holds `Location.writer_lock` alone.
    Raises StoreError, before anything is changed, when a description lies behind a link that leads out of the store.
    """
    location = store.location
    with location.metadata_lock():
        texts = _changed_texts(store, contents)
        for name in (*texts, *(f"{name}/{ROOT}" for name in LABELS if relabelled)):
            if obstacle := location.obstacle(name):
                raise StoreError(f"{location}/{name} cannot be changed: {obstacle}")
        if relabelled:
            _keep_replaced(store, relabelled)
        _withdraw(store, contents, relabelled, reshaped=_reshaped(store, texts))
        if texts:
            location.write(GROWTH, seal(texts))
            location.flush([GROWTH])
            finish_growth(location)


def finish_growth(location: Location) -> None:
    """Write the descriptions of a growth that was cut off, if there is one; the caller holds `metadata_lock`.

    Raises Damaged when the file that holds them, or the manifest, cannot be read.
    """
    texts = read_growth(location)
    if not texts:
        return
    for name in sorted(
        texts, key=lambda name: name == ROOT
    ):  # the root last: it names the images that arrays then have
        location.write(name, texts[name].encode())
    location.flush(texts)
    replace_in_manifest(location, texts)
    location.flush([MANIFEST])
    location.remove(GROWTH)


def _changed_texts(store: FeatureStore, contents: Contents) -> dict[str, str]:
    """Return the text of each zarr.json that changes with the description; of arrays only the shape does."""
    described = zarr_metadata(contents, store.manifest.array_sets())
    texts = {} if contents == store.contents else {ROOT: described[ROOT]}
    for name, text in store.manifest.texts.items():
        here, wanted = json.loads(text), json.loads(described.get(name, "{}"))
        if here.get("shape") == wanted.get("shape"):
            continue
        if here["shape"][1:] == wanted["shape"][1:]:  # all else stays as the release that created it wrote it
            texts[name] = json.dumps({**here, "shape": wanted["shape"]}, indent=2)
        else:
            texts[name] = described[name]
    return texts


def _reshaped(store: FeatureStore, texts: Mapping[str, str]) -> bool:
    """Return whether `instances` gets other rows and columns, so that every image's are written again."""
    text = texts.get(f"instances/{ROOT}")
    return text is not None and json.loads(text)["shape"][1:] != list(store.array("instances").shape[1:])


def _keep_replaced(store: FeatureStore, relabelled: Mapping[int, Collection[str]]) -> None:
    """Copy the masks that are to be replaced, for readers that have the store open; older copies are removed."""
    location, written = store.location, []
    for name in [name for name in location.names(f"{FOLDER}/replaced") if REPLACED.fullmatch(name)]:
        location.remove(name)
    for index, names in relabelled.items():
        for name in names:
            try:
                crc, values = store.stored(name, index, PIXELS)
            except Damaged:
                continue
            if values is not None and crc is not None:
                written.append(replaced_file(name, index, crc))
                location.write(written[-1], zlib.compress(np.ascontiguousarray(values).tobytes(), 1))
    location.flush(written)


def _withdraw(
    store: FeatureStore, contents: Contents, relabelled: Mapping[int, Collection[str]], *, reshaped: bool
) -> None:
    """Take back the records of masks that are to be replaced, and count the images that join the last unit."""
    withdrawn = []
    for arrays, unit in store.records.committed():
        images, taken = contents.unit_images(unit), dict[int, Collection[str]]()
        if arrays == PIXELS:
            taken = {i: relabelled[index] for i, index in enumerate(images) if index in relabelled}
            if reshaped:
                taken = {i: {*taken.get(i, ()), "instances"} for i in range(len(images))}
        if store.records.withdraw(arrays, unit, taken, images=len(images)):
            withdrawn += [arrays.record_file(unit), arrays.record_file(unit, complete=False)]
    store.location.flush(withdrawn)
