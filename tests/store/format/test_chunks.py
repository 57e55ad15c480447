import google_crc32c
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from pathseg.store.format.chunks import (
    all_finite,
    chunk_format,
    read_chunks,
    read_from_shard,
    shard_checksums,
    write_chunks,
    write_shard,
)
from pathseg.store.location.local import LocalFolder


def make(folder, **changes):
    values = {"shape": (2, 3, 90, 41), "chunks": (1, 1, 90, 41), "dtype": "float32", "compressors": [Crc32cCodec()]}
    return zarr.create_array(str(folder), **(values | changes))


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(3, 90, 41)).astype("float32")


NAMES = [f"c/1/{patch}/0/0" for patch in range(3)]


def test_zarr_reads_chunks_that_were_written_without_it(tmp_path, values):
    array = make(tmp_path)
    write_chunks(LocalFolder(tmp_path), NAMES, values)
    assert np.array_equal(array[1], values)


def test_the_bytes_are_those_that_zarr_writes(tmp_path, values):
    array = make(tmp_path)
    array[1] = values
    by_zarr = [(tmp_path / name).read_bytes() for name in NAMES]
    write_chunks(LocalFolder(tmp_path), NAMES, values)
    assert [(tmp_path / name).read_bytes() for name in NAMES] == by_zarr


def test_whole_numbers_of_one_byte_are_written_without_zarr_as_zarr_writes_them(tmp_path):
    integers = np.random.default_rng(0).integers(-127, 128, (3, 90, 41), dtype=np.int8)
    array = make(tmp_path, dtype="int8")
    assert chunk_format(array) is not None
    array[1] = integers
    by_zarr = [(tmp_path / name).read_bytes() for name in NAMES]
    read = np.empty_like(integers)
    checksum = write_chunks(LocalFolder(tmp_path), NAMES, integers)
    assert [(tmp_path / name).read_bytes() for name in NAMES] == by_zarr
    assert read_chunks(LocalFolder(tmp_path), NAMES, read) == checksum
    assert np.array_equal(read, integers)


def test_chunks_that_zarr_wrote_are_read_without_it(tmp_path, values):
    make(tmp_path)[1] = values
    read = np.empty_like(values)
    read_chunks(LocalFolder(tmp_path), NAMES, read)
    assert np.array_equal(read, values)


def test_the_checksum_is_that_of_all_chunks_together(tmp_path):
    digits = np.frombuffer(b"123456789", np.uint8).copy()
    location, names = LocalFolder(tmp_path), ["a", "b", "c"]
    assert write_chunks(location, names, digits) == 0xE3069283  # the check value of CRC-32C
    assert read_chunks(location, names, np.empty_like(digits)) == 0xE3069283


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d[:-9], lambda d: d + b"x", lambda d: b"", bytes.swapcase]
)
def test_a_chunk_of_the_wrong_length_or_content_is_refused(tmp_path, values, change):
    write_chunks(LocalFolder(tmp_path), NAMES, values)
    path = tmp_path / NAMES[1]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="c/1/1/0/0 ends"):
        read_chunks(LocalFolder(tmp_path), NAMES, np.empty_like(values))


def test_nothing_has_its_final_name_when_writing_fails(tmp_path, values):
    location = LocalFolder(tmp_path)
    with pytest.raises(OSError, match="no space"), location.create("chunk") as file:
        file.write(values.tobytes())
        raise OSError("no space")
    assert list(location.names()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"shards": (1, 3, 90, 41)},
        {"compressors": []},
        {"compressors": [BloscCodec(typesize=4)]},
        {"compressors": [ZstdCodec(), Crc32cCodec()]},
        {"serializer": BytesCodec(endian="big")},
    ],
)
def test_other_arrays_are_left_to_zarr(tmp_path, options):
    assert chunk_format(make(tmp_path / "plain")) is not None
    assert chunk_format(make(tmp_path / "other", **options)) is None


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_is_not_written(tmp_path, values, value):
    values[2, 50, 3] = value
    with pytest.raises(OverflowError):
        write_chunks(LocalFolder(tmp_path), NAMES, values)
    assert sorted(LocalFolder(tmp_path).names()) == NAMES[:2]


def make_shards(folder, **changes):
    """Five images of (3, 90, 41), three to a file: the second could hold one more."""
    values = {"shape": (5, 3, 90, 41), "chunks": (1, 3, 90, 41), "shards": (3, 3, 90, 41), "fill_value": np.nan}
    return make(folder, config={"write_empty_chunks": True}, **(values | changes))


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(5, 3, 90, 41)).astype("float32")


def write_shards(folder, images, blosc=None):
    fill = np.full(images.shape[1:], np.nan, np.float32)
    chosen = [None if np.isnan(image).all() else image for image in images]
    for name, part in (("c/0/0/0/0", chosen[:3]), ("c/1/0/0/0", chosen[3:])):
        write_shard(LocalFolder(folder), name, part, fill=fill, chunks=3, blosc=blosc)


@pytest.mark.parametrize("set_aside", [[], [0], [1, 4], [3, 4]])
def test_shards_are_the_bytes_that_zarr_writes(tmp_path, images, set_aside):
    images[set_aside] = np.nan
    array = make_shards(tmp_path / "zarr")
    array[:3], array[3:] = images[:3], images[3:]
    write_shards(tmp_path / "ours", images)
    for name in ("c/0/0/0/0", "c/1/0/0/0"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "zarr" / name).read_bytes()


def test_shards_of_one_byte_values_are_the_bytes_that_zarr_writes(tmp_path):
    integers = np.random.default_rng(1).integers(-127, 128, (5, 3, 90, 41), dtype=np.int8)
    array = make_shards(tmp_path / "zarr", dtype="int8", fill_value=-128)
    assert chunk_format(array) is not None
    array[:3], array[3:] = integers[:3], integers[3:]
    fill = np.full(integers.shape[1:], -128, np.int8)
    for name, images in (("c/0/0/0/0", integers[:3]), ("c/1/0/0/0", integers[3:])):
        write_shard(LocalFolder(tmp_path / "ours"), name, images, fill=fill, chunks=3)
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "zarr" / name).read_bytes()


def test_zarr_reads_shards_that_were_written_without_it(tmp_path, images):
    array = make_shards(tmp_path)
    write_shards(tmp_path, images)
    assert np.array_equal(array[:], images)
    assert np.array_equal(array[4], images[4])


def test_each_image_of_a_shard_that_zarr_wrote_is_read_without_it(tmp_path, images):
    array = make_shards(tmp_path)
    array[:3], array[3:] = images[:3], images[3:]
    read = np.empty_like(images)
    for index in range(5):
        read_from_shard(LocalFolder(tmp_path), f"c/{index // 3}/0/0/0", index % 3, read[index], chunks=3)
    assert np.array_equal(read, images)


@pytest.mark.parametrize("change", [lambda d: d[:30_000], lambda d: b"", bytes.swapcase])
def test_a_shard_that_is_not_whole_is_refused(tmp_path, images, change):
    write_shards(tmp_path, images)
    path = tmp_path / "c/0/0/0/0"
    path.write_bytes(change(path.read_bytes()))
    for position in range(3):
        with pytest.raises(ValueError, match="c/0/0/0/0 ends"):
            read_from_shard(LocalFolder(tmp_path), "c/0/0/0/0", position, np.empty_like(images[0]), chunks=3)


@pytest.mark.parametrize(
    "options", [{"chunks": (1, 1, 90, 41)}, {"compressors": []}, {"shards": None}, {"shards": (3, 3, 180, 41)}]
)
def test_other_shards_are_left_to_zarr(tmp_path, options):
    assert chunk_format(make_shards(tmp_path / "plain")).sharded
    other = chunk_format(make_shards(tmp_path / "other", **options))
    assert other is None or not other.sharded


COMPRESSORS = [("lz4", "bitshuffle"), ("zstd", "shuffle")]


def compressed(cname="lz4", shuffle="bitshuffle"):
    """Make the settings of compressed chunks, which shrink: values have few different bytes."""
    return {"compressors": [BloscCodec(cname=cname, clevel=5, shuffle=shuffle, typesize=4), Crc32cCodec()]}


@pytest.mark.parametrize(("cname", "shuffle"), COMPRESSORS)
def test_compressed_chunks_are_the_bytes_that_zarr_writes_and_are_read_back(tmp_path, values, cname, shuffle):
    array, values, read = make(tmp_path, **compressed(cname, shuffle)), values.round(1), np.empty_like(values)
    array[1] = values
    by_zarr = [(tmp_path / name).read_bytes() for name in NAMES]
    blosc = chunk_format(array).blosc
    checksum = write_chunks(LocalFolder(tmp_path), NAMES, values, blosc)
    assert [(tmp_path / name).read_bytes() for name in NAMES] == by_zarr
    assert sum(map(len, by_zarr)) < values.nbytes
    assert read_chunks(LocalFolder(tmp_path), NAMES, read, blosc) == checksum == google_crc32c.value(values.tobytes())
    assert np.array_equal(read, values)


@pytest.mark.parametrize("set_aside", [[], [0], [1, 4], [3, 4]])
def test_compressed_shards_are_the_bytes_that_zarr_writes(tmp_path, images, set_aside):
    images = images.round(1)
    images[set_aside] = np.nan
    array = make_shards(tmp_path / "zarr", **compressed())
    array[:3], array[3:] = images[:3], images[3:]
    write_shards(tmp_path / "ours", images, blosc=chunk_format(array).blosc)
    for name in ("c/0/0/0/0", "c/1/0/0/0"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "zarr" / name).read_bytes()


def test_each_image_of_a_compressed_shard_that_zarr_wrote_is_read_without_it(tmp_path, images):
    array, images = make_shards(tmp_path, **compressed()), images.round(1)
    array[:3], array[3:] = images[:3], images[3:]
    read, blosc = np.empty_like(images), chunk_format(array).blosc
    for index in range(5):
        name = f"c/{index // 3}/0/0/0"
        crc = read_from_shard(LocalFolder(tmp_path), name, index % 3, read[index], chunks=3, blosc=blosc)
        assert crc == google_crc32c.value(images[index].tobytes())
    assert np.array_equal(read, images)
    with pytest.raises(ValueError, match="c/1/0/0/0 ends"):  # the last shard holds two images
        read_from_shard(LocalFolder(tmp_path), "c/1/0/0/0", 2, read[0], chunks=3, blosc=blosc)


@pytest.mark.parametrize("change", [lambda d: d[:30_000], lambda d: d[:9], lambda d: b"", bytes.swapcase])
def test_a_compressed_shard_that_is_not_whole_is_refused(tmp_path, images, change):
    blosc = chunk_format(make_shards(tmp_path, **compressed())).blosc
    write_shards(tmp_path, images, blosc=blosc)
    path = tmp_path / "c/0/0/0/0"
    path.write_bytes(change(path.read_bytes()))
    for position in range(3):
        with pytest.raises(ValueError, match="c/0/0/0/0 ends"):
            read_from_shard(
                LocalFolder(tmp_path), "c/0/0/0/0", position, np.empty_like(images[0]), chunks=3, blosc=blosc
            )


def with_crc(body):
    return body + google_crc32c.value(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[:-1],
        lambda d: d[:-900],
        lambda d: d + b"x",
        lambda d: b"",
        lambda d: b"123456789",
        lambda d: with_crc(b"123456789"),
        lambda d: d[:99] + bytes([d[99] ^ 1]) + d[100:],
        lambda d: with_crc(d[:-9]),  # of another size than Blosc's header says
        lambda d: with_crc(d[:4] + bytes([d[4] ^ 4]) + d[5:-4]),  # a header of more values than the chunk has
        lambda d: with_crc(d[:-4]) * 9,
    ],
)
def test_a_compressed_chunk_of_the_wrong_length_or_content_is_refused(tmp_path, values, change):
    blosc = chunk_format(make(tmp_path, **compressed())).blosc
    write_chunks(LocalFolder(tmp_path), NAMES, values.round(1), blosc)
    path = tmp_path / NAMES[1]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="c/1/1/0/0 ends"):
        read_chunks(LocalFolder(tmp_path), NAMES, np.empty_like(values), blosc)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_value_that_is_not_finite_is_not_compressed(tmp_path, values, value):
    values[2, 50, 3] = value
    with pytest.raises(OverflowError):
        write_chunks(LocalFolder(tmp_path), NAMES, values, chunk_format(make(tmp_path, **compressed())).blosc)
    assert sorted(LocalFolder(tmp_path).names()) == sorted([*NAMES[:2], "zarr.json"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_value_that_is_not_finite_is_found_at_any_position(dtype, value):
    numbers = np.random.default_rng(0).normal(size=300_000).astype(dtype)
    numbers[0], numbers[1] = np.finfo(dtype).max, np.finfo(dtype).min
    assert all_finite(numbers)
    for position in (0, 131_071, 131_072, 299_999):
        changed = numbers.copy()
        changed[position] = value
        assert not all_finite(changed)
        assert not all_finite(np.stack([changed, changed]).T)


def test_an_uncompressed_shard_whose_chunks_lie_in_another_order_is_not_as_it_was_written(tmp_path, images):
    """Reading goes by the order of the images: what it would not find there must not pass as whole."""
    array = make_shards(tmp_path)
    array[:3] = images[:3]
    path, step, values = tmp_path / "c/0/0/0/0", images[0].nbytes + 4, np.empty_like(images[0])
    expected = [google_crc32c.value(image.tobytes()) for image in images[:3]]
    assert shard_checksums(LocalFolder(tmp_path), "c/0/0/0/0", values, images=3, chunks=3) == expected
    data = path.read_bytes()
    index = np.array([(step, step), (0, step), (2 * step, step)], "<u8").tobytes()
    path.write_bytes(data[step : 2 * step] + data[:step] + data[2 * step : 3 * step] + with_crc(index))
    assert np.array_equal(array[:3], images[:3])  # for Zarr it is the same array
    with pytest.raises(ValueError, match="index with chunk 0"):
        shard_checksums(LocalFolder(tmp_path), "c/0/0/0/0", values, images=3, chunks=3)
