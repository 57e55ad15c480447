"""A cache of predicted windows: in memory for an image, on disk for a slide, so that a killed run can be resumed."""

from __future__ import annotations

import re
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from pathseg.store.errors import StoreError
from pathseg.store.format.chunks import read_chunks
from pathseg.store.location.local import LocalFolder, RegularFilesStore
from pathseg.store.records import checksum
from pathseg.store.runtime.atomic_files import write_atomic
from pathseg.store.runtime.regular_files import read_file
from pathseg.train.predict.records import WindowCacheIdentity

JOURNAL, IDENTITY, ARRAY, METADATA = "done.txt", "about.json", "windows.zarr", "zarr.json"
JOURNAL_LINE = re.compile(rb"^([0-9]{1,9}) ([0-9]{1,10})\n", re.MULTILINE)  # without its end it was cut off by a kill
RECENT_WINDOWS = 6  # kept decoded: neighbouring tiles of the mosaic share them
BLOSC = Blosc(cname="lz4", shuffle=Blosc.BITSHUFFLE)  # zstd takes ten times as long for a tenth less


class WindowCache:
    """Maps (M, h, w) of each selected window: the probabilities of K classes, then the uncertainty if the head has one.

    So M = K, or K + 1 with an uncertainty map.

    Windows are counted from 0 in the order of `SlidingWindow.selected`. Make one with `in_memory` or `on_disk`.
    """

    def __init__(self, folder: Path | None, array: zarr.Array | None, complete: Mapping[int, int]) -> None:
        """folder, array: where windows lie on disk. complete: window -> CRC-32C of its maps there."""
        self._folder, self._array, self._complete = folder, array, dict(complete)
        self._in_memory: dict[int, np.ndarray] = {}
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()

    @classmethod
    def in_memory(cls) -> WindowCache:
        """Make an empty cache, float32."""
        return cls(None, None, {})

    @classmethod
    def on_disk(cls, folder: Path, identity: WindowCacheIdentity, *, shape: tuple[int, int, int]) -> WindowCache:
        """Open or make the cache of windows (M, h, w) with this identity; what a folder has of another is deleted.

        Windows are float16, one chunk with a checksum each. A window counts as complete once its index and checksum are
        in the journal, which is written after the chunk.
        """
        complete = _completed_windows(folder, identity)
        metadata = _array_metadata(len(identity.windows), shape)
        write_atomic(folder / ARRAY / METADATA, metadata)  # not as found: it may be damaged
        return cls(folder, zarr.open_array(RegularFilesStore(folder / ARRAY), mode="r+", zarr_format=3), complete)

    def complete(self, indices: Iterable[int]) -> bool:
        """Return whether all of these windows have been computed."""
        return self._complete.keys() >= set(indices)

    def write(self, indices: Sequence[int], maps: np.ndarray) -> None:
        """Write the maps (n, M, h, w) of n windows and record them as complete."""
        windows = dict(zip(indices, maps, strict=True))
        if self._folder is None or self._array is None:
            self._in_memory |= windows
            self._complete |= dict.fromkeys(windows, 0)
            return
        written = {}
        for index, values in windows.items():
            self._array[index] = values
            written[index] = checksum(values.astype(self._array.dtype))
        with (self._folder / JOURNAL).open("a") as journal:
            journal.write("".join(f"{index} {crc}\n" for index, crc in written.items()))
        self._complete |= written

    def read(self, index: int) -> np.ndarray:
        """Return the maps of a window, (M, h, w) float32. Raises ValueError where its chunk is damaged or missing."""
        if index in self._in_memory:
            return self._in_memory[index]
        if index not in self._recent:
            self._recent[index] = self._read(index)
            if len(self._recent) > RECENT_WINDOWS:
                self._recent.popitem(last=False)
        self._recent.move_to_end(index)
        return self._recent[index]

    def _read(self, index: int) -> np.ndarray:
        assert self._folder is not None and self._array is not None, "windows in memory are not read"
        values = np.empty(self._array.shape[1:], "<f2")
        try:
            crc = read_chunks(LocalFolder(self._folder), [f"{ARRAY}/c/{index}/0/0/0"], values, BLOSC)
        except FileNotFoundError as e:
            raise ValueError(f"window {index} in {self._folder} is missing; delete that folder") from e
        except (ValueError, RuntimeError, StoreError) as e:
            raise ValueError(f"window {index} in {self._folder} is damaged: {e}; delete that folder") from e
        if crc != self._complete[index]:
            raise ValueError(f"window {index} in {self._folder} is another one; delete that folder")
        return values.astype(np.float32)


def _array_metadata(windows: int, shape: tuple[int, int, int]) -> bytes:
    """Return the zarr.json of a cache on disk."""
    memory: dict = {}
    blosc = BloscCodec(cname=BLOSC.cname, clevel=BLOSC.clevel, shuffle="bitshuffle")
    zarr.create_array(
        MemoryStore(memory),
        shape=(windows, *shape),
        chunks=(1, *shape),
        dtype="float16",
        fill_value=float("nan"),
        compressors=[blosc, Crc32cCodec()],
        config={"write_empty_chunks": True},
        dimension_names=("window", "map", "row", "column"),
        zarr_format=3,
    )
    return memory[METADATA].to_bytes()


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
