import numpy as np
import pytest

from pathseg.store.errors import Damaged
from pathseg.store.location.local import LocalFolder
from pathseg.store.records import PIXELS, Records, checksum, features_part


def test_the_checksum_is_crc32c():
    assert checksum(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283  # the check value of CRC-32C


def test_the_checksum_does_not_depend_on_memory_order():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert checksum(values) == checksum(np.asfortranarray(values)) == checksum(values.astype(">f4"))


def records_of(folder, images_per_unit=1):
    return Records(LocalFolder(folder), images_per_unit=images_per_unit)


def test_records_are_found_again(tmp_path):
    records_of(tmp_path).write(PIXELS, 7, {"images": [1]})
    found = records_of(tmp_path)
    assert found.done(PIXELS, 7)
    assert not found.done(PIXELS, 6)
    assert found.expected(PIXELS, "images", 7) == 1


def test_blocks_of_several_runs_add_up(tmp_path):
    records = records_of(tmp_path)
    records.write(features_part(50, (4, 5, 6)), 0, {"a": [1]})
    records.write(features_part(50, (0, 1)), 0, {"a": [1]})
    assert records.missing(50, range(8), 0) == (2, 3, 7)
    assert records.missing(10, (4,), 0) == (4,)
    assert records.missing(50, (4,), 1) == (4,)
    assert records.part_of(50, 1, 0) == "t50/0-1"
    assert records.part_of(50, 2, 0) is None
    assert records.timesteps() == (50,)


def test_a_unit_that_lacks_an_image_keeps_the_others(tmp_path):
    records_of(tmp_path, 3).write(PIXELS, 1, {"images": [11, None, 13]})
    records = records_of(tmp_path, 3)
    assert [records.done(PIXELS, index) for index in range(2, 7)] == [False, True, False, True, False]
    assert records.expected(PIXELS, "images", 5) == 13
    records.write(PIXELS, 1, {"images": [11, 12, 13]})
    assert records_of(tmp_path, 3).done(PIXELS, 4)
    assert list(LocalFolder(tmp_path).names()) == ["_done/pixels/000001.json"]


def test_any_changed_bit_of_a_record_shows(tmp_path):
    records_of(tmp_path).write(PIXELS, 0, {"images": [123456]})
    path = tmp_path / "_done/pixels/000000.json"
    whole = path.read_bytes()
    for position in range(len(whole) * 8):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(Damaged):
            records_of(tmp_path).read(PIXELS, 0)


def test_a_record_in_the_place_of_another_shows(tmp_path):
    records = records_of(tmp_path)
    records.write(PIXELS, 0, {"images": [1]})
    (tmp_path / "_done/pixels/000000.json").rename(tmp_path / "_done/pixels/000003.json")
    with pytest.raises(Damaged, match="is the record of pixels, unit 0"):
        records_of(tmp_path).read(PIXELS, 3)


def test_a_dropped_unit_is_to_be_made_again(tmp_path):
    records = records_of(tmp_path)
    records.write(PIXELS, 0, {"images": [1]})
    records.drop(PIXELS, 0)
    assert not records.done(PIXELS, 0)
    assert list(LocalFolder(tmp_path).names()) == []


def test_what_another_run_has_finished_is_noticed(tmp_path):
    mine, other = records_of(tmp_path), records_of(tmp_path)
    assert not mine.refresh(PIXELS, 0)
    other.write(PIXELS, 0, {"images": [1]})
    assert mine.refresh(PIXELS, 0)
