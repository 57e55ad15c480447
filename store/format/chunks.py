"""Chunks and shards, written and read in one pass: little-endian values or their Blosc buffer, then its CRC-32C.

The bytes are those that Zarr's codecs `bytes`, `blosc`, `crc32c` and `sharding_indexed` define, so any Zarr reader
reads them. Without Zarr's own reader there are fewer copies, and of uncompressed values one checksum instead of two:
the chunk's own, which the completion record holds too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import SEEK_END, BufferedIOBase
from typing import cast

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.metadata.v3 import ArrayV3Metadata

from pathseg.store.location.location import Location

PIECE_BYTES = 2**18  # fits into a core's cache, so checksum and range check do not wait for memory
CRC_BYTES = 4
BLOSC_HEADER_BYTES = 16
EMPTY = 2**64 - 1  # offset and length in a shard's index of a chunk that the shard does not hold
INDEX_CODECS = (BytesCodec(endian="little"), Crc32cCodec())
SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}


@dataclass(frozen=True)
class ChunkFormat:
    """How this module reads and writes an array.

    sharded: each file is a shard with a chunk per image; else it is a chunk. blosc: the compressor, None for values as
    they are.
    """

    sharded: bool
    blosc: Blosc | None


def chunk_format(array: zarr.Array) -> ChunkFormat | None:
    """Return how an array is read and written here, None where its codecs are others: it is left to Zarr."""
    sharded, codecs = False, array.metadata.codecs if isinstance(array.metadata, ArrayV3Metadata) else ()
    if len(codecs) == 1 and isinstance(sharding := codecs[0], ShardingCodec):
        sharded, codecs, chunk = True, sharding.codecs, (1, *array.shape[1:])
        if sharding != ShardingCodec(chunk_shape=chunk, codecs=codecs, index_codecs=INDEX_CODECS):
            return None
        if array.shards is None or array.shards[1:] != chunk[1:]:
            return None
    compressor = next((codec for codec in codecs if isinstance(codec, BloscCodec)), None)
    values = BytesCodec(endian="little" if array.dtype.itemsize > 1 else None)  # as Zarr has it: a byte has no order
    if codecs != (values, *(() if compressor is None else (compressor,)), Crc32cCodec()):
        return None
    if compressor is None:
        return ChunkFormat(sharded, None)
    shuffle = SHUFFLES[compressor.shuffle.value]
    settings = (compressor.cname.value, compressor.clevel, shuffle, compressor.blocksize, compressor.typesize)
    return ChunkFormat(sharded, Blosc(*settings))


def read_chunks(location: Location, names: Sequence[str], values: np.ndarray, blosc: Blosc | None = None) -> int:
    """Fill `values` (C order, little endian) from consecutive chunks; return the CRC-32C of all of it.

    Raises ValueError when a chunk is too short, too long or does not fit its own checksum, FileNotFoundError.
    """
    total = None
    for name, chunk in zip(names, _bytes(values).reshape(len(names), -1), strict=True):
        with location.open(name) as file:
            if blosc is not None:
                size = file.seek(0, SEEK_END)
                file.seek(0)
                total = _read_compressed(file, name, size, chunk, blosc, total)
                continue
            total = _read(file, name, chunk, total)
            if rest := file.read(1):
                raise ValueError(f"{name} ends in {rest.hex()}, behind its checksum")
    return total or 0


def read_from_shard(
    location: Location, name: str, position: int, values: np.ndarray, *, chunks: int, blosc: Blosc | None = None
) -> int:
    """Fill `values` from the chunk at a position of a shard that `write_shard` wrote; return its CRC-32C.

    chunks: the chunks that a shard can hold. Chunks lie in the order of their images, so that the shard's index is read
    only where they are compressed; `pathseg verify` checks it. Raises ValueError and FileNotFoundError as
    `read_chunks` does.
    """
    chunk = _bytes(values)
    if blosc is None:
        size = chunk.size + CRC_BYTES
        with location.open(name, position * size, size) as file:
            return _read(file, name, chunk)
    index = np.empty((chunks, 2), "<u8")
    with location.open(name, -(index.nbytes + CRC_BYTES)) as file:
        _read(file, name, _bytes(index))
    start, size = _place(index, name, position, chunk.size)
    with location.open(name, start, size) as file:
        return _read_compressed(file, name, size, chunk, blosc)


def shard_checksums(
    location: Location, name: str, values: np.ndarray, *, images: int, chunks: int, blosc: Blosc | None = None
) -> list[int]:
    """Read a shard that `write_shard` wrote as its index says; return the CRC-32C of each of its first `images` images.

    values: memory for one image (C order, little endian). chunks: the chunks that the shard can hold. Raises ValueError
    when a chunk or the index is not as it was written, FileNotFoundError.
    """
    checksums, chunk, index = [], _bytes(values), np.empty((chunks, 2), "<u8")
    with location.open(name) as file:
        file.seek(max(0, file.seek(0, SEEK_END) - index.nbytes - CRC_BYTES))
        _read(file, name, _bytes(index))
        for position in range(images):
            start, size = _place(index, name, position, chunk.size)
            file.seek(start)
            if blosc is not None:
                checksums.append(_read_compressed(file, name, size, chunk, blosc))
            elif (start, size) == (position * size, chunk.size + CRC_BYTES):  # where `read_from_shard` looks for it
                checksums.append(_read(file, name, chunk))
            else:
                raise ValueError(f"{name} ends in an index with chunk {position} at byte {start}, {size} bytes long")
    return checksums


def require_index_within(location: Location, name: str, *, chunks: int) -> None:
    """Raise ValueError where the index at the end of a shard of so many chunks leads out of the shard."""
    index = np.empty((chunks, 2), "<u8")
    with location.open(name) as file:
        size_bytes = file.seek(0, SEEK_END)
        file.seek(max(0, size_bytes - index.nbytes - CRC_BYTES))
        _read(file, name, _bytes(index))
    for position, (start, size) in enumerate(index.tolist()):
        if (start, size) != (EMPTY, EMPTY) and start + size > size_bytes:
            raise ValueError(f"{name} ends in an index with chunk {position} at byte {start}, {size} bytes long")


def write_chunks(location: Location, names: Sequence[str], values: np.ndarray, blosc: Blosc | None = None) -> int:
    """Write `values` (C order, little endian) as consecutive chunks; return the CRC-32C of all of it.

    Raises OverflowError when a value is not finite; that chunk is not written then.
    """
    total = None
    for name, chunk in zip(names, _bytes(values).reshape(len(names), -1), strict=True):
        with location.create(name) as file:
            _, total = _write(file, chunk, blosc, _finite(values.dtype), total)
    return total or 0


def write_shard(
    location: Location,
    name: str,
    images: Sequence[np.ndarray | None],
    *,
    fill: np.ndarray | None,
    chunks: int,
    blosc: Blosc | None = None,
) -> list[int | None]:
    """Write a shard with a chunk per image (C order, little endian), then its index; return the CRC-32C of each image.

    None in `images` is an image that was set aside: its chunk is `fill`, its checksum None. chunks: the chunks that a
    shard can hold; the last shard of an array may hold fewer. Raises OverflowError as `write_chunks` does.
    """
    checksums: list[int | None] = []
    index, end = np.full((chunks, 2), EMPTY, "<u8"), 0
    with location.create(name) as file:
        for position, values in enumerate(images):
            chunk = _bytes(cast(np.ndarray, fill) if values is None else values)
            size, crc = _write(file, chunk, blosc, None if values is None else _finite(values.dtype))
            checksums.append(None if values is None else crc)
            index[position] = end, size
            end += size
        _write(file, _bytes(index), None)
    return checksums


def all_finite(values: np.ndarray) -> bool:
    """Return `numpy.isfinite(values).all()`, which for float16 takes five times as long as writing the values."""
    if not values.flags.c_contiguous:
        return bool(np.isfinite(values).all())
    return all(map(_finite(values.dtype), _pieces(_bytes(values))))


def _finite(dtype: np.dtype) -> Callable[[np.ndarray], bool]:
    """Return a check of a piece of bytes: whether all its values of this dtype are finite.

    Read as integers, infinities and NaNs are the largest numbers of either sign, from infinity on.
    """
    if dtype.kind in "iu":
        return lambda piece: True
    if dtype not in (np.float16, np.float32):
        return lambda piece: bool(np.isfinite(piece.view(dtype)).all())
    signed, unsigned = f"<i{dtype.itemsize}", f"<u{dtype.itemsize}"
    most, least = (int(np.array(v, dtype.newbyteorder("<")).view(unsigned)) for v in (np.inf, -np.inf))
    return lambda piece: bool(piece.view(signed).max() < most and piece.view(unsigned).max() < least)


def _place(index: np.ndarray, name: str, position: int, chunk_bytes: int) -> tuple[int, int]:
    """Return first byte and size of a chunk by its shard's index. Raises ValueError where no chunk can lie there."""
    start, size = index[position].tolist()
    smallest = BLOSC_HEADER_BYTES + CRC_BYTES
    if size < smallest or start + size > len(index) * (chunk_bytes + smallest):
        raise ValueError(f"{name} ends in an index with chunk {position} at byte {start}, {size} bytes long")
    return start, size


def _read(file: BufferedIOBase, name: str, chunk: np.ndarray, before: int | None = None) -> int:
    """Read bytes and their CRC-32C; return it, continued from `before`."""
    own, total = 0, before
    for piece in _pieces(chunk):
        if (count := file.readinto(piece.data)) != piece.size:
            raise ValueError(f"{name} ends {piece.size - count} bytes into a piece of {piece.size}")
        own = google_crc32c.extend(own, piece)
        total = own if before is None else google_crc32c.extend(total, piece)
    if (trailer := file.read(CRC_BYTES)) != _trailer(own):
        raise ValueError(f"{name} ends in {trailer.hex()}, computed checksum {_trailer(own).hex()}")
    return total or 0


def _read_compressed(
    file: BufferedIOBase, name: str, size: int, chunk: np.ndarray, blosc: Blosc, before: int | None = None
) -> int:
    """Read a chunk that takes `size` bytes of a file; return the CRC-32C of its values, continued from `before`."""
    if not BLOSC_HEADER_BYTES + CRC_BYTES <= size <= chunk.size + BLOSC_HEADER_BYTES + CRC_BYTES:  # Blosc's own limit
        raise ValueError(f"{name} ends after {size} bytes of a chunk, which are too few or too many for {chunk.size}")
    buffer = np.empty(size - CRC_BYTES, np.uint8)
    _read(file, name, buffer)
    values, _, compressed = buffer[4:BLOSC_HEADER_BYTES].view("<u4").tolist()  # Blosc writes what its header says
    if (values, compressed) != (chunk.size, buffer.size):
        raise ValueError(f"{name} ends in {compressed} bytes for {values}, not {buffer.size} for {chunk.size}")
    blosc.decode(buffer, out=chunk)
    return _crc(chunk, before)


def _write(
    file: BufferedIOBase,
    chunk: np.ndarray,
    blosc: Blosc | None,
    finite: Callable[[np.ndarray], bool] | None = None,
    before: int | None = None,
) -> tuple[int, int]:
    """Write one chunk; return its bytes in the file and the CRC-32C of its values, continued from `before`."""
    own, total = 0, before
    for piece in _pieces(chunk):
        if finite is not None and not finite(piece):
            raise OverflowError("a value is not finite")
        if blosc is None:
            file.write(piece.data)
            own = google_crc32c.extend(own, piece)
        total = own if blosc is None and before is None else google_crc32c.extend(total or 0, piece)
    size = chunk.size
    if blosc is not None:
        buffer = blosc.encode(chunk)
        file.write(buffer)
        own, size = _crc(np.frombuffer(buffer, np.uint8)), len(buffer)
    file.write(_trailer(own))
    return size + CRC_BYTES, total or 0


def _crc(data: np.ndarray, before: int | None = None) -> int:
    """Return the CRC-32C of bytes, continued from `before`; by pieces, as the interpreter's lock is held for each."""
    crc = before or 0
    for piece in _pieces(data):
        crc = google_crc32c.extend(crc, piece)
    return crc


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1).view(np.uint8)


def _pieces(data: np.ndarray) -> Iterator[np.ndarray]:
    return (data[start : start + PIECE_BYTES] for start in range(0, data.size, PIECE_BYTES))


def _trailer(crc: int) -> bytes:
    return int(crc).to_bytes(CRC_BYTES, "little")
