"""The arrays of a store: names, shapes, chunks and codecs, readable with any Zarr v3 reader and no plugin."""

from __future__ import annotations

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pathseg.store.blocks import array_name
from pathseg.store.contents import Contents

CHUNK_BYTES = 128 * 2**20  # a chunk is one image of one block up to this size, beyond it one patch


def create_pixel_arrays(group: zarr.Group, contents: Contents) -> None:
    """`images`, `masks` and, where there are objects, `instances` padded to the largest original size."""
    n, (height, width) = len(contents.images), contents.key.size
    arrays = {"images": ((n, height, width, 3), "uint8"), "masks": ((n, height, width), "uint8")}
    if contents.has_instances:
        tallest = max(image.height for image in contents.images)
        widest = max(image.width for image in contents.images)
        arrays["instances"] = ((n, tallest, widest), "uint16")
    for name, (shape, dtype) in arrays.items():
        group.create_array(
            name,
            shape=shape,
            chunks=(1, *shape[1:]),
            dtype=dtype,
            fill_value=0,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            config={"write_empty_chunks": True},
        )


def create_feature_array(group: zarr.Group, contents: Contents, *, t: int, block: int) -> None:
    """`t<t>/block<bb>`, (N, P, C, h, w): what one training sample needs of one block is one chunk.

    Not compressed (activations hardly shrink), a CRC-32C behind each chunk, NaN where nothing was written.
    """
    patches, key = contents.grid.patches, contents.key
    c, h, w = contents.blocks[block].stored(key.layout)
    image_bytes = patches * c * h * w * np.dtype(key.dtype).itemsize
    group.create_array(
        array_name(t, block),
        shape=(len(contents.images), patches, c, h, w),
        chunks=(1, patches if image_bytes <= CHUNK_BYTES else 1, c, h, w),
        dtype=key.dtype,
        fill_value=np.nan,
        compressors=Crc32cCodec(),
        config={"write_empty_chunks": True},
        dimension_names=("image", "patch", "channel", "y", "x"),
    )
