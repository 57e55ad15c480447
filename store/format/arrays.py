"""The arrays of a store: names, shapes, chunks, shards and codecs, readable with any Zarr v3 reader and no plugin."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from pathseg.store.blocks import array_name
from pathseg.store.contents import Contents
from pathseg.store.format.packing import PACKINGS
from pathseg.store.records import FOLDER, ArraySet

CHUNK_BYTES = 128 * 2**20  # a chunk is one image of one block up to this size, beyond it one patch


def zarr_metadata(contents: Contents, array_sets: Iterable[ArraySet] = ()) -> dict[str, str]:
    """Return the text of each zarr.json of a store with these contents and arrays, by file name.

    The pixel arrays are always included.
    """
    memory: dict = {}
    group = zarr.create_group(MemoryStore(memory), attributes=contents.to_attributes())
    create_pixel_arrays(group, contents)
    for arrays in sorted(set(array_sets), key=lambda arrays: arrays.name):
        if arrays.t is not None:
            group.require_group(f"t{arrays.t}")
            for block in arrays.blocks:
                create_feature_array(group, contents, t=arrays.t, block=block)
    return {name: buffer.to_bytes().decode() for name, buffer in memory.items() if name.endswith("zarr.json")}


def create_pixel_arrays(group: zarr.Group, contents: Contents) -> None:
    """Create `images`, `masks` and, where there are objects, `instances`, padded to the largest original size.

    An empty array is created in the folder of the completion records, because Zarr lists that folder as a node.
    """
    n, (height, width) = len(contents.images), contents.key.size
    arrays: dict[str, tuple[tuple[int, ...], str]] = {
        "images": ((n, height, width, 3), "uint8"),
        "masks": ((n, height, width), "uint8"),
    }
    if contents.has_instances:
        tallest = max(image.height for image in contents.images)
        widest = max(image.width for image in contents.images)
        arrays["instances"] = ((n, tallest, widest), "uint16")
    for name, (shape, dtype) in arrays.items():
        group.create_array(
            name,
            shape=shape,
            chunks=(1, *shape[1:]),
            shards=_shards((1, *shape[1:]), contents.images_per_unit),
            dtype=dtype,
            fill_value=0,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            config={"write_empty_chunks": True},
            overwrite=True,
        )
    about = "no data: below this name lie the completion records, one JSON file a unit of work"
    group.create_array(FOLDER, shape=(0,), chunks=(1,), dtype="uint8", attributes={"about": about}, overwrite=True)


def create_feature_array(group: zarr.Group, contents: Contents, *, t: int, block: int) -> None:
    """Create `t<t>/block<bb>`, (N, P, C, h, w), one chunk per image (per patch where an image exceeds CHUNK_BYTES).

    Each chunk ends in its CRC-32C; the fill value is NaN.
    """
    patches, key = contents.grid.patches, contents.key
    c, h, w = contents.blocks[block].stored(key.layout)
    image_bytes = patches * c * h * w * np.dtype(key.dtype).itemsize
    chunks = (1, patches if image_bytes <= CHUNK_BYTES else 1, c, h, w)
    group.create_array(
        array_name(t, block),
        shape=(len(contents.images), patches, c, h, w),
        chunks=chunks,
        shards=_shards((1, patches, c, h, w), contents.images_per_unit),
        dtype=key.dtype,
        fill_value=np.nan,
        compressors=PACKINGS[key.packing].codecs(key.dtype),
        config={"write_empty_chunks": True},
        dimension_names=("image", "patch", "channel", "y", "x"),
        attributes=PACKINGS[key.packing].attributes(),
        overwrite=True,
    )


def chunk_names(array: zarr.Array, unit: int, images_per_unit: int) -> list[str]:
    """Return the chunk or shard files of a unit, as names below the array's folder."""
    chunks = array.shards or array.chunks
    images = range(unit * images_per_unit, min((unit + 1) * images_per_unit, array.shape[0]), chunks[0])
    others = [range(-(-size // step)) for size, step in zip(array.shape[1:], chunks[1:], strict=True)]
    coordinates = itertools.product([i // chunks[0] for i in images], *others)
    return ["c/" + "/".join(map(str, coordinate)) for coordinate in coordinates]


def _shards(one_image: tuple[int, ...], images_per_unit: int) -> tuple[int, ...] | None:
    return (images_per_unit, *one_image[1:]) if images_per_unit > 1 else None
