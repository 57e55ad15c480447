import sys
import threading

import numpy as np
import pytest

from pathseg.store.errors import Damaged
from pathseg.store.location.local import LocalFolder
from pathseg.store.records import (
    PIXELS,
    ArraySet,
    CompletionRecord,
    Records,
    checksum,
    file_states,
    parse_record_file,
    seal,
)


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
    assert found.checksum_of(PIXELS, "images", 7) == 1


def test_blocks_of_several_runs_add_up(tmp_path):
    records = records_of(tmp_path)
    records.write(ArraySet(50, (4, 5, 6)), 0, {"a": [1]})
    records.write(ArraySet(50, (0, 1)), 0, {"a": [1]})
    assert records.missing(50, range(8), 0) == (2, 3, 7)
    assert records.missing(10, (4,), 0) == (4,)
    assert records.missing(50, (4,), 1) == (4,)
    assert records.arrays_with(50, 1, 0) == ArraySet(50, (0, 1))
    assert records.arrays_with(50, 2, 0) is None
    assert records.timesteps() == (50,)


def test_a_unit_that_lacks_an_image_keeps_the_others(tmp_path):
    records_of(tmp_path, 3).write(PIXELS, 1, {"images": [11, None, 13]})
    records = records_of(tmp_path, 3)
    assert [records.done(PIXELS, index) for index in range(2, 7)] == [False, True, False, True, False]
    assert records.checksum_of(PIXELS, "images", 5) == 13
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


@pytest.mark.parametrize(
    ("arrays", "name"), [(PIXELS, "pixels"), (ArraySet(50, (4, 5, 6)), "t50/4-6"), (ArraySet(0, (0, 9)), "t0/0,9")]
)
@pytest.mark.parametrize(("complete", "suffix"), [(True, ".json"), (False, ".lacking.json")])
def test_the_file_name_of_a_record_holds_arrays_and_unit(arrays, name, complete, suffix):
    file = f"_done/{name}/000012{suffix}"
    assert arrays.record_file(12, complete=complete) == file
    assert parse_record_file(file) == (arrays, 12, complete)


@pytest.mark.parametrize(
    "name",
    [
        "_done/metadata.json",
        "_done/pixels/12.json",
        "_done/t50/6-4/000000.json",
        "_done/t50/4,5/000000.json",
        "_done/t50/4-100/000000.json",
        "_done/t050/4/000000.json",
        "_done/pixels/000000.json.abc.partial",
        "t50/4-6/000000.json",
    ],
)
def test_other_files_are_no_records(name):
    assert parse_record_file(name) is None


def test_a_record_comes_back_equal_through_json():
    record = CompletionRecord(ArraySet(50, (4, 9)), 3, {"t50/block04": (1, None), "t50/block09": (2, None)})
    assert CompletionRecord.from_json(record.to_json(), source="a") == record
    assert (record.written, record.complete) == ({0}, False)


@pytest.mark.parametrize(
    "body",
    [
        {"part": "pixels", "unit": 0},
        {"part": "pixels", "unit": "0", "crc32c": {}},
        {"part": "pixels", "unit": 0, "crc32c": {"images": ["1"]}},
        {"part": "t50/9-4", "unit": 0, "crc32c": {}},
        {"part": 7, "unit": 0, "crc32c": {}},
    ],
)
def test_a_record_with_a_missing_or_mistyped_field_is_damaged(body):
    with pytest.raises(Damaged, match=r"000007\.json"):
        CompletionRecord.from_json(seal(body), source="a.zarr/_done/pixels/000007.json")


def test_files_of_one_slide_are_one_state_that_changes_with_each(tmp_path):
    paths = tmp_path / "a.mrxs", tmp_path / "a.dat"
    for path, size in zip(paths, (3, 5), strict=True):
        path.write_bytes(b"x" * size)
    assert file_states([(paths[0],)]) == file_states([paths[0]])
    states = [file_states([paths])]
    assert states[0].startswith("8:") and " " not in states[0]
    for path in paths:
        path.write_bytes(path.read_bytes())  # the same content, written later
        states.append(file_states([paths]))
    assert len(set(states)) == 3


def test_records_are_looked_up_while_another_thread_writes_them(tmp_path, monkeypatch):
    records, errors = records_of(tmp_path), []
    monkeypatch.setattr(LocalFolder, "write", lambda self, name, data: None)
    before = sys.getswitchinterval()

    def look_up():
        try:
            while writing.is_alive():
                records.missing(50, (0, 4), 0), records.committed(), records.timesteps()
        except RuntimeError as e:  # the dictionary has changed its size
            errors.append(e)

    def write():
        for t in range(300):
            records.write(ArraySet(t, (0,)), 0, {f"t{t}/block00": [1]})

    writing, looking = threading.Thread(target=write), threading.Thread(target=look_up)
    sys.setswitchinterval(1e-6)
    try:
        for thread in (writing, looking):
            thread.start()
        for thread in (writing, looking):
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []
    assert len(records.committed()) == 300
