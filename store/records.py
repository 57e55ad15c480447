"""Completion records: one small file per unit of work, written last, that says what is whole."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

import google_crc32c
import numpy as np

from pathseg.store.blocks import format_blocks, parse_blocks
from pathseg.store.errors import Damaged
from pathseg.store.location import Location

FOLDER = "_done"
PIXELS = "pixels"


def checksum(array: np.ndarray) -> int:
    """CRC-32C of an array's bytes in C order, little endian."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return int(google_crc32c.value(little.reshape(-1).view(np.uint8)))


def features_part(t: int, blocks: Iterable[int]) -> str:
    """Name of the part of the work that is a timestep's blocks: `t50/4-6`."""
    return f"t{t}/{format_blocks(blocks)}"


class Records:
    """The records of one store. A part is `pixels` or a timestep's blocks; a unit is a number.

    A record lies at `_done/<part>/<unit>.json`, is never changed once written, and holds the CRC-32C of each array's
    share of the unit, so the names alone say what is done, and the contents what it must read as.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._done: dict[str, set[int]] = defaultdict(set)
        for name in location.names(FOLDER):
            part, _, file = name.removeprefix(f"{FOLDER}/").rpartition("/")
            if file.endswith(".json") and file[:-5].isdecimal():
                self._done[part].add(int(file[:-5]))

    def write(self, part: str, unit: int, checksums: Mapping[str, int]) -> None:
        """Commit a unit: the last act, after everything it speaks of is in place."""
        self._location.write(self._name(part, unit), json.dumps({"unit": unit, "crc32c": dict(checksums)}).encode())
        self._done[part].add(unit)

    def read(self, part: str, unit: int) -> dict[str, int]:
        """Array name -> CRC-32C. Raises Damaged when the record cannot be read."""
        name = self._name(part, unit)
        try:
            return json.loads(self._location.read(name))["crc32c"]
        except (FileNotFoundError, ValueError, KeyError, TypeError) as e:
            raise Damaged(f"{self._location}/{name} is no completion record: {e}") from e

    def done(self, part: str, unit: int) -> bool:
        return unit in self._done.get(part, ())

    def units(self, part: str) -> set[int]:
        """The finished units of a part."""
        return set(self._done.get(part, ()))

    def timesteps(self) -> tuple[int, ...]:
        """The timesteps of which at least one unit is finished, ascending."""
        return tuple(sorted({int(part[1:].split("/")[0]) for part in self._done if part != PIXELS}))

    def part_of(self, t: int, block: int, unit: int) -> str | None:
        """The finished part that holds a block of a unit, or None."""
        for part in self._parts(t):
            if unit in self._done[part] and block in parse_blocks(part.split("/")[1]):
                return part
        return None

    def missing(self, t: int, blocks: Iterable[int], unit: int) -> tuple[int, ...]:
        """The blocks of a unit that no finished part holds."""
        held = {b for part in self._parts(t) if unit in self._done[part] for b in parse_blocks(part.split("/")[1])}
        return tuple(b for b in blocks if b not in held)

    def _parts(self, t: int) -> list[str]:
        return sorted(part for part in self._done if part.startswith(f"t{t}/"))

    @staticmethod
    def _name(part: str, unit: int) -> str:
        return f"{FOLDER}/{part}/{unit:06d}.json"
