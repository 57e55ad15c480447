"""The arrays of a store: names, shapes, chunks, shards and codecs, readable with any Zarr v3 reader and no plugin."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from pathseg.store.contents import Contents
from pathseg.store.errors import Damaged
from pathseg.store.format.decompression import with_sized_zstd
from pathseg.store.format.names import FEATURE_NODE, FOLDER
from pathseg.store.format.packing import StoredArray
from pathseg.store.records import ArraySet

CHUNK_BYTES = 128 * 2**20  # a chunk is one image of one block up to this size, beyond it one patch


def zarr_metadata(contents: Contents, array_sets: Iterable[ArraySet] = ()) -> dict[str, str]:
    """Return the text of each zarr.json of a store with these contents and arrays, by file name.

    The pixel arrays are always included.
    """
    memory: dict = {}
    group = zarr.create_group(MemoryStore(memory), attributes=contents.to_attributes(), zarr_format=3)
    for name in ("images", "masks", "instances", FOLDER) if contents.has_instances else ("images", "masks", FOLDER):
        _create_array(group, contents, name)
    for arrays in sorted(set(array_sets), key=lambda arrays: arrays.name):
        if arrays.t is not None:
            group.require_group(f"t{arrays.t}")
            for name in contents.array_names(arrays):
                _create_array(group, contents, name)
    return {name: buffer.to_bytes().decode() for name, buffer in memory.items() if name.endswith("zarr.json")}


def _create_array(group: zarr.Group, contents: Contents, name: str) -> None:
    """Create an array by name. Raises ValueError for one that a store with these contents does not have.

    Dimensions are named so that those of one group with the same name have the same size, as xarray requires.
    """
    node = FEATURE_NODE.fullmatch(f"{name}/zarr.json")
    if node and node["block"]:
        found = [array for array in contents.stored_arrays(int(node["t"]), int(node["block"])) if array.name == name]
        if not found:
            raise ValueError(f"there is no array {name} in a store of packing {contents.key.packing}")
        _create_feature_array(group, contents, found[0])
    elif name == FOLDER:  # Zarr lists the folder of the completion records as a node, so that it has to be one
        about = "no data: below this name lie the completion records, one JSON file a unit of work"
        _create(group, name, (0,), chunks=(1,), dtype="uint8", dimension_names=("record",), attributes={"about": about})
    else:
        _create_pixel_array(group, contents, name)


def _create_pixel_array(group: zarr.Group, contents: Contents, name: str) -> None:
    """Create `images`, `masks` or, where there are objects, `instances`, padded to the largest original size."""
    n, (height, width) = len(contents.images), contents.key.size
    arrays: dict[str, tuple[tuple[int, ...], str, tuple[str, ...]]] = {
        "images": ((n, height, width, 3), "uint8", ("image", "row", "column", "rgb")),
        "masks": ((n, height, width), "uint8", ("image", "row", "column")),
    }
    if contents.has_instances:
        arrays["instances"] = ((n, *contents.padded_px), "uint16", ("image", "original_row", "original_column"))
    if name not in arrays:
        raise ValueError(f"there is no array {name} in a store")
    shape, dtype, dimension_names = arrays[name]
    _create(
        group,
        name,
        shape,
        chunks=(1, *shape[1:]),
        shards=_shards((1, *shape[1:]), contents.images_per_unit),
        dtype=dtype,
        fill_value=0,
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        config={"write_empty_chunks": True},
        dimension_names=dimension_names,
    )


def _create_feature_array(group: zarr.Group, contents: Contents, array: StoredArray) -> None:
    """Create an array of a block, (N, *shape of an image), one chunk per image (per patch above CHUNK_BYTES).

    Each chunk ends in its CRC-32C; the fill value is one that is never stored.
    """
    first, *rest = array.shape
    _create(
        group,
        array.name,
        (len(contents.images), *array.shape),
        chunks=(1, first if array.image_bytes <= CHUNK_BYTES else 1, *rest),
        shards=_shards((1, *array.shape), contents.images_per_unit),
        dtype=array.dtype,
        fill_value=array.fill_value,
        compressors=contents.packing.codecs(array.dtype),
        config={"write_empty_chunks": True},
        dimension_names=("image", *array.dimension_names),
        attributes=dict(array.attributes),
    )


def _create(group: zarr.Group, name: str, shape: tuple[int, ...], **settings: Any) -> None:
    group.create_array(name, shape=shape, overwrite=True, **settings)


def open_array(
    store: Store, contents: Contents, name: str, text: str | bytes, *, location: str, grown: bool = False
) -> zarr.Array:
    """Open an array for reading, after checking that its zarr.json describes the array that the contents ask for.

    text: of its zarr.json. location: of the store, for messages. grown: it may hold more images. Raises Damaged, so
    that sizes that somebody else wrote into a zarr.json are never allocated.
    """
    try:
        memory: dict = {}
        group = zarr.create_group(MemoryStore(memory), zarr_format=3)
        _create_array(group, contents, name)
        wanted, found = json.loads(memory[f"{name}/zarr.json"].to_bytes()), json.loads(text)
        if grown and found["shape"][0] > wanted["shape"][0]:
            wanted["shape"][0] = found["shape"][0]
        for field in ("zarr_format", "node_type", "shape", "data_type", "chunk_grid"):
            if found.get(field) != wanted[field]:
                raise ValueError(f"{field} is {found.get(field)!r:.200}, but has to be {wanted[field]!r}")
        if _codec_names(found["codecs"]) != _codec_names(wanted["codecs"]):
            raise ValueError("its codecs are not those of the store's packing")
        return with_sized_zstd(zarr.open_array(store, path=name, mode="r", zarr_format=3))
    except Exception as e:  # metadata that Zarr cannot read end in exceptions of many types
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise Damaged(f"{location}/{name}/zarr.json is damaged: {reason}; run pathseg verify --repair") from e


def same_metadata(one: bytes, other: str | bytes) -> bool:
    """Return whether two texts of a zarr.json describe the same node; names of dimensions do not count.

    Releases of Zarr format the same metadata differently, and earlier releases of pathseg named other dimensions.
    """
    try:
        nodes = [json.loads(text) for text in (one, other)]
        first, second = ({k: v for k, v in node.items() if k != "dimension_names"} for node in nodes)
    except (ValueError, AttributeError, RecursionError):
        return False
    return first == second


def _codec_names(codecs: list[dict[str, Any]]) -> list[Any]:
    """Return the names of codecs in order, those inside of shards too."""
    return [(codec["name"], _codec_names(codec.get("configuration", {}).get("codecs", []))) for codec in codecs]


def chunk_names(array: zarr.Array, unit: int, images_per_unit: int) -> list[str]:
    """Return the chunk or shard files of a unit, as names below the array's folder."""
    chunks = array.shards or array.chunks
    images = range(unit * images_per_unit, min((unit + 1) * images_per_unit, array.shape[0]), chunks[0])
    others = [range(-(-size // step)) for size, step in zip(array.shape[1:], chunks[1:], strict=True)]
    coordinates = itertools.product([i // chunks[0] for i in images], *others)
    return ["c/" + "/".join(map(str, coordinate)) for coordinate in coordinates]


def _shards(one_image: tuple[int, ...], images_per_unit: int) -> tuple[int, ...] | None:
    return (images_per_unit, *one_image[1:]) if images_per_unit > 1 else None
