"""Completion records: one small JSON file per unit of work, written last, with the checksums of what was written."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import google_crc32c
import msgspec
import numpy as np

from pathseg.store.blocks import format_blocks, parse_blocks
from pathseg.store.errors import Damaged
from pathseg.store.format.names import FOLDER, RECORD
from pathseg.store.location.location import Location
from pathseg.store.runtime.json_records import convert_json, decode_json

COMPLETE, INCOMPLETE = ".json", ".lacking.json"  # suffixes: all images of the unit are there, or some were set aside
CACHED_IMAGES = 10_000  # images whose records stay in memory, a few kB each: in S3 each read of a record is a request
Checksums = Mapping[str, Sequence[int | None]]  # array name -> CRC-32C of each image of the unit, None = set aside
Body = TypeVar("Body")


@dataclass(frozen=True)
class ArraySet:
    """Arrays that are written and recorded together: images and masks (t None), or some blocks at one timestep.

    `Contents.array_names` names them.
    """

    t: int | None = None
    blocks: tuple[int, ...] = ()

    @cached_property
    def name(self) -> str:
        """`pixels`, or timestep and blocks as in `t50/4-6`: the folder of its records below `_done`."""
        return "pixels" if self.t is None else f"t{self.t}/{format_blocks(self.blocks)}"

    @classmethod
    def from_name(cls, name: str) -> ArraySet:
        """Parse a name. Raises ValueError unless it is one that `name` gives."""
        return _parse_name(name)

    def record_file(self, unit: int, *, complete: bool = True) -> str:
        """Return the file name of the record of a unit: `_done/t50/4-6/000012.json`."""
        return f"{FOLDER}/{self.name}/{unit:06d}{COMPLETE if complete else INCOMPLETE}"


PIXELS = ArraySet()


@lru_cache(maxsize=1024)
def _parse_name(name: str) -> ArraySet:
    timestep, _, blocks = name.partition("/")
    if name == PIXELS.name:
        return PIXELS
    if timestep[:1] == "t" and timestep[1:].isdecimal():
        parsed = ArraySet(int(timestep[1:]), parse_blocks(blocks))
        if parsed.name == name:
            return parsed
    raise ValueError(f"{name[:80]!r} names no arrays of a completion record; expected pixels or, for example, t50/4-6")


def parse_record_file(name: str) -> tuple[ArraySet, int, bool] | None:
    """Return arrays, unit and whether the unit is complete from the file name of a record; None for other files."""
    if (match := RECORD.fullmatch(name)) is None:
        return None
    try:
        arrays = ArraySet.from_name(match["arrays"])
    except ValueError:
        return None
    parsed = arrays, int(match["unit"]), match["lacking"] is None
    return parsed if arrays.record_file(parsed[1], complete=parsed[2]) == name else None


@dataclass(frozen=True)
class CompletionRecord:
    """The content of a record: the CRC-32C of each array for each image of a unit, None for what is not there.

    That is an image set aside, one that joined the unit later, or a mask that is to be written again.
    sources: of pixels, the size and times of the files that each image was read from, None for one without files.
    """

    arrays: ArraySet
    unit: int
    checksums: Checksums
    sources: tuple[str | None, ...] = ()

    @property
    def written(self) -> frozenset[int]:
        """Positions in the unit of the images of which all arrays were written."""
        images = zip(*self.checksums.values(), strict=True)
        return frozenset(i for i, checksums in enumerate(images) if None not in checksums)

    @property
    def complete(self) -> bool:
        """Whether no image of the unit was set aside."""
        return len(self.written) == max(len(sums) for sums in self.checksums.values())

    def to_json(self) -> bytes:
        """Return the content of the file."""
        checksums = {name: list(sums) for name, sums in self.checksums.items()}
        sources = {"sources": list(self.sources)} if any(self.sources) else {}
        return seal({"part": self.arrays.name, "unit": self.unit, "crc32c": checksums, **sources})

    @classmethod
    def from_json(cls, data: bytes, *, source: str) -> CompletionRecord:
        """The inverse of `to_json`. Raises Damaged naming `source` when a single bit has changed."""
        body = unseal(data, _RecordBody, source=source)
        try:
            arrays = ArraySet.from_name(body.part)
            lengths = {len(values) for values in (*body.crc32c.values(), body.sources) if values}
            if len(lengths) > 1:
                raise ValueError("its arrays differ in the number of images")
        except ValueError as e:
            raise Damaged(f"{source} is damaged: {e}") from e
        return cls(arrays, body.unit, body.crc32c, body.sources)


_Checksums = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None, ...], msgspec.Meta(min_length=1)
]  # one image each


class _RecordBody(msgspec.Struct, frozen=True):
    """The JSON object in the file of a record."""

    part: str
    unit: Annotated[int, msgspec.Meta(ge=0)]
    crc32c: Annotated[dict[str, _Checksums], msgspec.Meta(min_length=1)]
    sources: tuple[str | None, ...] = ()


class Records:
    """Index of the completion records of a store, by arrays and unit; a unit is a run of `images_per_unit` images.

    Threads may look up records while another one writes them: what a thread iterates over is copied at once.

    The file names alone tell which units are complete. Only the records of units from which an image was set aside
    are read at the start.
    """

    def __init__(self, location: Location, *, images_per_unit: int, units: int | None = None) -> None:
        """units: of the store; records of others are not read. None: all are."""
        self._location, self._per_unit = location, images_per_unit
        self._complete: dict[ArraySet, set[int]] = defaultdict(set)
        self._incomplete: dict[ArraySet, dict[int, frozenset[int]]] = defaultdict(dict)  # unit -> positions written
        self._cache: dict[str, CompletionRecord] = {}  # by file name
        for name in location.names(FOLDER):
            if (parsed := parse_record_file(name)) is None:
                continue
            arrays, unit, complete = parsed
            if units is not None and unit >= units:
                continue
            if complete:
                self._complete[arrays].add(unit)
            else:
                self._incomplete[arrays][unit] = self._written(name)

    def write(self, arrays: ArraySet, unit: int, checksums: Checksums, *, sources: Sequence[str | None] = ()) -> None:
        """Write the record of a unit: the last step, after all arrays of the unit."""
        record = CompletionRecord(arrays, unit, checksums, tuple(sources))
        name = arrays.record_file(unit, complete=record.complete)
        self._location.write(name, record.to_json())
        self._cache.pop(name, None)
        if record.complete:
            self._location.remove(arrays.record_file(unit, complete=False))
            self._incomplete[arrays].pop(unit, None)
            self._complete[arrays].add(unit)
        else:
            self._incomplete[arrays][unit] = record.written

    def remove_superseded(self) -> None:
        """Remove incomplete records of complete units: a run was killed before it removed them itself."""
        for arrays, units in self._incomplete.items():
            for unit in units.keys() & self._complete.get(arrays, set()):
                self._location.remove(arrays.record_file(unit, complete=False))
                del units[unit]

    def refresh(self, arrays: ArraySet, unit: int) -> bool:
        """Return whether a unit is complete, also when another run has completed it since."""
        if unit not in self._complete.get(arrays, ()) and self._location.exists(arrays.record_file(unit)):
            self._complete[arrays].add(unit)
        return unit in self._complete.get(arrays, ())

    def withdraw(self, arrays: ArraySet, unit: int, withdrawn: Mapping[int, Collection[str]], *, images: int) -> bool:
        """Take back that arrays of images (position in the unit -> names) are written, and count `images` in the unit.

        The record without them is written before the one that vouches for them is removed. Returns whether there was
        anything to take back.
        """
        if (record := self.known(arrays, unit)) is None:
            return False
        joined = [None] * max(0, images - len(next(iter(record.checksums.values()))))
        checksums = {
            name: [None if name in withdrawn.get(i, ()) else crc for i, crc in enumerate([*sums, *joined])]
            for name, sums in record.checksums.items()
        }
        if checksums == {name: list(sums) for name, sums in record.checksums.items()}:
            return False
        self.write(arrays, unit, checksums, sources=[*record.sources, *joined] if record.sources else ())
        name = arrays.record_file(unit)
        self._location.remove(name)
        self._cache.pop(name, None)
        self._complete[arrays].discard(unit)
        return True

    def drop(self, arrays: ArraySet, unit: int) -> None:
        """Delete the record of a unit, so that the next run writes the unit again."""
        for complete in (True, False):
            name = arrays.record_file(unit, complete=complete)
            self._location.remove(name)
            self._cache.pop(name, None)
        self._complete[arrays].discard(unit)
        self._incomplete[arrays].pop(unit, None)

    def checksum_of(self, arrays: ArraySet, array: str, index: int) -> int:
        """Return the recorded CRC-32C of one image of an array. Raises Damaged when the record cannot be read."""
        unit, position = divmod(index, self._per_unit)
        crc = self.read(arrays, unit).checksums.get(array, ())[position : position + 1]
        if not crc or crc[0] is None:
            raise Damaged(f"the record of {arrays.name}, unit {unit} in {self._location} has no checksum of {array}")
        return crc[0]

    def read(self, arrays: ArraySet, unit: int) -> CompletionRecord:
        """Read the record of a unit. Raises Damaged when it is missing or is not what was written."""
        name = arrays.record_file(unit, complete=unit in self._complete.get(arrays, ()))
        record = self._cache.get(name)  # once: another thread may clear the cache
        if record is None:
            record = self.read_again(arrays, unit)
            if len(self._cache) * self._per_unit >= CACHED_IMAGES:
                self._cache.clear()
            self._cache[name] = record
        return record

    def read_again(self, arrays: ArraySet, unit: int) -> CompletionRecord:
        """Read the record of a unit as it is now, complete or not. Raises as `read`."""
        complete = unit in self._complete.get(arrays, ())
        for name in (arrays.record_file(unit, complete=complete), arrays.record_file(unit, complete=not complete)):
            try:
                record = CompletionRecord.from_json(self._location.read(name), source=f"{self._location}/{name}")
            except FileNotFoundError:
                continue
            if (record.arrays, record.unit) != (arrays, unit):
                raise Damaged(f"{self._location}/{name} is the record of {record.arrays.name}, unit {record.unit}")
            return record
        raise Damaged(f"{self._location}/{arrays.record_file(unit, complete=complete)} has gone")

    def known(self, arrays: ArraySet, unit: int) -> CompletionRecord | None:
        """Read the record of a unit, None where there is none or an incomplete one is damaged. Raises as `read`."""
        if unit in self._complete.get(arrays, ()):
            return self.read(arrays, unit)
        try:
            return self.read(arrays, unit) if unit in self._incomplete.get(arrays, ()) else None
        except Damaged:  # the unit is written again
            return None

    def recorded_checksum(self, arrays: ArraySet, array: str, index: int) -> int | None:
        """Return the recorded CRC-32C of one image of an array, None where it is not written. Raises as `read`."""
        unit, position = divmod(index, self._per_unit)
        record = self.known(arrays, unit)
        sums = () if record is None else record.checksums.get(array, ())
        return sums[position] if position < len(sums) else None

    def done(self, arrays: ArraySet, index: int) -> bool:
        """Return whether these arrays of an image are written and recorded."""
        unit, position = divmod(index, self._per_unit)
        return unit in self._complete.get(arrays, ()) or position in self._incomplete.get(arrays, {}).get(unit, ())

    def committed(self) -> list[tuple[ArraySet, int]]:
        """Return arrays and unit of every record, sorted by name and unit."""
        found = {(arrays, unit) for arrays, units in self._by_arrays() for unit in tuple(units)}
        return sorted(found, key=lambda record: (record[0].name, record[1]))

    def timesteps(self) -> tuple[int, ...]:
        """Return the timesteps with at least one record, ascending."""
        recorded = {arrays.t for arrays, units in self._by_arrays() if units}
        return tuple(sorted(t for t in recorded if t is not None))

    def arrays_with(self, t: int, block: int, index: int) -> ArraySet | None:
        """Return the recorded arrays that include a block of an image, None when it is not written."""
        found = [arrays for arrays in self._at(t) if block in arrays.blocks and self.done(arrays, index)]
        return min(found, key=lambda arrays: arrays.name, default=None)

    def missing(self, t: int, blocks: Iterable[int], index: int) -> tuple[int, ...]:
        """Return those of `blocks` of an image that are not written."""
        written = {block for arrays in self._at(t) if self.done(arrays, index) for block in arrays.blocks}
        return tuple(block for block in blocks if block not in written)

    def _by_arrays(self) -> tuple[tuple[ArraySet, Collection[int]], ...]:
        """Return arrays and units of all complete, then of all incomplete records."""
        return (*self._complete.items(), *self._incomplete.items())

    def _at(self, t: int) -> set[ArraySet]:
        return {arrays for arrays, _ in self._by_arrays() if arrays.t == t}

    def _written(self, name: str) -> frozenset[int]:
        try:
            return CompletionRecord.from_json(self._location.read(name), source=name).written
        except (Damaged, FileNotFoundError):  # written again, and reported by `verify`; or complete by now
            return frozenset()


def file_states(files: Iterable[Path | Sequence[Path]]) -> str | None:
    """Return size and times of files: equal ones have not changed. None without files. Raises OSError.

    Files in a sequence count as one, as those of a slide that has several: their size in all and the latest times.
    Times of change (ctime) are in it, because a copy can keep the time of modification.
    """
    states = []
    for one in files:
        found = [path.stat() for path in ([one] if isinstance(one, Path) else one)]
        modified, changed = max(file.st_mtime_ns for file in found), max(file.st_ctime_ns for file in found)
        states.append(f"{sum(file.st_size for file in found)}:{modified}:{changed}")
    return " ".join(states) or None


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32C of an array's bytes in C order, little endian."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return int(google_crc32c.value(little.reshape(-1).view(np.uint8)))


def seal(body: Mapping[str, Any]) -> bytes:
    """Encode a JSON object together with its CRC-32C."""
    text = json.dumps(body, sort_keys=True)
    return json.dumps({"body": body, "crc32c": int(google_crc32c.value(text.encode()))}, sort_keys=True).encode()


def unseal(data: bytes, kind: type[Body], *, source: str) -> Body:
    """The inverse of `seal`, converted to `kind`. Raises Damaged naming `source` when a single bit has changed."""
    try:
        body = decode_json(data, _Sealed, source=source).body
        if seal(body) != data:
            raise Damaged(f"{source} is damaged: its own checksum does not fit")
        return convert_json(body, kind, source=source)
    except RecursionError as e:
        raise Damaged(f"{source} is damaged: its JSON is nested too deeply") from e
    except ValueError as e:
        raise Damaged(str(e)) from e


class _Sealed(msgspec.Struct, frozen=True):
    """The JSON object that `seal` writes, without its checksum."""

    body: dict[str, Any]
