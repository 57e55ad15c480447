"""Chunks that are neither compressed nor sharded, in one pass: little-endian values, then their CRC-32C.

Just what Zarr's codecs `bytes` and `crc32c` define, so any Zarr reader reads them. Going past Zarr saves its copies and
its second checksum: the one computed here is the chunk's own and that of the completion record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from pathseg.store.location import Location

PIECE_BYTES = 2**18  # a piece is still in the core's cache when its checksum is computed
TRAILER_BYTES = 4


def is_plain(array: zarr.Array) -> bool:
    """Whether the chunks of an array are of this kind."""
    return array.metadata.codecs == (BytesCodec(endian="little"), Crc32cCodec())


def read_chunks(location: Location, names: Sequence[str], values: np.ndarray) -> int:
    """Fill `values` (C order, little endian) from chunks that lie one after another in it; CRC-32C of all of it.

    Raises ValueError when a chunk is too short, too long or not what its own checksum says, FileNotFoundError.
    """
    total = 0
    for name, chunk in zip(names, _bytes(values).reshape(len(names), -1), strict=True):
        own = 0
        with location.open(name) as file:
            for piece in _pieces(chunk):
                if (count := file.readinto(piece)) != piece.size:
                    raise ValueError(f"{name} ends {piece.size - count} bytes into a piece of {piece.size}")
                own = google_crc32c.extend(own, piece)
                total = google_crc32c.extend(total, piece) if len(names) > 1 else own
            if (trailer := file.read(TRAILER_BYTES + 1)) != _trailer(own):
                raise ValueError(f"{name} ends in {trailer.hex()}, computed checksum {_trailer(own).hex()}")
    return total


def write_chunks(location: Location, names: Sequence[str], values: np.ndarray) -> int:
    """Write `values` (C order, little endian) as chunks that lie one after another in it; CRC-32C of all of it."""
    total = 0
    for name, chunk in zip(names, _bytes(values).reshape(len(names), -1), strict=True):
        own = 0
        with location.create(name) as file:
            for piece in _pieces(chunk):
                file.write(piece)
                own = google_crc32c.extend(own, piece)
                total = google_crc32c.extend(total, piece) if len(names) > 1 else own
            file.write(_trailer(own))
    return total


def all_finite(values: np.ndarray) -> bool:
    """The same as `numpy.isfinite(values).all()`, without a pass at a fifth of the disk's speed for float16.

    Read as integers, infinities and NaNs are the numbers from infinity on: the largest ones of either sign.
    """
    if values.dtype not in (np.float16, np.float32) or not values.flags.c_contiguous:
        return bool(np.isfinite(values).all())
    signed, unsigned = f"i{values.itemsize}", f"u{values.itemsize}"
    most, least = (np.array(v, values.dtype) for v in (np.inf, -np.inf))
    return all(
        piece.view(signed).max() < most.view(signed) and piece.view(unsigned).max() < least.view(unsigned)
        for piece in _pieces(_bytes(values))
    )


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1).view(np.uint8)


def _pieces(data: np.ndarray) -> Iterator[np.ndarray]:
    return (data[start : start + PIECE_BYTES] for start in range(0, data.size, PIECE_BYTES))


def _trailer(crc: int) -> bytes:
    return int(crc).to_bytes(TRAILER_BYTES, "little")
