"""A cache of predicted windows: in memory for an image, on disk for a slide, so that a killed run can be resumed."""

from __future__ import annotations

import re
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from pathseg.store.location.local import RegularFilesStore
from pathseg.store.records import checksum
from pathseg.store.runtime.atomic_files import write_atomic
from pathseg.store.runtime.regular_files import read_file
from pathseg.train.predict.records import WindowCacheIdentity

JOURNAL, IDENTITY, ARRAY, METADATA = "done.txt", "about.json", "windows.zarr", "zarr.json"
JOURNAL_LINE = re.compile(rb"^([0-9]{1,9}) ([0-9]{1,10})\n", re.MULTILINE)  # without its end it was cut off by a kill
RECENT_WINDOWS = 6  # kept decoded: neighbouring tiles of the mosaic share them


class WindowCache:
    """Maps (M, h, w) of each selected window: the probabilities of K classes, then the uncertainty if the head has one.

    So M = K, or K + 1 with an uncertainty map.

    Windows are counted from 0 in the order of `SlidingWindow.selected`. Make one with `in_memory` or `on_disk`.
    """

    def __init__(self, array: zarr.Array, folder: Path | None, complete: Mapping[int, int]) -> None:
        """complete: window -> CRC-32C of its maps as the array holds them."""
        self._array, self._folder, self._complete = array, folder, dict(complete)
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()

    @classmethod
    def in_memory(cls, windows: int, *, shape: tuple[int, int, int]) -> WindowCache:
        """Make an empty cache of so many windows (M, h, w), float32."""
        return cls(_new_array(MemoryStore(), windows, shape, dtype="float32", compressors=None), None, {})

    @classmethod
    def on_disk(cls, folder: Path, identity: WindowCacheIdentity, *, shape: tuple[int, int, int]) -> WindowCache:
        """Open or make the cache with this identity in a folder; what is there of another identity is deleted first.

        Windows are float16, one chunk with a checksum each. A window counts as complete once its index and checksum are
        in the journal, which is written after the chunk.
        """
        complete = _completed_windows(folder, identity)
        packed = [BloscCodec(cname="zstd", shuffle="shuffle"), Crc32cCodec()]
        memory: dict = {}
        _new_array(MemoryStore(memory), len(identity.windows), shape, dtype="float16", compressors=packed)
        write_atomic(folder / ARRAY / METADATA, memory[METADATA].to_bytes())  # not as found: it may be damaged
        return cls(zarr.open_array(RegularFilesStore(folder / ARRAY), mode="r+", zarr_format=3), folder, complete)

    def complete(self, indices: Iterable[int]) -> bool:
        """Return whether all of these windows have been computed."""
        return self._complete.keys() >= set(indices)

    def write(self, indices: Sequence[int], maps: np.ndarray) -> None:
        """Write the maps (n, M, h, w) of n windows and record them as complete."""
        written = {}
        for index, values in zip(indices, maps, strict=True):
            self._array[index] = values
            written[index] = checksum(values.astype(self._array.dtype))
        if self._folder is not None:
            with (self._folder / JOURNAL).open("a") as journal:
                journal.write("".join(f"{index} {crc}\n" for index, crc in written.items()))
        self._complete |= written

    def read(self, index: int) -> np.ndarray:
        """Return the maps of a window, (M, h, w) float32. Raises ValueError where its chunk is damaged or missing."""
        if index not in self._recent:
            try:
                values = np.asarray(self._array[index])
            except (ValueError, RuntimeError, OSError) as e:
                raise ValueError(f"window {index} in {self._folder} is damaged: {e}; delete that folder") from e
            if checksum(values) != self._complete[index]:  # Zarr fills a missing chunk with the fill value
                raise ValueError(f"window {index} in {self._folder} is missing or another one; delete that folder")
            self._recent[index] = values.astype(np.float32)
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


def _completed_windows(folder: Path, identity: WindowCacheIdentity) -> dict[int, int]:
    """The windows that an earlier run completed, with their checksums; a folder of another identity is emptied."""
    with suppress(OSError, ValueError):  # files that are missing or damaged are of no known identity
        found = WindowCacheIdentity.from_json(read_file(folder / IDENTITY), source=str(folder / IDENTITY))
        lines = JOURNAL_LINE.findall(read_file(folder / JOURNAL)) if found == identity else []
        if lines:
            write_atomic(folder / JOURNAL, b"".join(b"%b %b\n" % line for line in lines))
            return {int(index): int(crc) for index, crc in lines}
    shutil.rmtree(folder, ignore_errors=True)
    write_atomic(folder / IDENTITY, identity.to_json())
    return {}
