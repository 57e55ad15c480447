"""A copy of the store's own description: the text of every zarr.json, so that damage to one shows and can be mended."""

from __future__ import annotations

from pathseg.store.errors import Damaged
from pathseg.store.location.location import Location
from pathseg.store.records import FOLDER, seal, unseal

NAME = f"{FOLDER}/metadata.json"


def read_manifest(location: Location) -> dict[str, str]:
    """Name of each zarr.json -> its text; empty where none was written. Raises Damaged."""
    try:
        return _parsed(location, location.read(NAME))
    except FileNotFoundError:
        return {}


def extend_manifest(location: Location, names: list[str]) -> None:
    """Take the present text of these files into the manifest, once; entries never change later."""

    def extended(data: bytes | None) -> bytes | None:
        known = {} if data is None else _parsed(location, data)
        fresh = {name: location.read(name).decode() for name in names if name not in known}
        return seal(known | fresh) if fresh else None

    location.update(NAME, extended)


def _parsed(location: Location, data: bytes) -> dict[str, str]:
    try:
        return unseal(data, name=f"{location}/{NAME}")
    except Damaged as e:
        raise Damaged(f"{e}; run pathseg verify --repair") from e


def require_intact(location: Location, name: str, manifest: dict[str, str]) -> None:
    """Raise Damaged unless a zarr.json is what the manifest says."""
    try:
        text = location.read(name).decode(errors="replace")
    except FileNotFoundError:
        text = None
    if text != manifest.get(name):
        raise Damaged(f"{location}/{name} is not what was written; run pathseg verify --repair")
