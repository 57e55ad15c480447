"""Verification of a whole store: every file accounted for, every checksum computed again; and repair."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import zarr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from pathseg.store.blocks import array_name
from pathseg.store.contents import FORMAT, Contents, read_attributes
from pathseg.store.errors import Damaged, StoreError
from pathseg.store.format.arrays import chunk_names, open_array, same_metadata, zarr_metadata
from pathseg.store.format.chunks import chunk_format, read_chunks, shard_checksums
from pathseg.store.format.decompression import decompress_zlib
from pathseg.store.format.manifest import Manifest, read_growth, read_manifest
from pathseg.store.format.names import CHUNK, FEATURE_NODE, GROWTH, HALF_WRITTEN, MANIFEST, REPLACED, ROOT
from pathseg.store.growth import finish_growth
from pathseg.store.location.location import Location, open_location
from pathseg.store.records import PIXELS, ArraySet, Records, checksum, parse_record_file
from pathseg.store.runtime.prefetch import prefetch_map

Unit = tuple[ArraySet, int]
ChunkFiles = dict[str, bytes | Damaged]  # content by name, or why it cannot be read


@dataclass(frozen=True)
class Finding:
    """One file or image that is not as it should be.

    damaged: not the bytes that were written. missing: recorded but not there, or not extracted yet. stray: left by a
    run that was cut off: a chunk of an array of this store, a record, a description of arrays as this store has them,
    or one of these half written. foreign: everything else; never changed or removed. arrays and unit: what has to be
    extracted again, None where nothing has.
    """

    kind: Literal["damaged", "missing", "stray", "foreign"]
    name: str
    detail: str
    arrays: ArraySet | None = None
    unit: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.detail}"


def verify(
    path: str | os.PathLike[str] | Location,
    *,
    repair: bool = False,
    on_unit: Callable[[int], None] = lambda units: None,
) -> tuple[Finding, ...]:
    """Read every byte of a store again and return what is damaged, missing, stray or foreign; () when nothing is.

    repair: afterwards restore descriptions and drop damaged and stray data, so that `pathseg extract` writes only that
    again. on_unit: called after each recorded unit with the number of recorded units. Raises StoreError when there is
    no store, when its description is lost with the copy, or when another run writes to a store that is to be repaired.
    """
    verification = Verification(path)
    units = len(verification.records.committed())
    findings = tuple(verification.run(lambda: on_unit(units)))
    if repair and findings:
        verification.repair()
    return findings


class Verification:
    """One pass over a store; `findings` is empty when every byte is as it was written and nothing is missing."""

    def __init__(self, path: str | os.PathLike[str] | Location) -> None:
        """Raises StoreError when there is no store, or when its description is lost together with the manifest."""
        self.location = open_location(path)
        self.findings: list[Finding] = []
        self.files = set(self.location.names())
        if not {MANIFEST, ROOT} & self.files:
            raise StoreError(f"there is no feature store at {self.location}; make one with pathseg extract")
        self._memory: dict[str, Buffer] = {}  # files for Zarr: descriptions, and the chunks of a unit
        self._zarr = MemoryStore(self._memory, read_only=True)
        self._opened: dict[str, zarr.Array] = {}
        self.growth = self._growth()
        self.manifest, self.contents = self._described()
        units = self.contents.units
        self.records = Records(self.location, images_per_unit=self.contents.images_per_unit, units=units)
        self._known = {MANIFEST, GROWTH, *self.manifest.texts}

    def run(self, on_unit: Callable[[], None] = lambda: None) -> list[Finding]:
        """Check descriptions, records, chunks and file names; `on_unit` is called after each recorded unit."""
        self._check_descriptions()
        committed = self.records.committed()
        checked = {record for record in committed if self._in_store(record)}
        pieces = (
            (arrays, unit, array)
            for arrays, unit in committed
            if (arrays, unit) in checked
            for array in self._arrays(arrays)
        )
        chunks = prefetch_map(self._read_chunks, pieces, threads=self.location.concurrency, size_bytes=self._unit_bytes)
        for arrays, unit in committed:
            if (arrays, unit) in checked:
                self._check_unit(arrays, unit, chunks)
            on_unit()
        self._check_completeness()
        self._check_replaced()
        for name in sorted(self.files - self._known):
            if self._left_by_killed_run(name):
                self._find("stray", name, "no completion record lists it")
            else:
                self._find("foreign", name, "not written by pathseg")
        return self.findings

    def repair(self) -> None:
        """Restore descriptions, drop damaged and stray data so that `extract` writes only that again.

        Verifies everything once more first, while no other run writes. Chunks that an intact record lists and foreign
        files stay. Raises StoreError when another run is writing.
        """
        with self.location.writer_lock(exclusive=True) as alone:
            if not alone:
                raise StoreError(f"another run is writing to {self.location}; repair when it has ended")
            with self.location.metadata_lock():  # a run that starts waits, and then sees what was dropped
                with suppress(Damaged):  # restored below, or dropped
                    finish_growth(self.location)
                again = Verification(self.location)
                again.run()
                again._repair()

    def _repair(self) -> None:
        broken = {(f.arrays, f.unit) for f in self.findings if f.arrays is not None and f.unit is not None}
        intact = [record for record in self.records.committed() if self._in_store(record) and record not in broken]
        listed = {chunk for arrays, unit in intact for chunk in self._chunks(arrays, unit)}
        if any(finding.name == MANIFEST for finding in self.findings) and not self.location.obstacle(MANIFEST):
            self.location.write(MANIFEST, self.manifest.to_json())
        for finding in self.findings:
            if finding.kind == "foreign" or self.location.obstacle(finding.name):
                continue
            if finding.name in self.manifest.texts:
                self.location.write(finding.name, self.manifest.texts[finding.name].encode())
            elif finding.kind == "stray":
                self.location.remove(finding.name)
        for arrays, unit in broken:
            records = {arrays.record_file(unit, complete=complete) for complete in (True, False)}
            dropped = (self._chunks(arrays, unit) - listed | records) & self.files
            if any(map(self.location.obstacle, dropped)):
                continue  # behind a link: a unit without record would be written again there
            self.records.drop(arrays, unit)
            for chunk in dropped - records:
                self.location.remove(chunk)

    def _in_store(self, record: Unit) -> bool:
        """Return whether a record is about a unit and arrays that the store has."""
        arrays, unit = record
        if unit >= self.contents.units or not self.contents.blocks.keys() >= set(arrays.blocks):
            return False
        return all(map(self.manifest.has_array, self._arrays(arrays)))

    def _array(self, name: str) -> zarr.Array:
        if name not in self._opened:
            text = self.manifest.texts[f"{name}/{ROOT}"]
            self._opened[name] = open_array(self._zarr, self.contents, name, text, location=str(self.location))
        return self._opened[name]

    def _arrays(self, arrays: ArraySet) -> tuple[str, ...]:
        return self.contents.array_names(arrays)

    def _chunks(self, arrays: ArraySet, unit: int) -> set[str]:
        """Return the chunk files of a recorded unit."""
        return {name for array in self._arrays(arrays) for name in self._chunk_files(array, unit)}

    def _chunk_files(self, array: str, unit: int) -> list[str]:
        return [f"{array}/{chunk}" for chunk in chunk_names(self._array(array), unit, self.contents.images_per_unit)]

    def _left_by_killed_run(self, name: str) -> bool:
        """Return whether pathseg has written a file that nothing lists: only such files are removed."""
        if HALF_WRITTEN.fullmatch(name) or REPLACED.fullmatch(name) or parse_record_file(name) is not None:
            return True
        if match := CHUNK.fullmatch(name):
            if not self.manifest.has_array(match["array"]):
                return False
            array, position = self._array(match["array"]), [int(index) for index in match["position"].split("/")]
            counts = [-(-size // step) for size, step in zip(array.shape, array.shards or array.chunks, strict=True)]
            return len(position) == len(counts) and all(i < count for i, count in zip(position, counts, strict=True))
        if match := FEATURE_NODE.fullmatch(name):  # created, but not in the manifest yet
            blocks = () if match["block"] is None else (int(match["block"]),)
            if self.contents.blocks.keys() >= set(blocks):
                created = zarr_metadata(self.contents, [ArraySet(int(match["t"]), blocks)])
                return name in created and same_metadata(self._text(name), created[name])
        return False

    def _text(self, name: str) -> bytes:
        """Return the bytes of a file, none where it cannot be read."""
        try:
            return self.location.read(name)
        except (FileNotFoundError, Damaged):
            return b""

    def _growth(self) -> Mapping[str, str]:
        """Return the descriptions of a growth that was cut off."""
        if GROWTH not in self.files:
            return {}
        try:
            growth = read_growth(self.location)
        except Damaged as e:
            self._find("stray", GROWTH, f"the descriptions of a growth that was cut off: {e}")
            return {}
        self._find("missing", GROWTH, "a run was killed while it enlarged the store; pathseg extract goes on")
        return growth

    def _check_replaced(self) -> None:
        """Account for the copies of masks that were replaced; one that is not whole is dropped by a repair."""
        for name in self.files:
            if match := REPLACED.fullmatch(name):
                data, array = b"", match["labels"]
                if not self.manifest.has_array(array):
                    continue
                with suppress(zlib.error, ValueError):
                    # at most: the array may have been enlarged since, for larger images
                    most_bytes = math.prod(self._array(array).shape[1:]) * self._array(array).dtype.itemsize
                    data = decompress_zlib(self._text(name), most_bytes)
                if data and checksum(np.frombuffer(data, np.uint8)) == int(match["crc"], 16):
                    self._known.add(name)

    def _described(self) -> tuple[Manifest, Contents]:
        """Return manifest and contents; the manifest is rebuilt where it is missing or does not describe this store."""
        try:
            if manifest := read_manifest(self.location):
                if self.growth and self._text(ROOT).decode(errors="replace") == self.growth.get(ROOT):
                    manifest = manifest.changed(self.growth)
                try:
                    return manifest, self._checked(manifest)
                except (ValueError, StoreError) as e:
                    self._find("damaged", MANIFEST, f"the copy of the store's description: {e}")
            else:
                self._find("missing", MANIFEST, "the copy of the store's description")
        except Damaged as e:
            self._find("damaged", MANIFEST, f"the copy of the store's description: {e}")
        manifest = self._rebuilt_manifest()
        return manifest, self._checked(manifest)

    def _checked(self, manifest: Manifest) -> Contents:
        """Open every array that a manifest lists. Raises StoreError or ValueError when one is not as described."""
        attributes = read_attributes(manifest.texts.get(ROOT, "{}"), source=f"{self.location}/{MANIFEST}")
        self.manifest, self.contents = manifest, Contents.from_attributes(attributes, store=str(self.location))
        self._opened.clear()
        self._memory.clear()
        self._memory.update({name: _buffer(text.encode()) for name, text in manifest.texts.items()})
        self._known = {MANIFEST, GROWTH, *manifest.texts}
        array_sets = [PIXELS, *manifest.array_sets()]
        for name in [name for arrays in array_sets for name in self._arrays(arrays)]:
            if not manifest.has_array(name):
                raise Damaged(f"it lacks {name}/{ROOT}")
            self._array(name)
        return self.contents

    def _rebuilt_manifest(self) -> Manifest:
        """Rebuild the manifest from the root zarr.json and the names of the records."""
        try:
            text = self.location.read(ROOT)
            attributes = read_attributes(text, source=ROOT)
            contents = Contents.from_attributes(attributes, store=str(self.location))
        except (FileNotFoundError, ValueError, StoreError) as e:
            raise StoreError(f"{self.location} has lost both its description and the copy; extract it anew") from e
        parsed_names = (parse_record_file(name) for name in self.files)
        recorded = {parsed[0] for parsed in parsed_names if parsed and contents.blocks.keys() >= set(parsed[0].blocks)}
        rebuilt = zarr_metadata(contents, recorded)
        if attributes["pathseg_format"] != FORMAT:  # written by an older release, and never rewritten
            rebuilt[ROOT] = text.decode()
        for name in rebuilt.keys() & self.files:
            if same_metadata(text := self._text(name), rebuilt[name]):
                rebuilt[name] = text.decode()
        return Manifest(rebuilt)

    def _check_descriptions(self) -> None:
        names = [name for name in self.manifest.texts if name in self.files]
        texts = prefetch_map(self._text, names, threads=self.location.concurrency, size_bytes=lambda name: 0)
        for name, text in self.manifest.texts.items():
            if name not in self.files:
                self._find("missing", name, "a description in the store")
            elif (found := next(texts).decode(errors="replace")) != text and found != self.growth.get(name):
                self._find("damaged", name, "a description in the store")

    def _check_unit(self, arrays: ArraySet, unit: int, chunks: Iterator[ChunkFiles | None]) -> None:
        name = arrays.record_file(unit, complete=arrays.record_file(unit) in self.files)
        self._known |= {name} | self._chunks(arrays, unit)
        checksums: Mapping[str, Sequence[int | None]] = {}
        try:
            checksums = self.records.read(arrays, unit).checksums
            images = len(self._ids(unit))
            beyond = {crc for sums in checksums.values() for crc in sums[images:]}  # images that are being added: None
            shortest = min(map(len, checksums.values()))
            if checksums.keys() != set(self._arrays(arrays)) or shortest < images or beyond - {None}:
                raise Damaged(f"{self.location}/{name} does not list every array and image of its unit")
        except Damaged as e:  # the chunks still have checksums of their own
            self._find("damaged", name, str(e), arrays, unit)
        # positions of which other arrays are there: masks that are to be written again, and may be half way
        rewritten = {i for sums in checksums.values() for i, crc in enumerate(sums) if crc is not None}
        for array in self._arrays(arrays):
            if (data := next(chunks)) is not None:
                self._check_array(array, arrays, unit, checksums.get(array), data, rewritten)

    def _unit_bytes(self, piece: tuple[ArraySet, int, str]) -> int:
        array = self._array(piece[2])
        return self.contents.images_per_unit * array.dtype.itemsize * math.prod(array.shape[1:])

    def _read_chunks(self, piece: tuple[ArraySet, int, str]) -> ChunkFiles | None:
        """Read the chunk files of a unit of an array; None when every image is as recorded, which leaves no question.

        Otherwise those that exist, for `_check_array` to say what is wrong.
        """
        arrays, unit, array = piece
        if self._as_recorded(arrays, unit, array):
            return None
        return {name: self._read(name) for name in self._chunk_files(array, unit) if name in self.files}

    def _as_recorded(self, arrays: ArraySet, unit: int, name: str) -> bool:
        """Return whether all images of a unit of an array have the checksums of its record, without Zarr's reader.

        False also where only Zarr's reader can tell.
        """
        array, per_unit = self._array(name), self.contents.images_per_unit
        if (found := chunk_format(array)) is None:
            return False
        values = np.empty(array.shape[1:], array.dtype.newbyteorder("<"))
        try:
            recorded = self.records.read(arrays, unit).checksums[name]
            files = self._chunk_files(name, unit)
            if found.sharded:
                (shard,), images = files, len(self._ids(unit))
                computed = shard_checksums(
                    self.location, shard, values, images=images, chunks=per_unit, blosc=found.blosc
                )
            else:
                computed = [read_chunks(self.location, files, values, found.blosc)]
        except (ValueError, RuntimeError, KeyError, FileNotFoundError, Damaged):
            return False
        return list(recorded) == computed

    def _read(self, name: str) -> bytes | Damaged:
        try:
            return self.location.read(name)
        except Damaged as e:
            return e

    def _check_array(
        self,
        name: str,
        arrays: ArraySet,
        unit: int,
        checksums: Sequence[int | None] | None,
        data: ChunkFiles,
        rewritten: Collection[int],
    ) -> None:
        array, first = self._array(name), unit * self.contents.images_per_unit
        chunks = self._chunk_files(name, unit)
        images, unwritten = ", ".join(self._ids(unit)), len(data) < len(chunks) and _is_fill(array, checksums)
        for chunk in chunks:
            if chunk not in data and unwritten:
                continue  # earlier releases wrote no chunk of nothing but fill values, such as an empty mask
            if chunk not in data:
                self._find("missing", chunk, images, arrays, unit)
            elif isinstance(content := data[chunk], Damaged):
                self._find("damaged", chunk, f"{images}: {content}", arrays, unit)
        read = {chunk: _buffer(content) for chunk, content in data.items() if isinstance(content, bytes)}
        if len(read) < len(chunks):
            return
        self._memory.update(read)
        for position, image_id in enumerate(self._ids(unit)):
            stored = checksums[position] if checksums and position < len(checksums) else None
            if stored is None and position in rewritten:
                continue
            # also of an image that was set aside: its chunk of fill values has a checksum
            if error := _array_error(array, first + position, stored):
                self._find("damaged", chunks[0], f"{image_id}: {error}", arrays, unit)
        for chunk in chunks:
            del self._memory[chunk]

    def _check_completeness(self) -> None:
        for index in self.contents.listed:
            image = self.contents.images[index]
            if not self.records.done(PIXELS, index):
                self._find("missing", "images", f"{image.id} was not extracted")
            for t in self.records.timesteps():
                stored = [block for block in self.contents.blocks if self.manifest.has_array(array_name(t, block))]
                if missing := self.records.missing(t, stored, index):
                    self._find("missing", f"t{t}", f"{image.id} lacks blocks {list(missing)}")

    def _ids(self, unit: int) -> list[str]:
        first, size = unit * self.contents.images_per_unit, self.contents.images_per_unit
        return [image.id for image in self.contents.images[first : first + size]]

    def _find(
        self,
        kind: Literal["damaged", "missing", "stray", "foreign"],
        name: str,
        detail: str,
        arrays: ArraySet | None = None,
        unit: int | None = None,
    ) -> None:
        if kind != "foreign" and (obstacle := self.location.obstacle(name)):
            detail = f"{detail}; cannot be repaired: {obstacle}"
        self.findings.append(Finding(kind, name, detail, arrays, unit))


def _is_fill(array: zarr.Array, checksums: Sequence[int | None] | None) -> bool:
    """Return whether by their checksums all these images of an array hold nothing but the fill value."""
    if not checksums:
        return False
    fill = checksum(np.full(array.shape[1:], array.fill_value, array.dtype))
    return all(stored == fill for stored in checksums)


def _array_error(array: zarr.Array, index: int, stored: int | None) -> str | None:
    """Return why an image of an array is damaged, None when it is not."""
    try:
        computed = checksum(np.asarray(array[index]))
    except MemoryError as e:
        if chunk_format(array) is None:  # the sizes that zstd frames state were compared before: memory is short
            raise
        return f"its header states more bytes than there is memory ({type(e).__name__})"
    except (ValueError, RuntimeError, KeyError, TypeError, OverflowError) as e:
        return (str(e).splitlines() or [type(e).__name__])[0]
    return None if stored in (None, computed) else f"stored checksum {stored}, computed {computed}"


def _buffer(data: bytes) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(data)
