"""The manifest: a copy of the text of every zarr.json, so that damage to one is found and can be repaired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pathseg.store.errors import Damaged
from pathseg.store.format.names import FEATURE_NODE, GROWTH, MANIFEST, METADATA, ROOT
from pathseg.store.location.location import Location
from pathseg.store.records import ArraySet, seal, unseal


@dataclass(frozen=True)
class Manifest:
    """The text of each zarr.json as it was written, by file name; empty in a store that is not described yet."""

    texts: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.texts)

    def has_array(self, name: str) -> bool:
        """Return whether the store has an array of this name."""
        return f"{name}/zarr.json" in self.texts

    def array_sets(self) -> tuple[ArraySet, ...]:
        """Return timestep and block of every block with an array, one each."""
        found = (FEATURE_NODE.fullmatch(name) for name in self.texts)
        blocks = (node for node in found if node and node["block"] and not node["scales"])
        return tuple(ArraySet(int(node["t"]), (int(node["block"]),)) for node in blocks)

    def require_intact(self, name: str, text: bytes | None, *, store: str) -> None:
        """Raise Damaged unless the text of a zarr.json, None where it is missing, is the one that was written."""
        if text is None or text.decode(errors="replace") != self.texts.get(name):
            raise Damaged(f"{store}/{name} is not what was written; run pathseg verify --repair")

    def changed(self, texts: Mapping[str, str]) -> Manifest:
        """Return the manifest with these texts in place of its own."""
        return Manifest({**self.texts, **texts})

    def to_json(self) -> bytes:
        """Return the content of the manifest's file."""
        return seal(dict(self.texts))

    @classmethod
    def from_json(cls, data: bytes, *, source: str) -> Manifest:
        """The inverse of `to_json`. Raises Damaged naming `source`, also for the name of another file."""
        try:
            texts = unseal(data, dict[str, str], source=source)
            if (other := next((name for name in texts if not METADATA.fullmatch(name)), None)) is not None:
                raise Damaged(f"{source} is damaged: it lists {other[:80]!r}, which is no zarr.json of a store")
            return cls(texts)
        except Damaged as e:
            raise Damaged(f"{e}; run pathseg verify --repair") from e


def read_manifest(location: Location) -> Manifest:
    """Read a store's manifest, an empty one where there is none. Raises Damaged."""
    try:
        return Manifest.from_json(location.read(MANIFEST), source=f"{location}/{MANIFEST}")
    except FileNotFoundError:
        return Manifest()


def read_growth(location: Location) -> Mapping[str, str]:
    """Read the text that each zarr.json is getting while a store grows; none when it does not. Raises Damaged."""
    try:
        return Manifest.from_json(location.read(GROWTH), source=f"{location}/{GROWTH}").texts
    except FileNotFoundError:
        return {}


def read_description(location: Location) -> tuple[Manifest, bytes]:
    """Read the manifest and the root zarr.json, as they were before or after a growth that is under way.

    Raises Damaged unless they fit each other, FileNotFoundError when there is no root zarr.json.
    """
    manifest, text = read_manifest(location), location.read(ROOT)
    if manifest and manifest.texts.get(ROOT) != text.decode(errors="replace"):
        growth = read_growth(location)  # before the manifest, which is written before this file is removed
        manifest = read_manifest(location)
        if growth.get(ROOT) == text.decode(errors="replace"):
            manifest = manifest.changed(growth)
        manifest.require_intact(ROOT, text, store=str(location))
    return manifest, text


def replace_in_manifest(location: Location, texts: Mapping[str, str]) -> None:
    """Put these texts of zarr.json files into the manifest. Raises Damaged where there is none."""

    def replaced(data: bytes | None) -> bytes:
        source = f"{location}/{MANIFEST}"
        if data is None:
            raise Damaged(f"{source} has gone; run pathseg verify --repair")
        return Manifest.from_json(data, source=source).changed(texts).to_json()

    location.update(MANIFEST, replaced)


def extend_manifest(location: Location, names: Iterable[str]) -> None:
    """Add the text of these zarr.json files, as they are now, to the manifest; entries that it has stay unchanged."""

    def extended(data: bytes | None) -> bytes | None:
        source = f"{location}/{MANIFEST}"
        known = Manifest() if data is None else Manifest.from_json(data, source=source)
        fresh = {name: location.read(name).decode() for name in names if name not in known.texts}
        return Manifest({**known.texts, **fresh}).to_json() if fresh else None

    location.update(MANIFEST, extended)
