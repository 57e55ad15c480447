"""Decompression that checks the size first: what a damaged or foreign file claims to hold is never allocated."""

from __future__ import annotations

import dataclasses
import math
import zlib

import zarr
from zarr.codecs import ShardingCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.core.metadata.v3 import ArrayV3Metadata

ZSTD_MAGIC = bytes.fromhex("28b52ffd")


class SizedZstdCodec(ZstdCodec):
    """Zarr's zstd codec, which decodes a chunk only when its frame states the size of the chunk's values."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _require_size(chunk_bytes, chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _require_size(chunk_bytes, chunk_spec)
        return super()._decode_sync(chunk_bytes, chunk_spec)


def with_sized_zstd(array: zarr.Array) -> zarr.Array:
    """Return the array with `SizedZstdCodec` for zstd, in shards too; the array itself where it has none."""
    if not isinstance(array.metadata, ArrayV3Metadata):
        return array
    codecs = _sized(array.metadata.codecs)
    if codecs == array.metadata.codecs:
        return array
    metadata = dataclasses.replace(array.metadata, codecs=codecs)
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path))


def _sized(codecs: tuple) -> tuple:
    sized = []
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            codec = dataclasses.replace(codec, codecs=_sized(codec.codecs))
        elif type(codec) is ZstdCodec:
            codec = SizedZstdCodec(level=codec.level, checksum=codec.checksum)
        sized.append(codec)
    return tuple(sized)


def _require_size(data: Buffer, spec: ArraySpec) -> None:
    """Raise ValueError unless a chunk is a zstd frame that states the size of the chunk's values."""
    wanted = math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize
    if (size := zstd_content_size(data[:18].to_bytes())) != wanted:
        raise ValueError(f"a zstd frame states {size} bytes, but its chunk holds {wanted}")


def zstd_content_size(frame: bytes) -> int | None:
    """Return the Frame_Content_Size of a zstd frame in bytes, by its header (RFC 8878, 3.1.1.1); None without one.

    frame: at least its first 18 bytes.
    """
    if len(frame) < 5 or frame[:4] != ZSTD_MAGIC:
        return None
    descriptor = frame[4]
    flag, single_segment = descriptor >> 6, descriptor >> 5 & 1
    start = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]  # behind window descriptor and dictionary id
    width = (single_segment, 2, 4, 8)[flag]
    if width == 0 or len(frame) < start + width:
        return None
    return int.from_bytes(frame[start : start + width], "little") + (256 if width == 2 else 0)


def decompress_zlib(data: bytes, most_bytes: int) -> bytes:
    """Return the content of a zlib stream. Raises ValueError unless it is whole and at most this large, zlib.error."""
    stream = zlib.decompressobj()
    content = stream.decompress(data, most_bytes + 1)
    if len(content) > most_bytes or not stream.eof:
        raise ValueError(f"a zlib stream is not whole, or holds more than {most_bytes} bytes")
    return content
