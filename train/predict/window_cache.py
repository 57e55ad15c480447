"""A cache of predicted windows: in memory for an image, on disk for a slide, so that a killed run can be resumed."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, MemoryStore

from pathseg.store.runtime.atomic_files import write_atomic
from pathseg.train.predict.records import WindowCacheIdentity

JOURNAL, IDENTITY, ARRAY = "done.txt", "about.json", "windows.zarr"
RECENT_WINDOWS = 6  # kept decoded: neighbouring tiles of the mosaic share them


class WindowCache:
    """Maps (M, h, w) of each selected window: the probabilities of K classes, then the uncertainty if the head has one.

    So M = K, or K + 1 with an uncertainty map.

    Windows are counted from 0 in the order of `SlidingWindow.selected`. Make one with `in_memory` or `on_disk`.
    """

    def __init__(self, array: zarr.Array, folder: Path | None, complete: Iterable[int]) -> None:
        self._array, self._folder, self._complete = array, folder, set(complete)
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()

    @classmethod
    def in_memory(cls, windows: int, *, shape: tuple[int, int, int]) -> WindowCache:
        """Make an empty cache of so many windows (M, h, w), float32."""
        return cls(_new_array(MemoryStore(), windows, shape, dtype="float32", compressors=None), None, ())

    @classmethod
    def on_disk(cls, folder: Path, identity: WindowCacheIdentity, *, shape: tuple[int, int, int]) -> WindowCache:
        """Open or make the cache with this identity in a folder; what is there of another identity is deleted first.

        Windows are float16, one chunk with a checksum each. A window counts as complete once its index is in the
        journal, which is written after the chunk.
        """
        complete, store = _completed_windows(folder, identity), LocalStore(folder / ARRAY)
        if complete:
            return cls(zarr.open_array(store, mode="r+", zarr_format=3), folder, complete)
        packed = [BloscCodec(cname="zstd", shuffle="shuffle"), Crc32cCodec()]
        array = _new_array(store, len(identity.windows), shape, dtype="float16", compressors=packed)
        return cls(array, folder, ())

    def complete(self, indices: Iterable[int]) -> bool:
        """Return whether all of these windows have been computed."""
        return self._complete.issuperset(indices)

    def write(self, indices: Sequence[int], maps: np.ndarray) -> None:
        """Write the maps (n, M, h, w) of n windows and record them as complete."""
        for index, values in zip(indices, maps, strict=True):
            self._array[index] = values
        if self._folder is not None:
            with (self._folder / JOURNAL).open("a") as journal:
                journal.write("".join(f"{index}\n" for index in indices))
        self._complete.update(indices)

    def read(self, index: int) -> np.ndarray:
        """Return the maps of a window, (M, h, w) float32. Raises ValueError where its chunk is damaged or missing."""
        if index not in self._recent:
            try:
                values = np.asarray(self._array[index]).astype(np.float32)
            except (ValueError, RuntimeError) as e:
                raise ValueError(f"window {index} in {self._folder} is damaged: {e}; delete that folder") from e
            if np.isnan(values).any():  # Zarr fills a missing chunk with the fill value
                raise ValueError(f"window {index} in {self._folder} is missing; delete that folder")
            self._recent[index] = values
            if len(self._recent) > RECENT_WINDOWS:
                self._recent.popitem(last=False)
        self._recent.move_to_end(index)
        return self._recent[index]


def _new_array(store: Any, windows: int, shape: tuple[int, int, int], *, dtype: str, compressors: Any) -> zarr.Array:
    return zarr.create_array(
        store,
        shape=(windows, *shape),
        chunks=(1, *shape),
        dtype=dtype,
        fill_value=float("nan"),
        compressors=compressors,
        config={"write_empty_chunks": True},
        dimension_names=("window", "map", "row", "column"),
        overwrite=True,
        zarr_format=3,
    )


def _completed_windows(folder: Path, identity: WindowCacheIdentity) -> set[int]:
    """The windows that an earlier run completed; a folder of another identity is emptied and gets this one."""
    if _recorded_identity(folder) != identity:
        shutil.rmtree(folder, ignore_errors=True)
        write_atomic(folder / IDENTITY, identity.to_json())
        return set()
    if not (folder / JOURNAL).is_file():
        return set()
    *lines, _ = (folder / JOURNAL).read_text().split("\n")  # a line without its end was cut off by a kill
    write_atomic(folder / JOURNAL, "".join(f"{line}\n" for line in lines).encode())
    return {int(line) for line in lines}


def _recorded_identity(folder: Path) -> WindowCacheIdentity | None:
    with suppress(FileNotFoundError, ValueError):  # a damaged file is of no known identity
        return WindowCacheIdentity.from_json((folder / IDENTITY).read_bytes(), source=str(folder / IDENTITY))
    return None
