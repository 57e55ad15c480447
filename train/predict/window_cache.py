"""A head's answers, window by window: in memory for an image, on disk for a slide, so that a killed run goes on."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, MemoryStore

JOURNAL, ABOUT = "done.txt", "about.json"
REMEMBERED = 6  # windows that are kept after reading: tiles beside each other share them


class Answers:
    """(M, h, w) maps for each kept window: probabilities of the classes, behind them an uncertainty if there is one.

    On disk they are float16, one chunk a window, with a checksum. A window counts as done when its number stands in
    the journal, which is written after the chunk; a run that was killed computes only the others. Without a folder
    they are float32 in memory.
    """

    def __init__(self, folder: Path | None, *, windows: int, shape: tuple[int, int, int], about: dict | None = None):
        """about: what the answers depend on; what lies there of anything else is removed first."""
        self._folder, self._done, self._recent = folder, set(), OrderedDict()
        store = MemoryStore()
        if folder is not None:
            self._done = _resumed(folder, about or {})
            store = LocalStore(folder / "windows.zarr")
        if self._done:
            self._array = zarr.open_array(store, mode="r+")
            return
        self._array = zarr.create_array(
            store,
            shape=(windows, *shape),
            chunks=(1, *shape),
            dtype="float32" if folder is None else "float16",
            fill_value=float("nan"),
            compressors=None if folder is None else [BloscCodec(cname="zstd", shuffle="shuffle"), Crc32cCodec()],
            config={"write_empty_chunks": True},
            overwrite=True,
        )

    def lacking(self, indices: Sequence[int]) -> bool:
        """Whether any of these windows has still to be computed."""
        return not self._done.issuperset(indices)

    def write(self, indices: Sequence[int], maps: np.ndarray) -> None:
        """Keep the maps (n, M, h, w) of windows and commit them."""
        for index, values in zip(indices, maps, strict=True):
            self._array[index] = values
        if self._folder is not None:
            with (self._folder / JOURNAL).open("a") as journal:
                journal.write("".join(f"{index}\n" for index in indices))
        self._done.update(indices)

    def read(self, index: int) -> np.ndarray:
        """(M, h, w) float32 of a window. Raises ValueError where its bytes are not those that were written."""
        if index not in self._recent:
            try:
                values = np.asarray(self._array[index]).astype(np.float32)
            except (ValueError, RuntimeError) as e:
                raise ValueError(f"window {index} in {self._folder} is damaged: {e}; delete that folder") from e
            if np.isnan(values).any():  # what Zarr gives for a chunk that is not there
                raise ValueError(f"window {index} in {self._folder} has gone; delete that folder")
            self._recent[index] = values
            if len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
        self._recent.move_to_end(index)
        return self._recent[index]

    def remove(self) -> None:
        """Delete what lies on the disk."""
        if self._folder is not None:
            shutil.rmtree(self._folder)
            with suppress(OSError):  # others work beside it
                self._folder.parent.rmdir()


def _resumed(folder: Path, about: dict) -> set[int]:
    """The windows that an earlier run has finished; a folder of another make is emptied."""
    text = json.dumps(about, sort_keys=True)
    if (folder / ABOUT).is_file() and (folder / ABOUT).read_text() == text:
        if not (folder / JOURNAL).is_file():
            return set()
        *lines, _ = (folder / JOURNAL).read_text().split("\n")  # a line without its end was cut off
        (folder / JOURNAL).write_text("".join(f"{line}\n" for line in lines))
        return {int(line) for line in lines}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / ABOUT).write_text(text)
    return set()
