"""Uncompressed chunks and shards, written and read in one pass: little-endian values, then their CRC-32C.

The bytes are those that Zarr's codecs `bytes`, `crc32c` and `sharding_indexed` define, so any Zarr reader reads them.
Without Zarr's own reader there are fewer copies, and one checksum instead of two: the chunk's own, which the completion
record holds too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase
from typing import Any, cast

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.metadata.v3 import ArrayV3Metadata

from pathseg.store.location.location import Location

PIECE_BYTES = 2**18  # fits into a core's cache, so checksum and range check do not wait for memory
CRC_BYTES = 4
EMPTY = 2**64 - 1  # offset and length in a shard's index of a chunk that the shard does not hold
INDEX_CODECS = (BytesCodec(endian="little"), Crc32cCodec())


def is_uncompressed(array: zarr.Array) -> bool:
    """Return whether an array is unsharded, with only the codecs of this module."""
    return _codecs(array) == _uncompressed(array.dtype)


def is_uncompressed_shards(array: zarr.Array) -> bool:
    """Return whether each shard of an array holds one chunk per image, with only the codecs of this module."""
    chunk = (1, *array.shape[1:])
    sharding = ShardingCodec(chunk_shape=chunk, codecs=_uncompressed(array.dtype), index_codecs=INDEX_CODECS)
    return _codecs(array) == (sharding,) and array.shards is not None and array.shards[1:] == chunk[1:]


def read_chunks(location: Location, names: Sequence[str], values: np.ndarray) -> int:
    """Fill `values` (C order, little endian) from consecutive chunks; return the CRC-32C of all of it.

    Raises ValueError when a chunk is too short, too long or does not fit its own checksum, FileNotFoundError.
    """
    total = None
    for name, chunk in zip(names, _bytes(values).reshape(len(names), -1), strict=True):
        with location.open(name) as file:
            total = _read(file, name, chunk, total)
            if rest := file.read(1):
                raise ValueError(f"{name} ends in {rest.hex()}, behind its checksum")
    return total or 0


def read_from_shard(location: Location, name: str, position: int, values: np.ndarray) -> int:
    """Fill `values` from the chunk at a position of a shard that `write_shard` wrote; return its CRC-32C.

    Chunks lie in the order of their images, so the shard's index is not read; `pathseg verify` checks it. Raises
    ValueError and FileNotFoundError as `read_chunks` does.
    """
    chunk = _bytes(values)
    size = chunk.size + CRC_BYTES
    with location.open(name, position * size, size) as file:
        return _read(file, name, chunk)


def write_chunks(location: Location, names: Sequence[str], values: np.ndarray) -> int:
    """Write `values` (C order, little endian) as consecutive chunks; return the CRC-32C of all of it.

    Raises OverflowError when a value is not finite; that chunk is not written then.
    """
    total = None
    for name, chunk in zip(names, _bytes(values).reshape(len(names), -1), strict=True):
        with location.create(name) as file:
            total = _write(file, chunk, _finite(values.dtype), total)
    return total or 0


def write_shard(
    location: Location, name: str, images: Sequence[np.ndarray | None], *, fill: np.ndarray | None, chunks: int
) -> list[int | None]:
    """Write a shard with a chunk per image (C order, little endian), then its index; return the CRC-32C of each image.

    None in `images` is an image that was set aside: its chunk is `fill`, its checksum None. chunks: the chunks that a
    shard can hold; the last shard of an array may hold fewer. Raises OverflowError as `write_chunks` does.
    """
    checksums: list[int | None] = []
    index = np.full((chunks, 2), EMPTY, "<u8")
    with location.create(name) as file:
        for position, values in enumerate(images):
            chunk = _bytes(cast(np.ndarray, fill) if values is None else values)
            crc = _write(file, chunk, None if values is None else _finite(values.dtype))
            checksums.append(None if values is None else crc)
            index[position] = position * (chunk.size + CRC_BYTES), chunk.size + CRC_BYTES
        _write(file, _bytes(index))
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


def _read(file: BufferedIOBase, name: str, chunk: np.ndarray, before: int | None = None) -> int:
    """Read one chunk; return its CRC-32C, continued from that of the chunks before it."""
    own, total = 0, before
    for piece in _pieces(chunk):
        if (count := file.readinto(piece.data)) != piece.size:
            raise ValueError(f"{name} ends {piece.size - count} bytes into a piece of {piece.size}")
        own = google_crc32c.extend(own, piece)
        total = own if before is None else google_crc32c.extend(total, piece)
    if (trailer := file.read(CRC_BYTES)) != _trailer(own):
        raise ValueError(f"{name} ends in {trailer.hex()}, computed checksum {_trailer(own).hex()}")
    return total or 0


def _write(
    file: BufferedIOBase,
    chunk: np.ndarray,
    finite: Callable[[np.ndarray], bool] | None = None,
    before: int | None = None,
) -> int:
    """Write one chunk; return its CRC-32C, continued from that of the chunks before it."""
    own, total = 0, before
    for piece in _pieces(chunk):
        file.write(piece.data)
        own = google_crc32c.extend(own, piece)
        total = own if before is None else google_crc32c.extend(total, piece)
        if finite is not None and not finite(piece):
            raise OverflowError("a value is not finite")
    file.write(_trailer(own))
    return total or 0


def _uncompressed(dtype: np.dtype) -> tuple[Any, ...]:
    """Return the codecs of uncompressed values as Zarr has them: those of one byte have no byte order."""
    return BytesCodec(endian="little" if dtype.itemsize > 1 else None), Crc32cCodec()


def _codecs(array: zarr.Array) -> tuple[Any, ...]:
    return array.metadata.codecs if isinstance(array.metadata, ArrayV3Metadata) else ()


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1).view(np.uint8)


def _pieces(data: np.ndarray) -> Iterator[np.ndarray]:
    return (data[start : start + PIECE_BYTES] for start in range(0, data.size, PIECE_BYTES))


def _trailer(crc: int) -> bytes:
    return int(crc).to_bytes(CRC_BYTES, "little")
