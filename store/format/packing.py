"""Packing of feature values: uncompressed, compressed without loss, or rounded and compressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the command line takes its help from here, and is to start without Zarr
    import numpy as np
    from zarr.abc.codec import BytesBytesCodec


@dataclass(frozen=True)
class Packing:
    """One way of packing.

    size_ratio: bytes on disk over bytes of the values, measured on float16 activations of the paper's model; 1 is
    exact. compressor: of Blosc, None for no compression. keep_bits: bits of the mantissa that rounding keeps, None for
    all of them.
    """

    summary: str
    size_ratio: float = 1.0
    compressor: Literal["lz4", "zstd"] | None = None
    keep_bits: int | None = None

    @property
    def bound(self) -> float:
        """Largest relative error of a stored value against the value in the store's dtype: 2^-(keep_bits + 1).

        0 without rounding. Holds for normal numbers; below 2^-14 (float16) or 2^-126 (float32) in magnitude the error
        is at most that bound times this smallest normal number.
        """
        return 0.0 if self.keep_bits is None else 2.0 ** -(self.keep_bits + 1)

    def attributes(self) -> dict[str, Any]:
        """Return the Zarr attributes of an array with rounded values, {} without rounding."""
        return {} if self.keep_bits is None else {"mantissa_bits": self.keep_bits, "relative_error_at_most": self.bound}

    def codecs(self, dtype: str) -> list[BytesBytesCodec]:
        """Return Zarr's bytes-to-bytes codecs: the compressor if any, then a CRC-32C behind each chunk."""
        import numpy as np
        from zarr.codecs import BloscCodec, Crc32cCodec

        if self.compressor is None:
            return [Crc32cCodec()]
        size = np.dtype(dtype).itemsize
        return [BloscCodec(cname=self.compressor, clevel=5, shuffle="bitshuffle", typesize=size), Crc32cCodec()]

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Return the values as they will be read back: a rounded copy, or `values` itself without rounding."""
        if self.keep_bits is None:
            return values
        from numcodecs.bitround import BitRound

        return BitRound(self.keep_bits).encode(values.copy()).view(values.dtype).reshape(values.shape)


PACKINGS: dict[str, Packing] = {
    "none": Packing("values as they are: fastest, activations hardly shrink"),
    "lossless": Packing("blosc lz4 with bit shuffling, about a tenth smaller", 1 / 1.12, "lz4"),
    "rounded": Packing(
        "mantissa rounded to 5 bits, then blosc zstd: relative error at most 1/64", 1 / 1.77, "zstd", keep_bits=5
    ),
}
