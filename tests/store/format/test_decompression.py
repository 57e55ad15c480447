"""Files that claim, or hold, far more than an image: with right checksums, as of somebody who wants to do harm."""

import zlib

import google_crc32c
import numpy as np
import pytest
from numcodecs import Zstd
from zarr.codecs import ZstdCodec

from pathseg.store.errors import Damaged
from pathseg.store.features import FeatureStore, replaced_file
from pathseg.store.format.decompression import decompress_zlib, zstd_content_size
from pathseg.store.verify import Verification, verify
from pathseg.store.writer import StoreWriter

HEADER = bytes.fromhex("28b52ffd")


def with_checksum(content):
    return content + google_crc32c.value(content).to_bytes(4, "little")


def frame(size_bytes, blocks=b""):
    """A zstd frame with one segment and 8 bytes of content size."""
    return HEADER + b"\xe0" + size_bytes.to_bytes(8, "little") + blocks


def bomb(mib):
    """A zstd frame of blocks that each repeat one byte 128 KiB times, with a right content size."""
    kinds = [(2**17 << 3 | 1 << 1 | last).to_bytes(3, "little") + b"\0" for last in (0, 1)]
    return frame(mib * 2**20, kinds[0] * (8 * mib - 1) + kinds[1])


@pytest.fixture
def sharded(tmp_path, toy_contents, toy_key, fill_store):
    made = toy_contents(key=toy_key(packing="lossless"), images_per_unit=2)
    return fill_store(StoreWriter(tmp_path / "sharded.zarr", made), blocks=(4,))


@pytest.fixture
def decoded(monkeypatch):
    """Sizes that zstd has decoded."""
    sizes, decode = [], Zstd.decode
    monkeypatch.setattr(
        ZstdCodec, "_zstd_codec", type("Recorded", (), {"decode": lambda self, data: note(decode(Zstd(), data))})()
    )

    def note(values):
        sizes.append(len(values))
        return values

    return sizes


@pytest.mark.parametrize("size", [0, 5, 255, 256, 300, 65791, 65792, 70000])
@pytest.mark.parametrize("checksum", [False, True])
def test_the_size_in_a_frame_is_the_one_that_zstd_wrote(size, checksum):
    assert zstd_content_size(bytes(Zstd(3, checksum).encode(bytes(size)))) == size


def test_a_frame_without_a_size_or_with_half_a_header_has_none():
    for head in (b"", HEADER, HEADER + b"\x00\x58", frame(7)[:9], b"\x50\x2a\x4d\x18" + bytes(14)):
        assert zstd_content_size(head) is None
    assert zstd_content_size(HEADER + b"\x40\x58" + b"\x01\x00") == 257  # a window descriptor, then two bytes
    assert zstd_content_size(HEADER + b"\x23\x00\x00\x00\x00\x09") == 9  # four bytes of dictionary id


def test_a_zlib_stream_is_decompressed_to_a_size_and_not_beyond():
    stream = zlib.compress(bytes(1000))
    assert decompress_zlib(stream, 1000) == decompress_zlib(stream, 1001) == bytes(1000)
    for content, most in ((stream, 999), (stream[:-1], 1000), (b"", 10)):
        with pytest.raises(ValueError, match=f"not whole, or holds more than {most} bytes"):
            decompress_zlib(content, most)


@pytest.mark.parametrize("content", [frame(2**40), bomb(64), frame(2**64 - 3)], ids=["claim", "bomb", "largest"])
@pytest.mark.parametrize("name", ["images", "masks", "instances"])
def test_a_zstd_frame_that_claims_more_than_an_image_is_damage_and_not_decoded(toy_store, decoded, name, content):
    (chunk,) = (path for path in (toy_store.location.root / name / "c/1").rglob("*") if path.is_file())
    chunk.write_bytes(with_checksum(content))
    store = FeatureStore.open(toy_store.location.root)
    read = {"images": store.image, "masks": store.mask, "instances": store.instances}[name]
    with pytest.raises(Damaged, match=f"{name} of train_1 in .*verify --repair"):
        read(1)
    assert [(f.kind, f.unit) for f in Verification(toy_store.location.root).run()] == [("damaged", 1)]
    assert max(decoded) < 2**20


@pytest.mark.parametrize(("offset", "size"), [(2**62, 100), (0, 2**40), (2**63, 100)])
def test_a_shard_whose_index_leads_out_of_it_is_damage(sharded, offset, size):
    (shard,) = (path for path in (sharded.location.root / "images/c/1").rglob("*") if path.is_file())
    content = shard.read_bytes()
    index = np.frombuffer(content[-36:-4], "<u8").copy()
    index[:2] = offset, size
    shard.write_bytes(content[:-36] + with_checksum(index.tobytes()))
    store = FeatureStore.open(sharded.location.root)
    with pytest.raises(Damaged, match=r"images of train_2 in .*verify --repair"):
        store.image(2)
    store.image(3)
    assert ("damaged", 1) in {(f.kind, f.unit) for f in verify(sharded.location.root)}


def test_memory_that_lacks_is_no_damage(toy_store, sharded, monkeypatch):
    """Else a repair would drop good pixels."""

    def lacks(self, selection):
        raise MemoryError

    monkeypatch.setattr(type(toy_store.array("images")), "__getitem__", lacks)
    for made in (toy_store, sharded):
        before = {path for path in made.location.root.rglob("*") if path.is_file()}
        with pytest.raises(MemoryError):
            FeatureStore.open(made.location.root).image(1)
        with pytest.raises(MemoryError):
            verify(made.location.root, repair=True)
        assert {path for path in made.location.root.rglob("*") if path.is_file()} == before


def test_a_copy_of_a_mask_that_holds_more_than_a_mask_is_not_decompressed(toy_store, monkeypatch):
    """1000 : 1 is about the most that zlib reaches."""
    many = bytes(64 * 2**20)
    crc = google_crc32c.value(many)
    name = replaced_file("masks", 1, crc)
    path = toy_store.location.root / name
    path.parent.mkdir(parents=True)
    path.write_bytes(zlib.compress(many))
    monkeypatch.setattr(zlib, "decompress", lambda *rest: pytest.fail("decompressed without a limit"))
    assert toy_store._replaced("masks", 1, crc) is None
    assert {(f.kind, f.name) for f in verify(toy_store.location.root)} == {("stray", name)}
