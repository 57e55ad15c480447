"""How feature values are packed: as they are, compressed without loss, or rounded and compressed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numcodecs.bitround import BitRound
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec


@dataclass(frozen=True)
class Packing:
    """One way of packing. keep_bits: bits of the mantissa that are kept, None = all of them."""

    summary: str
    compressor: str | None = None
    keep_bits: int | None = None

    @property
    def bound(self) -> float:
        """Largest relative error of a stored value against the rounded-to-dtype one: 2^-(keep_bits + 1), 0 = none.

        Holds for normal numbers; below 2^-14 (float16) or 2^-126 (float32) in magnitude the error is at most that
        bound times this smallest normal number.
        """
        return 0.0 if self.keep_bits is None else 2.0 ** -(self.keep_bits + 1)

    def stated(self) -> dict[str, float]:
        """What is written beside values that were rounded, for whoever reads them."""
        return {} if self.keep_bits is None else {"mantissa_bits": self.keep_bits, "relative_error_at_most": self.bound}

    def codecs(self, dtype: str) -> list[BytesBytesCodec]:
        """Zarr's codecs after the bytes: the compressor if any, then a CRC-32C behind each chunk."""
        if self.compressor is None:
            return [Crc32cCodec()]
        size = np.dtype(dtype).itemsize
        return [BloscCodec(cname=self.compressor, clevel=5, shuffle="bitshuffle", typesize=size), Crc32cCodec()]

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """The values as they will be read back."""
        if self.keep_bits is None:
            return values
        return BitRound(self.keep_bits).encode(values.copy()).view(values.dtype).reshape(values.shape)


PACKINGS: dict[str, Packing] = {
    "none": Packing("values as they are: fastest, activations hardly shrink"),
    "lossless": Packing("blosc lz4 with bit shuffling, about a tenth smaller", compressor="lz4"),
    "rounded": Packing("mantissa rounded to 5 bits, then blosc zstd: relative error at most 1/64", "zstd", keep_bits=5),
}
