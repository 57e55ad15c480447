"""How fast stage one was, measured by each run of `extract` and kept in the workspace.

It is not in the store, whose bytes are the same however fast and on how many workers they were computed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pathseg.store.key import StoreKey
from pathseg.store.runtime.atomic_files import write_atomic
from pathseg.store.runtime.json_records import decode_json, encode_json


@dataclass(frozen=True)
class ExtractionSpeed:
    """The longest run that computed features of one kind.

    passes: forward passes of single patches, each timestep one. seconds: of the whole run, decoding and writing
    included. device: for people, `cpu` or the name of a GPU; of several workers each's.
    """

    model: str
    passes: int
    seconds: float
    device: str
    workers: int = 1

    def __str__(self) -> str:
        on = self.device if self.workers == 1 else f"{self.workers} workers, {self.device}"
        return f"{self.model} on {on}"


def record_speed(workspace: Path, key: StoreKey, speed: ExtractionSpeed) -> None:
    """Keep the measurement of a run, unless it computed nothing or one with more passes is there.

    Where it cannot be written there is none: no extraction fails for the sake of its measurement.
    """
    before = read_speed(workspace, key)
    if speed.passes and speed.seconds > 0 and (before is None or speed.passes >= before.passes):
        with suppress(OSError):
            write_atomic(_path(workspace, key), encode_json(speed))


def read_speed(workspace: Path, key: StoreKey) -> ExtractionSpeed | None:
    """Return the measurement of features with this key; None without a readable one."""
    with suppress(OSError, ValueError):  # a measurement that is damaged is as good as none
        path = _path(workspace, key)
        speed = decode_json(path.read_bytes(), ExtractionSpeed, source=str(path))
        return speed if speed.passes > 0 and speed.seconds > 0 else None
    return None


def _path(workspace: Path, key: StoreKey) -> Path:
    return workspace / "extractions" / f"{key.of_features.digest}.json"  # a model's name may hold anything
