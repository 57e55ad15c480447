"""Packing of feature values: as they are, compressed without loss, rounded and compressed, or scaled to bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pathseg.store.blocks import SCALES

if TYPE_CHECKING:  # the command line takes its help from here, and is to start without NumPy and Zarr
    import numpy as np
    from zarr.abc.codec import BytesBytesCodec

LARGEST = 127  # magnitude of the largest whole number that is stored of a scaled value
NEVER_STORED = -128  # fill value of whole numbers
CACHED_VALUES = 2**17  # which stay in a core's cache between two passes, 512 KiB of float32

Array = TypeVar("Array")  # of NumPy, torch or Dask


@dataclass(frozen=True)
class StoredArray:
    """An array that is stored of a block.

    name: in the store. shape, dimension_names: of one image. attributes: of Zarr.
    """

    name: str
    shape: tuple[int, ...]
    dimension_names: tuple[str, ...]
    dtype: np.dtype
    fill_value: float
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image_bytes(self) -> int:
        """Bytes of one image, before compression."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Packing:
    """One way of packing.

    size_ratio: bytes on disk over bytes of the stored arrays, measured on float16 activations of the paper's model; 1
    is exact. compressor: of Blosc, None for no compression. keep_bits: bits of the mantissa that rounding keeps, None
    for all of them. stored_dtype: `int8` for whole numbers -127..127, which times the float32 scale of their image and
    channel are the values; None for values in the store's dtype.
    """

    summary: str
    size_ratio: float = 1.0
    compressor: Literal["lz4", "zstd"] | None = None
    keep_bits: int | None = None
    stored_dtype: Literal["int8"] | None = None

    @property
    def scaled(self) -> bool:
        """Whether whole numbers are stored, with their scales in an array beside them."""
        return self.stored_dtype is not None

    @property
    def exact(self) -> bool:
        """Whether values in the store's dtype are given back as they were."""
        return not self.scaled and self.keep_bits is None

    @property
    def bound(self) -> float | None:
        """Largest relative error of a stored value against the value in the store's dtype: 2^-(keep_bits + 1).

        0 without rounding. Holds for normal numbers; below 2^-14 (float16) or 2^-126 (float32) in magnitude the error
        is at most that bound times this smallest normal number. None of a scaled packing, which has no such bound:
        its error is at most half the scale, whatever the value, so small values of a channel become 0.
        """
        if self.scaled:
            return None
        return 0.0 if self.keep_bits is None else 2.0 ** -(self.keep_bits + 1)

    def largest_rounded(self, largest: float) -> float:
        """Return the largest number that rounding leaves as it is, of a dtype whose largest is `largest`."""
        assert self.keep_bits is not None
        return math.ldexp(1 - 2.0 ** -(self.keep_bits + 1), math.frexp(largest)[1])

    def arrays(self, name: str, shape: tuple[int, int, int, int], dtype: str) -> tuple[StoredArray, ...]:
        """Return the arrays of a block: its values and, of a scaled packing, its scales.

        name: of the block's array, `t50/block04`. shape: of one image, (P, C, h, w). dtype: of the store.
        """
        import numpy as np

        block = name.rpartition("/")[2]
        dimensions = ("patch", *(f"{axis}_{block}" for axis in ("channel", "y", "x")))
        if not self.scaled:
            return (StoredArray(name, shape, dimensions, np.dtype(dtype), np.nan, self._rounding()),)
        about = {
            "scales": f"{block}{SCALES}",
            "scale_axis": 2,
            "values": f"stored[image, patch, channel, y, x] * {block}{SCALES}[image, channel]",
            "error_at_most_of_scale": 0.5,
        }
        of_scales = {"about": f"values of {block} = its whole numbers * the scale of their image and channel"}
        return (
            StoredArray(name, shape, dimensions, np.dtype(self.stored_dtype), NEVER_STORED, about),
            StoredArray(f"{name}{SCALES}", shape[1:2], dimensions[1:2], np.dtype(np.float32), np.nan, of_scales),
        )

    def _rounding(self) -> dict[str, Any]:
        """Return the Zarr attributes of an array with rounded values, {} without rounding."""
        return {} if self.keep_bits is None else {"mantissa_bits": self.keep_bits, "relative_error_at_most": self.bound}

    def codecs(self, dtype: np.dtype) -> list[BytesBytesCodec]:
        """Return Zarr's bytes-to-bytes codecs: the compressor if any, then a CRC-32C behind each chunk."""
        from zarr.codecs import BloscCodec, Crc32cCodec

        if self.compressor is None:
            return [Crc32cCodec()]
        return [
            BloscCodec(cname=self.compressor, clevel=5, shuffle="bitshuffle", typesize=dtype.itemsize),
            Crc32cCodec(),
        ]

    def encode(self, values: np.ndarray, dtype: str) -> tuple[np.ndarray, ...]:
        """Return what each of `arrays` stores of an image's values (P, C, h, w), little endian and in C order.

        dtype: of the store, to which values are converted first. Raises OverflowError for values that are not finite
        in it, unless they are stored as they are: then they are found while they are written.
        """
        import numpy as np

        from pathseg.store.format.chunks import all_finite

        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
        if self.scaled:
            return _scaled(values)
        if self.keep_bits is None:
            return (values,)
        if not all_finite(values):
            raise OverflowError("a value is not finite")
        limit = self.largest_rounded(float(np.finfo(values.dtype).max))  # larger ones would become infinite
        return (_rounded(values, self.keep_bits, limit),)


def unscaled(integers: np.ndarray, scales: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Fill `out` (P, C, h, w) with whole numbers times the scales (C,) of their channels, and return it."""
    import numpy as np

    return np.multiply(integers, for_cells(scales), out=out, casting="same_kind")


def for_cells(scales: Array) -> Array:
    """Return scales (C,) or (N, C) in a shape that multiplies whole numbers (P, C, h, w) or (N, P, C, h, w)."""
    return scales[..., None, :, None, None]  # type: ignore[index]


def _rounded(values: np.ndarray, keep_bits: int, limit: float) -> np.ndarray:
    """Return finite values with `keep_bits` of their mantissas, rounded to the nearest, ties to even, at most `limit`.

    In whole numbers and by pieces that a core's cache holds: NumPy computes float16 a number at a time.
    """
    import numpy as np

    from pathseg.store.format.chunks import all_finite

    dtype, width = values.dtype, 8 * values.dtype.itemsize
    unsigned, sign = np.dtype(f"<u{dtype.itemsize}"), 1 << (width - 1)
    dropped = int(np.finfo(dtype).nmant) - keep_bits
    rounded = np.empty_like(values)
    given, found = (array.reshape(-1).view(unsigned) for array in (values, rounded))
    for start in range(0, given.size, CACHED_VALUES):
        piece, own = given[start : start + CACHED_VALUES], found[start : start + CACHED_VALUES]
        np.right_shift(piece, dropped, out=own)
        own &= 1
        own += (1 << (dropped - 1)) - 1
        own += piece
        own &= (1 << width) - (1 << dropped)
        if not all_finite(own.view(dtype)):
            magnitude = np.minimum(own & (sign - 1), np.array(limit, dtype).view(unsigned))
            np.bitwise_or(own & sign, magnitude, out=own)
    return rounded


def _scaled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whole numbers (P, C, h, w) int8 and the scale of each channel, (C,) float32: its largest magnitude / 127.

    Of a channel of zeros, or of less than 127 * 2^-126, the scale is 2^-126, so that none is divided by zero. Where
    127 scales would be infinite, as of the largest float32, it is the next smaller number. Raises OverflowError.
    """
    import numpy as np

    largest = np.zeros(values.shape[1], np.float32)
    for patch in values:  # which fits into the processor's cache: of a whole image, each step would wait for memory
        np.maximum(largest, np.abs(patch.astype(np.float32)).max(axis=(1, 2)), out=largest)
    if not np.isfinite(largest).all():
        raise OverflowError("a value is not finite")
    scales = np.maximum(largest / np.float32(LARGEST), np.finfo(np.float32).tiny)
    with np.errstate(over="ignore"):
        beyond = np.isinf(scales * np.float32(LARGEST))
    scales = np.where(beyond, np.nextafter(scales, np.float32(0)), scales)
    integers = np.empty(values.shape, np.int8)
    for patch, whole in zip(values, integers, strict=True):
        scaled = patch.astype(np.float32)
        scaled /= scales[:, None, None]
        np.copyto(whole, np.rint(scaled, out=scaled), casting="unsafe")
    return integers, scales.astype("<f4", copy=False)


PACKINGS: dict[str, Packing] = {
    "none": Packing("values as they are: fastest, activations hardly shrink"),
    "lossless": Packing("blosc lz4 with bit shuffling, about a tenth smaller", 1 / 1.12, "lz4"),
    "rounded": Packing(
        "mantissa rounded to 5 bits, then blosc zstd: relative error at most 1/64", 1 / 1.77, "zstd", keep_bits=5
    ),
    "int8": Packing(
        "one signed byte a value, times a scale per image and channel: half of float16, not compressed; error at most "
        "1/254 of the channel's largest magnitude, plus the rounding of the dtype",
        stored_dtype="int8",
    ),
}
