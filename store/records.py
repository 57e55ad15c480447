"""Completion records: one small file per unit of work, written last, that says what is whole."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import google_crc32c
import numpy as np

from pathseg.store.blocks import format_blocks, parse_blocks
from pathseg.store.errors import Damaged
from pathseg.store.location.location import Location

FOLDER = "_done"
PIXELS = "pixels"
WHOLE, LACKING = ".json", ".lacking.json"
REMEMBERED = 10_000  # images whose records stay in memory, a few kB each: far from a store each is a request
RECORD = re.compile(rf"{FOLDER}/(pixels|t(?:0|[1-9]\d*)/[\d,-]+)/(\d{{6,}})(\.lacking)?\.json")
Checksums = Mapping[str, Sequence[int | None]]  # array name -> CRC-32C per image of the unit, None = not there


def checksum(array: np.ndarray) -> int:
    """CRC-32C of an array's bytes in C order, little endian."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return int(google_crc32c.value(little.reshape(-1).view(np.uint8)))


def seal(body: dict) -> bytes:
    """A JSON object with a CRC-32C of itself, so that damage to it shows."""
    text = json.dumps(body, sort_keys=True)
    return json.dumps({"body": body, "crc32c": int(google_crc32c.value(text.encode()))}, sort_keys=True).encode()


def unseal(data: bytes, *, name: str) -> dict:
    """The inverse of `seal`. Raises Damaged when a single bit has changed."""
    try:
        body = json.loads(data)["body"]
    except (ValueError, KeyError, TypeError) as e:
        raise Damaged(f"{name} is damaged: {e}") from e
    if not isinstance(body, dict) or seal(body) != data:
        raise Damaged(f"{name} is damaged: its own checksum does not fit")
    return body


def features_part(t: int, blocks: Iterable[int]) -> str:
    """Name of the part of the work that is a timestep's blocks: `t50/4-6`."""
    return f"t{t}/{format_blocks(blocks)}"


class Records:
    """The records of one store. A part is `pixels` or a timestep's blocks; a unit is a run of images.

    A record lies at `_done/<part>/<unit>.json` and holds the CRC-32C of each array for each image of the unit. So the
    names alone say what is done, and the contents what it must read as. A unit of which an image was set aside ends
    in `.lacking.json` until it is made whole.
    """

    def __init__(self, location: Location, *, images_per_unit: int) -> None:
        self._location, self._per_unit = location, images_per_unit
        self._whole: dict[str, set[int]] = defaultdict(set)
        self._lacking: dict[str, dict[int, set[int]]] = defaultdict(dict)  # part -> unit -> offsets that are there
        self._bodies: dict[str, dict] = {}  # the records read last, by name
        for name in location.names(FOLDER):
            if (match := RECORD.fullmatch(name)) is None:
                continue
            part, unit = match[1], int(match[2])
            if match[3]:
                self._lacking[part][unit] = self._offsets(name)
            else:
                self._whole[part].add(unit)

    def write(self, part: str, unit: int, checksums: Checksums) -> None:
        """Commit a unit: the last act, after everything it speaks of is in place."""
        there = {i for sums in checksums.values() for i, crc in enumerate(sums) if crc is not None}
        count = max(len(sums) for sums in checksums.values())
        whole = len(there) == count
        body = {"part": part, "unit": unit, "crc32c": {name: list(sums) for name, sums in checksums.items()}}
        self._location.write(self.name(part, unit, whole=whole), seal(body))
        self._bodies.pop(self.name(part, unit, whole=whole), None)
        if whole:
            self._location.remove(self.name(part, unit, whole=False))
            self._lacking[part].pop(unit, None)
            self._whole[part].add(unit)
        else:
            self._lacking[part][unit] = there

    def sweep(self) -> None:
        """Remove what a run left that was killed just after it had made a lacking unit whole."""
        for part, units in self._lacking.items():
            for unit in units.keys() & self._whole.get(part, set()):
                self._location.remove(self.name(part, unit, whole=False))
                del units[unit]

    def refresh(self, part: str, unit: int) -> bool:
        """Look again whether somebody has made a unit whole since."""
        if unit not in self._whole.get(part, ()) and self._location.exists(self.name(part, unit)):
            self._whole[part].add(unit)
        return unit in self._whole.get(part, ())

    def drop(self, part: str, unit: int) -> None:
        """Forget a unit, so that the next run makes it again."""
        for whole in (True, False):
            self._location.remove(self.name(part, unit, whole=whole))
            self._bodies.pop(self.name(part, unit, whole=whole), None)
        self._whole[part].discard(unit)
        self._lacking[part].pop(unit, None)

    def expected(self, part: str, array: str, index: int) -> int:
        """The CRC-32C an image of an array must have. Raises Damaged when the record cannot be read."""
        unit, offset = divmod(index, self._per_unit)
        crc = self.read(part, unit)["crc32c"].get(array, ())[offset : offset + 1]
        if not crc or crc[0] is None:
            raise Damaged(f"the record of {part}, unit {unit} in {self._location} says nothing of {array}")
        return crc[0]

    def read(self, part: str, unit: int) -> dict:
        """What a record says. Raises Damaged when it is not what was written."""
        name = self.name(part, unit, whole=unit in self._whole.get(part, ()))
        body = self._bodies.get(name)  # once: another thread may be writing
        if body is None:
            try:
                body = unseal(self._location.read(name), name=f"{self._location}/{name}")
            except FileNotFoundError as e:
                raise Damaged(f"{self._location}/{name} has gone") from e
            if (body["part"], body["unit"]) != (part, unit):
                raise Damaged(f"{self._location}/{name} is the record of {body['part']}, unit {body['unit']}")
            if len(self._bodies) * self._per_unit >= REMEMBERED:
                self._bodies.clear()
            self._bodies[name] = body
        return body

    def done(self, part: str, index: int) -> bool:
        """Whether an image's share of a part is there."""
        unit, offset = divmod(index, self._per_unit)
        return unit in self._whole.get(part, ()) or offset in self._lacking.get(part, {}).get(unit, ())

    def committed(self) -> list[tuple[str, int]]:
        """All recorded (part, unit), sorted."""
        return sorted({(p, u) for found in (self._whole, self._lacking) for p, units in found.items() for u in units})

    def timesteps(self) -> tuple[int, ...]:
        """The timesteps of which at least one unit is recorded, ascending."""
        parts = {part for found in (self._whole, self._lacking) for part, units in found.items() if units}
        return tuple(sorted({int(part[1:].split("/")[0]) for part in parts if part != PIXELS}))

    def part_of(self, t: int, block: int, index: int) -> str | None:
        """The part that holds a block of an image, or None."""
        for part in self._parts(t):
            if self.done(part, index) and block in parse_blocks(part.split("/")[1]):
                return part
        return None

    def missing(self, t: int, blocks: Iterable[int], index: int) -> tuple[int, ...]:
        """The blocks of an image that no part holds."""
        held = {b for part in self._parts(t) if self.done(part, index) for b in parse_blocks(part.split("/")[1])}
        return tuple(b for b in blocks if b not in held)

    def _parts(self, t: int) -> list[str]:
        return sorted(part for part in {*self._whole, *self._lacking} if part.startswith(f"t{t}/"))

    def _offsets(self, name: str) -> set[int]:
        try:
            sums = unseal(self._location.read(name), name=name)["crc32c"]
        except (Damaged, FileNotFoundError):  # made again, and `verify` names it; or made whole by now
            return set()
        return {i for crcs in sums.values() for i, crc in enumerate(crcs) if crc is not None}

    @staticmethod
    def name(part: str, unit: int, *, whole: bool = True) -> str:
        """Where a record lies."""
        return f"{FOLDER}/{part}/{unit:06d}{WHOLE if whole else LACKING}"
