"""Chunks that are not compressed, written and read in one pass: little-endian values, then their CRC-32C.

Just what Zarr's codecs `bytes`, `crc32c` and `sharding_indexed` define, so any Zarr reader reads them. Going past Zarr
saves its copies and its second checksum: the one computed here is the chunk's own and that of the completion record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from pathseg.store.location.location import Location

PIECE_BYTES = 2**18  # a piece is still in the core's cache when its checksum is computed and its values are looked at
TRAILER_BYTES = 4
NOT_THERE = 2**64 - 1  # a shard's index says this of a chunk that it does not hold
CODECS = (BytesCodec(endian="little"), Crc32cCodec())


def is_plain(array: zarr.Array) -> bool:
    """Whether each chunk of an array is a file of its own and of this kind."""
    return array.metadata.codecs == CODECS


def is_plain_shards(array: zarr.Array) -> bool:
    """Whether each file of an array holds one chunk of this kind for each of its images, and an index at the end."""
    chunk = (1, *array.shape[1:])
    sharding = ShardingCodec(chunk_shape=chunk, codecs=CODECS, index_codecs=CODECS, index_location="end")
    return array.metadata.codecs == (sharding,) and array.shards is not None and array.shards[1:] == chunk[1:]


def read_chunks(location: Location, names: Sequence[str], values: np.ndarray) -> int:
    """Fill `values` (C order, little endian) from chunks that lie one after another in it; CRC-32C of all of it.

    Raises ValueError when a chunk is too short, too long or not what its own checksum says, FileNotFoundError.
    """
    total = None
    for name, chunk in zip(names, _bytes(values).reshape(len(names), -1), strict=True):
        with location.open(name) as file:
            total = _read(file, name, chunk, total)
            if rest := file.read(1):
                raise ValueError(f"{name} ends in {rest.hex()}, behind its checksum")
    return total or 0


def read_from_shard(location: Location, name: str, place: int, values: np.ndarray) -> int:
    """Fill `values` from the chunk at a place of a shard that was written in one go; its CRC-32C.

    Chunks lie in the order of their images, so the index need not be asked where; `pathseg verify` reads it. Raises
    ValueError and FileNotFoundError as `read_chunks` does.
    """
    chunk = _bytes(values)
    size = chunk.size + TRAILER_BYTES
    with location.open(name, place * size, size) as file:
        return _read(file, name, chunk)


def write_chunks(location: Location, names: Sequence[str], values: np.ndarray) -> int:
    """Write `values` (C order, little endian) as chunks that lie one after another in it; CRC-32C of all of it.

    Raises OverflowError when a value is infinite or no number; its chunk is not there then.
    """
    total = None
    for name, chunk in zip(names, _bytes(values).reshape(len(names), -1), strict=True):
        with location.create(name) as file:
            total = _write(file, chunk, _finite(values.dtype), total)
    return total or 0


def write_shard(
    location: Location, name: str, images: Sequence[np.ndarray | None], *, blank: np.ndarray | None, slots: int
) -> list[int | None]:
    """Write the chunks of a shard (C order, little endian), for None that of `blank`, then the index; CRC-32C of each.

    slots: the chunks that a shard has room for; the last one of an array may hold fewer. Raises OverflowError as
    `write_chunks` does.
    """
    sums: list[int | None] = []
    index = np.full((slots, 2), NOT_THERE, "<u8")
    with location.create(name) as file:
        for place, values in enumerate(images):
            chunk = _bytes(blank if values is None else values)
            crc = _write(file, chunk, None if values is None else _finite(values.dtype))
            sums.append(None if values is None else crc)
            index[place] = place * (chunk.size + TRAILER_BYTES), chunk.size + TRAILER_BYTES
        _write(file, _bytes(index))
    return sums


def all_finite(values: np.ndarray) -> bool:
    """The same as `numpy.isfinite(values).all()`, without a pass at a fifth of the disk's speed for float16."""
    if not values.flags.c_contiguous:
        return bool(np.isfinite(values).all())
    return all(map(_finite(values.dtype), _pieces(_bytes(values))))


def _finite(dtype: np.dtype) -> Callable[[np.ndarray], bool]:
    """Whether all values of a piece of bytes are finite.

    Read as integers, infinities and NaNs are the numbers from infinity on: the largest ones of either sign.
    """
    if dtype not in (np.float16, np.float32):
        return lambda piece: bool(np.isfinite(piece.view(dtype)).all())
    signed, unsigned = f"<i{dtype.itemsize}", f"<u{dtype.itemsize}"
    most, least = (int(np.array(v, dtype.newbyteorder("<")).view(unsigned)) for v in (np.inf, -np.inf))
    return lambda piece: bool(piece.view(signed).max() < most and piece.view(unsigned).max() < least)


def _read(file: BinaryIO, name: str, chunk: np.ndarray, before: int | None = None) -> int:
    """Read one chunk; CRC-32C of it, or of all that came before it and it."""
    own, total = 0, before
    for piece in _pieces(chunk):
        if (count := file.readinto(piece)) != piece.size:
            raise ValueError(f"{name} ends {piece.size - count} bytes into a piece of {piece.size}")
        own = google_crc32c.extend(own, piece)
        total = own if before is None else google_crc32c.extend(total, piece)
    if (trailer := file.read(TRAILER_BYTES)) != _trailer(own):
        raise ValueError(f"{name} ends in {trailer.hex()}, computed checksum {_trailer(own).hex()}")
    return total


def _write(
    file: BinaryIO, chunk: np.ndarray, finite: Callable[[np.ndarray], bool] | None = None, before: int | None = None
) -> int:
    """Write one chunk; CRC-32C of it, or of all that came before it and it."""
    own, total = 0, before
    for piece in _pieces(chunk):
        file.write(piece)
        own = google_crc32c.extend(own, piece)
        total = own if before is None else google_crc32c.extend(total, piece)
        if finite is not None and not finite(piece):
            raise OverflowError("a value is infinite or no number")
    file.write(_trailer(own))
    return total


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1).view(np.uint8)


def _pieces(data: np.ndarray) -> Iterator[np.ndarray]:
    return (data[start : start + PIECE_BYTES] for start in range(0, data.size, PIECE_BYTES))


def _trailer(crc: int) -> bytes:
    return int(crc).to_bytes(TRAILER_BYTES, "little")
