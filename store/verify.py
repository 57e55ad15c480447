"""Re-reading a whole store: every file accounted for, every checksum computed again; and dropping what is damaged."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pathseg.store.blocks import array_name, parse_blocks
from pathseg.store.contents import Contents
from pathseg.store.errors import Damaged, StoreError
from pathseg.store.format.arrays import chunk_names, descriptions
from pathseg.store.format.manifest import NAME as MANIFEST
from pathseg.store.format.manifest import read_manifest
from pathseg.store.location.location import Location, open_location
from pathseg.store.records import PIXELS, RECORD, Records, checksum, seal
from pathseg.store.runtime.prefetch import prefetch_map

OURS = re.compile(r"\.partial$|/c/\d|^t\d+(/block\d\d)?/zarr\.json$")  # what a killed run may leave behind


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    damaged: not the bytes that were written. missing: recorded but not there, or not made yet. stray: left by a run
    that was cut off. foreign: nothing of ours; it is never removed. part and unit are set where work must be redone.
    """

    kind: Literal["damaged", "missing", "stray", "foreign"]
    name: str
    what: str
    part: str | None = None
    unit: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.what}"


class Verification:
    """One pass over a store; `findings` is empty when every byte is as it was written and nothing is missing."""

    def __init__(self, path: str | os.PathLike[str] | Location) -> None:
        """Raises StoreError when there is no store, or none whose description can be told from manifest or files."""
        self.location = open_location(path)
        self.findings: list[Finding] = []
        self.files = set(self.location.names())
        if not {MANIFEST, "zarr.json"} & self.files:
            raise StoreError(f"there is no feature store at {self.location}; make one with pathseg extract")
        self.manifest = self._manifest()
        root = json.loads(self.manifest["zarr.json"])
        self.contents = Contents.from_attributes(root["attributes"], store=str(self.location))
        self.records = Records(self.location, images_per_unit=self.contents.images_per_unit)
        self._memory: dict = {name: _buffer(text.encode()) for name, text in self.manifest.items()}
        self._group = zarr.open_group(MemoryStore(self._memory, read_only=True), mode="r", use_consolidated=False)
        self._known = {MANIFEST, *self.manifest}

    def run(self, on_unit: Callable[[], None] = lambda: None) -> list[Finding]:
        """Check descriptions, records, chunks and names; `on_unit` is called after each recorded unit."""
        self._check_descriptions()
        ours = {(p, u) for p, u in self.records.committed() if u < self.contents.units and self._has_arrays(p)}
        pieces = ((part, unit, array) for part, unit in sorted(ours) for array in _arrays_of(part, self.contents))
        fetched = prefetch_map(self._fetch, pieces, threads=self.location.concurrency, size_bytes=self._size_bytes)
        for part, unit in self.records.committed():
            if (part, unit) in ours:
                self._check_unit(part, unit, fetched)
            on_unit()
        self._check_completeness()
        for name in sorted(self.files - self._known):
            if OURS.search(name) or RECORD.fullmatch(name):
                self._find("stray", name, "no completion record speaks of it")
            else:
                self._find("foreign", name, "not written by pathseg")
        return self.findings

    def repair(self) -> None:
        """Restore descriptions, drop damaged and stray data so that `extract` makes just that again.

        Looks at everything again first, while no other run writes. Chunks that a sound record names and foreign files
        are left alone. Raises StoreError when another run is writing.
        """
        with self.location.writer_lock() as alone:
            if not alone:
                raise StoreError(f"another run is writing to {self.location}; repair when it has ended")
            now = Verification(self.location)
            now.run()
            now._mend()

    def _mend(self) -> None:
        broken = {(f.part, f.unit) for f in self.findings if f.part is not None and f.unit is not None}
        sound = {chunk for part, unit in self._sound(broken) for chunk in self._chunks(part, unit)}
        if any(finding.name == MANIFEST for finding in self.findings):
            self.location.write(MANIFEST, seal(self.manifest))
        for finding in self.findings:
            if finding.name in self.manifest:
                self.location.write(finding.name, self.manifest[finding.name].encode())
            elif finding.kind == "stray":
                self.location.remove(finding.name)
        for part, unit in broken:
            self.records.drop(part, unit)
            for chunk in self._chunks(part, unit) - sound:
                self.location.remove(chunk)

    def _sound(self, broken: set) -> list[tuple[str, int]]:
        """The recorded work of which nothing was found to be wrong."""
        known = (item for item in self.records.committed() if item[1] < self.contents.units and item not in broken)
        return [(part, unit) for part, unit in known if self._has_arrays(part)]

    def _chunks(self, part: str, unit: int) -> set[str]:
        """The files that a recorded unit of a part is made of."""
        return {name for array in _arrays_of(part, self.contents) for name in self._names(array, unit)}

    def _manifest(self) -> dict[str, str]:
        try:
            if manifest := read_manifest(self.location):
                return manifest
            self._find("missing", MANIFEST, "the copy of the store's description")
        except Damaged:
            self._find("damaged", MANIFEST, "the copy of the store's description")
        try:
            attributes = json.loads(self.location.read("zarr.json"))["attributes"]
            contents = Contents.from_attributes(attributes, store=str(self.location))
        except (FileNotFoundError, ValueError, KeyError, TypeError, StoreError) as e:
            raise StoreError(f"{self.location} has lost both its description and the copy; extract it anew") from e
        parts = {match[1] for name in self.files if (match := RECORD.fullmatch(name))}
        rebuilt = descriptions(contents, parts)
        for name in rebuilt.keys() & self.files:
            text = self.location.read(name).decode(errors="replace")
            if _same_json(text, rebuilt[name]):  # another release of zarr may write the same otherwise
                rebuilt[name] = text
        return rebuilt

    def _check_descriptions(self) -> None:
        there = [name for name in self.manifest if name in self.files]
        texts = prefetch_map(self.location.read, there, threads=self.location.concurrency, size_bytes=lambda name: 0)
        for name, text in self.manifest.items():
            if name not in self.files:
                self._find("missing", name, "the description of a part of the store")
            elif next(texts).decode(errors="replace") != text:
                self._find("damaged", name, "the description of a part of the store")

    def _check_unit(self, part: str, unit: int, fetched: Iterator[dict[str, bytes]]) -> None:
        name = self.records.name(part, unit, whole=self.records.name(part, unit) in self.files)
        self._known |= {name}
        self._known |= self._chunks(part, unit)
        try:
            sums = self.records.read(part, unit)["crc32c"]
        except Damaged as e:
            self._find("damaged", name, str(e), part, unit)
            sums = {}  # the chunks still carry checksums of their own
        for array in _arrays_of(part, self.contents):
            self._check_array(array, part, unit, sums.get(array), next(fetched))

    def _names(self, array: str, unit: int) -> list[str]:
        return [f"{array}/{chunk}" for chunk in chunk_names(self._group[array], unit, self.contents.images_per_unit)]

    def _size_bytes(self, piece: tuple[str, int, str]) -> int:
        array = self._group[piece[2]]
        return self.contents.images_per_unit * array.dtype.itemsize * math.prod(array.shape[1:])

    def _fetch(self, piece: tuple[str, int, str]) -> dict[str, bytes]:
        """The chunks of an array's unit, as far as they are there."""
        _, unit, array = piece
        return {name: self.location.read(name) for name in self._names(array, unit) if name in self.files}

    def _check_array(
        self, name: str, part: str, unit: int, sums: list[int | None] | None, data: dict[str, bytes]
    ) -> None:
        array, first = self._group[name], unit * self.contents.images_per_unit
        chunks = self._names(name, unit)
        gone = [chunk for chunk in chunks if chunk not in data]
        for chunk in gone:
            self._find("missing", chunk, self._images(unit), part, unit)
        if gone:
            return
        self._memory.update({chunk: _buffer(data[chunk]) for chunk in chunks})
        for index in range(first, min(first + self.contents.images_per_unit, len(self.contents.images))):
            stored = sums[index - first] if sums else None
            if why := _wrong(array, index, stored):  # also where an image was set aside: its blank has a checksum
                self._find("damaged", chunks[0], f"{self.contents.images[index].id}: {why}", part, unit)
        for chunk in chunks:
            del self._memory[chunk]

    def _check_completeness(self) -> None:
        for index, image in enumerate(self.contents.images):
            if not self.records.done(PIXELS, index):
                self._find("missing", "images", f"{image.id} was not extracted")
            for t in self.records.timesteps():
                stored = [b for b in self.contents.blocks if f"{array_name(t, b)}/zarr.json" in self.manifest]
                if lacking := self.records.missing(t, stored, index):
                    self._find("missing", f"t{t}", f"{image.id} lacks blocks {list(lacking)}")

    def _has_arrays(self, part: str) -> bool:
        try:
            return all(f"{array}/zarr.json" in self.manifest for array in _arrays_of(part, self.contents))
        except ValueError:  # no selection of blocks: not a record that we wrote
            return False

    def _images(self, unit: int) -> str:
        first, size = unit * self.contents.images_per_unit, self.contents.images_per_unit
        return ", ".join(image.id for image in self.contents.images[first : first + size])

    def _find(self, kind: str, name: str, what: str, part: str | None = None, unit: int | None = None) -> None:
        self.findings.append(Finding(kind, name, what, part, unit))  # type: ignore[arg-type]


def _same_json(one: str, other: str) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def _arrays_of(part: str, contents: Contents) -> list[str]:
    if part == PIXELS:
        return ["images", "masks", *(["instances"] if contents.has_instances else [])]
    t, blocks = part[1:].split("/")
    return [array_name(int(t), block) for block in parse_blocks(blocks)]


def _wrong(array: zarr.Array, index: int, stored: int | None) -> str | None:
    try:
        computed = checksum(np.asarray(array[index]))
    except (ValueError, RuntimeError, KeyError, TypeError, OverflowError, MemoryError) as e:
        return str(e).splitlines()[0]
    return None if stored in (None, computed) else f"stored checksum {stored}, computed {computed}"


def _buffer(data: bytes):
    return default_buffer_prototype().buffer.from_bytes(data)
