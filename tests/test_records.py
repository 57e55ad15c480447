import numpy as np
import pytest

from pathseg.store.errors import Damaged
from pathseg.store.location import Location
from pathseg.store.records import PIXELS, Records, checksum, features_part


def test_the_checksum_is_crc32c():
    assert checksum(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283  # the check value of CRC-32C


def test_the_checksum_does_not_depend_on_memory_order():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert checksum(values) == checksum(np.asfortranarray(values)) == checksum(values.astype(">f4"))


def test_records_are_found_again(tmp_path):
    Records(Location(tmp_path)).write(PIXELS, 7, {"images": 1})
    found = Records(Location(tmp_path))
    assert found.done(PIXELS, 7)
    assert not found.done(PIXELS, 6)
    assert found.read(PIXELS, 7) == {"images": 1}


def test_blocks_of_several_runs_add_up(tmp_path):
    records = Records(Location(tmp_path))
    records.write(features_part(50, (4, 5, 6)), 0, {})
    records.write(features_part(50, (0, 1)), 0, {})
    assert records.missing(50, range(8), 0) == (2, 3, 7)
    assert records.missing(10, (4,), 0) == (4,)
    assert records.missing(50, (4,), 1) == (4,)
    assert records.part_of(50, 1, 0) == "t50/0-1"
    assert records.part_of(50, 2, 0) is None
    assert records.timesteps() == (50,)


def test_a_half_record_is_named(tmp_path):
    records = Records(Location(tmp_path))
    records.write(PIXELS, 0, {"images": 1})
    (tmp_path / "_done" / "pixels" / "000000.json").write_text('{"unit"')
    with pytest.raises(Damaged, match=r"_done/pixels/000000\.json"):
        records.read(PIXELS, 0)
