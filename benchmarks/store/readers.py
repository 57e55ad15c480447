"""Reading features chunk by chunk: pathseg, zarr-python and tensorstore on the same store, beside .pt and packed files.

    python -m benchmarks.store.readers [--images 16] [--side 1024] [--turns 5] [--folder DIR] [--out FILE]

Each chunk is one request, of which `concurrency` (1 and 32) are under way at a time, as in zarrs/zarr_benchmarks. All
values are random; all chunks hold a CRC-32C.

cube         The uncompressed layout of zarrs/zarr_benchmarks: side^3 uint16 in chunks of 256^3 (32 MiB).
chunks       A store of blocks 5 and 10 at the paper's shapes, images of 768 px, native layout, float16: a chunk is one
             image of one block (2.7 and 14.2 MB), in a file of its own.
shards       The same with eight images in a file.
files        The same values without Zarr.

pathseg      `FeatureStore.read` from a pool of threads, which compares the CRC-32C with the store's record too; for
             `cube` the function below it, which reads a chunk's file and checks its CRC-32C.
zarr         zarr-python's asynchronous reads, `async.concurrency` as stated.
tensorstore  Asynchronous reads, `file_io_concurrency` and `data_copy_concurrency` as stated, no cache
             (`pip install tensorstore`).
pt           A .pt file for each patch, in kaiko-eva's format, read by `torch.load` from a pool of threads; no checksum.
packed       One file for each block, memory-mapped and copied image by image from a pool of threads; no checksum.

Files come from the page cache: they were just written. Turns alternate between the readers; figures are medians over
the turns. The values of all readers of a layout are compared before they are timed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import shutil
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np
import torch
import zarr

from benchmarks.constant_model import FULL_SIZE
from benchmarks.machine import RESULTS, describe_machine, median_ratio, save_rows, time_in_turn
from benchmarks.store.random_store import random_store
from pathseg.store.blocks import array_name
from pathseg.store.features import FeatureStore
from pathseg.store.format.chunks import read_chunks
from pathseg.store.location.local import LocalFolder

BLOCKS = {block: FULL_SIZE[block] for block in (5, 10)}
CONCURRENCY = (1, 32)
IMAGES_PER_SHARD = 8
CUBE_CHUNK = 256
LAYOUTS = ("cube", "chunks", "shards", "files")
Chunk = tuple[str, tuple[int, ...]]  # an array's name and the place of a chunk in it, in chunks
Read = Callable[[Chunk], np.ndarray]
Visit = Callable[[Chunk, np.ndarray], None]
Epoch = Callable[[Visit], object]  # reads all chunks and hands each on


def with_threads(read: Read, chunks: Sequence[Chunk], concurrency: int) -> Epoch:
    """Return a function that reads all chunks from a pool of threads."""
    pool = ThreadPoolExecutor(concurrency)
    return lambda visit: list(pool.map(lambda chunk: visit(chunk, read(chunk)), chunks))


def all_at_once(read: Callable[[Chunk], Awaitable[np.ndarray]], chunks: Sequence[Chunk], concurrency: int) -> Epoch:
    """Return a function that awaits the reads of all chunks, `concurrency` at a time."""

    async def read_all(visit: Visit) -> None:
        free = asyncio.Semaphore(concurrency)

        async def read_one(chunk: Chunk) -> None:
            async with free:
                visit(chunk, await read(chunk))

        await asyncio.gather(*map(read_one, chunks))

    return lambda visit: asyncio.run(read_all(visit))


def region(place: tuple[int, ...], chunk_shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return where the chunk at a place lies in its array."""
    return tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, chunk_shape, strict=True))


def with_zarr(path: Path, chunks: Sequence[Chunk], concurrency: int) -> Epoch:
    """Return a function that reads all chunks with zarr-python."""
    arrays = {name: zarr.open_array(path / name, mode="r") for name in dict(chunks)}

    async def read(chunk: Chunk) -> np.ndarray:
        array = arrays[chunk[0]]
        return np.asarray(await array.async_array.getitem(region(chunk[1], array.chunks)))

    epoch = all_at_once(read, chunks, concurrency)

    def configured(visit: Visit) -> None:
        with zarr.config.set({"async.concurrency": concurrency}):
            epoch(visit)

    return configured


def with_tensorstore(path: Path, chunks: Sequence[Chunk], concurrency: int) -> Epoch:
    """Return a function that reads all chunks with tensorstore."""
    import tensorstore

    limits = {name: {"limit": concurrency} for name in ("file_io_concurrency", "data_copy_concurrency")}
    context = tensorstore.Context(limits)
    arrays = {}
    for name in dict(chunks):
        files = {"driver": "file", "path": f"{path / name}/"}
        spec = {"driver": "zarr3", "kvstore": files}
        arrays[name] = tensorstore.open(spec, context=context, read=True, open=True).result()

    async def read(chunk: Chunk) -> np.ndarray:
        array = arrays[chunk[0]]
        return await array[region(chunk[1], tuple(map(int, array.chunk_layout.read_chunk.shape)))].read()

    return all_at_once(read, chunks, concurrency)


def with_pathseg(path: Path, chunks: Sequence[Chunk], concurrency: int) -> Epoch:
    """Return a function that reads all chunks of a store."""
    store, blocks = FeatureStore.open(path), {array_name(50, block): block for block in BLOCKS}

    def read(chunk: Chunk) -> np.ndarray:
        block = blocks[chunk[0]]
        return store.read(chunk[1][0], t=50, blocks=[block])[block][None]

    return with_threads(read, chunks, concurrency)


def with_chunk_reader(path: Path, chunks: Sequence[Chunk], concurrency: int) -> Epoch:
    """Return a function that reads all chunks of a cube with the function that a store reads its chunks with."""
    location = LocalFolder(path)

    def read(chunk: Chunk) -> np.ndarray:
        values = np.empty((CUBE_CHUNK,) * 3, "<u2")
        read_chunks(location, ["/".join([chunk[0], "c", *map(str, chunk[1])])], values)
        return values

    return with_threads(read, chunks, concurrency)


def with_pt(path: Path, chunks: Sequence[Chunk], concurrency: int) -> Epoch:
    """Return a function that reads all chunks from a .pt file for each patch."""

    def read(chunk: Chunk) -> np.ndarray:
        files = sorted((path / chunk[0]).glob(f"{chunk[1][0]}-*.pt"))
        return np.stack([torch.load(file)[0].numpy() for file in files])[None]

    return with_threads(read, chunks, concurrency)


def with_packed(path: Path, chunks: Sequence[Chunk], concurrency: int, shapes: dict[str, tuple[int, ...]]) -> Epoch:
    """Return a function that reads all chunks from a memory-mapped file for each block."""
    maps = {name: np.memmap(path / f"{name}.raw", "f2", "r", shape=shape) for name, shape in shapes.items()}
    return with_threads(lambda chunk: maps[chunk[0]][chunk[1][0]][None].copy(), chunks, concurrency)


def write_cube(path: Path, side: int) -> list[Chunk]:
    """Write a cube of random values; return its chunks."""
    shape, counts = (side,) * 3, (side // CUBE_CHUNK,) * 3
    array = zarr.create_array(
        path / "cube", shape=shape, chunks=(CUBE_CHUNK,) * 3, dtype="uint16", compressors=zarr.codecs.Crc32cCodec()
    )
    rng, chunks = np.random.default_rng(0), [("cube", place) for place in np.ndindex(counts)]
    for _, place in chunks:
        array[region(place, array.chunks)] = rng.integers(0, 2**16, array.chunks, np.uint16)
    return chunks


def write_files(path: Path, store: FeatureStore) -> None:
    """Write a store's features as .pt files and as packed files."""
    for block in BLOCKS:
        name = array_name(50, block)
        (path / name).mkdir(parents=True)
        with (path / f"{name}.raw").open("wb") as file:
            for image in range(len(store)):
                values = store.read(image, t=50, blocks=[block])[block]
                file.write(values.data)
                for patch, one in enumerate(torch.from_numpy(values)):
                    torch.save([one.clone()], path / name / f"{image}-{patch}.pt")


def read_digests(epoch: Epoch) -> dict[Chunk, tuple[int, int]]:
    """Return the bytes and the CRC-32C of each chunk as a reader reads it."""
    digests = {}

    def visit(chunk: Chunk, values: np.ndarray) -> None:
        digests[chunk] = values.nbytes, google_crc32c.value(np.ascontiguousarray(values).tobytes())

    epoch(visit)
    return digests


def bytes_of_layout(epochs: Sequence[Epoch]) -> int:
    """Return the bytes that each reader of a layout reads; raise RuntimeError unless all read the same."""
    first, *others = map(read_digests, epochs)
    if any(other != first for other in others):
        raise RuntimeError("two readers read other values")
    return sum(size for size, _ in first.values())


def measure(folder: Path, images: int, side: int, turns: int) -> list[dict[str, object]]:
    """Write what is read, check every reader, and time them; return the rows."""
    cube = write_cube(folder, side)
    store = random_store(folder / "chunks.zarr", ["train"] * images, blocks=BLOCKS)
    random_store(folder / "shards.zarr", ["train"] * images, blocks=BLOCKS, images_per_unit=IMAGES_PER_SHARD)
    write_files(folder / "files", store)
    shapes = {array_name(50, block): store.array(array_name(50, block)).shape for block in BLOCKS}
    features: list[Chunk] = [(name, (image, 0, 0, 0, 0)) for name in shapes for image in range(images)]
    rows: list[dict[str, object]] = []

    def skip(chunk: Chunk, values: np.ndarray) -> None:
        """Do nothing with what was read."""

    for concurrency in CONCURRENCY:
        epochs: dict[tuple[str, str], Epoch] = {
            ("cube", "pathseg"): with_chunk_reader(folder, cube, concurrency),
            ("cube", "zarr"): with_zarr(folder, cube, concurrency),
            ("cube", "tensorstore"): with_tensorstore(folder, cube, concurrency),
        }
        for layout in ("chunks", "shards"):
            for name, reader in (("pathseg", with_pathseg), ("zarr", with_zarr), ("tensorstore", with_tensorstore)):
                epochs[layout, name] = reader(folder / f"{layout}.zarr", features, concurrency)
        epochs["files", "pt"] = with_pt(folder / "files", features, concurrency)
        epochs["files", "packed"] = with_packed(folder / "files", features, concurrency, shapes)
        sizes = {layout: bytes_of_layout([e for (own, _), e in epochs.items() if own == layout]) for layout in LAYOUTS}
        times = time_in_turn({"/".join(names): partial(epoch, skip) for names, epoch in epochs.items()}, turns)
        for layout, name in epochs:
            own, base = times[f"{layout}/{name}"], times[f"{'chunks' if layout == 'files' else layout}/pathseg"]
            rate, ratio = sizes[layout] / 1e9 / statistics.median(own), median_ratio(base, own)
            row = {"layout": layout, "reader": name, "concurrency": concurrency, "gb_per_s": rate}
            rows.append(row | {"rate_of_pathseg": ratio})
            print(
                f"  {layout:>6}, {concurrency:2} at a time, {name:>11}: {rate:.2f} GB/s, {ratio:.2f} of pathseg",
                flush=True,
            )
    return rows


def main() -> None:
    """Measure and save the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=1024, help="of the cube, a multiple of 256")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder without it")
    parser.add_argument("--out", type=Path, default=RESULTS / "readers.json")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        machine = describe_machine(folder) | {
            name: importlib.metadata.version(name) for name in ("zarr", "tensorstore")
        }
        save_rows(
            arguments.out, "read", measure(folder, arguments.images, arguments.side, arguments.turns), machine=machine
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
