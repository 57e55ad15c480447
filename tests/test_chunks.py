import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from pathseg.store.chunks import all_finite, is_plain, read_chunks, write_chunks
from pathseg.store.local import LocalFolder


def make(folder, **changes):
    values = {"shape": (2, 3, 90, 41), "chunks": (1, 1, 90, 41), "dtype": "float32", "compressors": [Crc32cCodec()]}
    return zarr.create_array(str(folder), **(values | changes))


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(3, 90, 41)).astype("float32")


NAMES = [f"c/1/{patch}/0/0" for patch in range(3)]


def test_zarr_reads_what_was_written_past_it(tmp_path, values):
    array = make(tmp_path)
    write_chunks(LocalFolder(tmp_path), NAMES, values)
    assert np.array_equal(array[1], values)


def test_the_bytes_are_those_that_zarr_writes(tmp_path, values):
    array = make(tmp_path)
    array[1] = values
    by_zarr = [(tmp_path / name).read_bytes() for name in NAMES]
    write_chunks(LocalFolder(tmp_path), NAMES, values)
    assert [(tmp_path / name).read_bytes() for name in NAMES] == by_zarr


def test_what_zarr_wrote_is_read_past_it(tmp_path, values):
    make(tmp_path)[1] = values
    read = np.empty_like(values)
    read_chunks(LocalFolder(tmp_path), NAMES, read)
    assert np.array_equal(read, values)


def test_the_checksum_is_that_of_all_chunks_together(tmp_path):
    digits = np.frombuffer(b"123456789", np.uint8).copy()
    place, names = LocalFolder(tmp_path), ["a", "b", "c"]
    assert write_chunks(place, names, digits) == 0xE3069283  # the check value of CRC-32C
    assert read_chunks(place, names, np.empty_like(digits)) == 0xE3069283


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d[:-9], lambda d: d + b"x", lambda d: b"", bytes.swapcase]
)
def test_a_chunk_that_is_not_whole_is_refused(tmp_path, values, change):
    write_chunks(LocalFolder(tmp_path), NAMES, values)
    path = tmp_path / NAMES[1]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="c/1/1/0/0 ends"):
        read_chunks(LocalFolder(tmp_path), NAMES, np.empty_like(values))


def test_nothing_has_its_final_name_when_writing_fails(tmp_path, values):
    place = LocalFolder(tmp_path)
    with pytest.raises(OSError, match="no space"), place.create("chunk") as file:
        file.write(values.tobytes())
        raise OSError("no space")
    assert list(place.names()) == []


@pytest.mark.parametrize(
    "options", [{"shards": (1, 3, 90, 41)}, {"compressors": []}, {"serializer": BytesCodec(endian="big")}]
)
def test_other_arrays_are_left_to_zarr(tmp_path, options):
    assert is_plain(make(tmp_path / "plain"))
    assert not is_plain(make(tmp_path / "other", **options))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_value_that_is_not_finite_is_found_at_any_place(dtype, value):
    numbers = np.random.default_rng(0).normal(size=300_000).astype(dtype)
    numbers[0], numbers[1] = np.finfo(dtype).max, np.finfo(dtype).min
    assert all_finite(numbers)
    for place in (0, 131_071, 131_072, 299_999):
        changed = numbers.copy()
        changed[place] = value
        assert not all_finite(changed)
        assert not all_finite(np.stack([changed, changed]).T)
