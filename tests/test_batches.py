import numpy as np
import pytest
import torch

from pathseg.store.writer import StoreWriter
from pathseg.train import memory
from pathseg.train.batches import FeatureReader, class_pixels

CPU = torch.device("cpu")


def test_batches_come_in_the_order_given_with_what_the_store_holds(toy_store):
    reader = FeatureReader(toy_store, {50: (4, 9)}, device=CPU)
    seen = list(reader.batches([3, 0, 2], 2))
    assert [batch.indices for batch in seen] == [(3, 0), (2,)]
    assert seen[0].features[50][4].shape == (2, 2, 6, 16, 16)
    assert np.array_equal(seen[0].features[50][9][1].numpy(), toy_store.read(0, t=50, blocks=(9,))[9])
    assert np.array_equal(seen[1].masks[0].numpy(), toy_store.mask(2))


@pytest.mark.parametrize(("free", "reads"), [(2**40, 2), (0, 6)])
def test_an_image_is_read_once_where_it_fits_into_memory(toy_store, monkeypatch, free, reads):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    read, count = toy_store.read, []
    monkeypatch.setattr(toy_store, "read", lambda index, **kw: count.append(index) or read(index, **kw))
    reader = FeatureReader(toy_store, {50: (4,)}, device=CPU)
    for _ in range(3):
        assert len(list(reader.batches([0, 1], 1))) == 2
    assert len(count) == reads


def test_class_pixels_are_those_of_the_masks(toy_store):
    expected = np.bincount(np.stack([toy_store.mask(i) for i in (0, 1)]).ravel(), minlength=2)
    assert class_pixels(toy_store, (0, 1)).tolist() == expected.tolist()


def test_memory_can_be_capped_and_what_was_read_is_counted(toy_store):
    # one image: block 4 of 2 patches * 6 channels * 16 * 16 cells * 2 bytes, and its mask of 256 * 512 bytes
    one = 2 * 6 * 16 * 16 * 2 + 256 * 512
    reader = FeatureReader(toy_store, {50: (4,)}, device=CPU, memory_bytes=2 * one + 5)
    for _ in range(2):
        assert len(list(reader.batches([0, 1, 2], 1))) == 3
    assert reader.kept == 2
    assert reader.bytes_read == 4 * one


def test_ignored_pixels_are_of_no_class(tmp_path, toy_contents):
    writer = StoreWriter(tmp_path / "a.zarr", toy_contents(ignore=255))
    masks = [np.array([[0, 1], [1, 255]], np.uint8).repeat(128, 0).repeat(256, 1), np.full((256, 512), 255, np.uint8)]
    for unit, mask in enumerate(masks):
        writer.write_pixels(unit, [(np.zeros((256, 512, 3), np.uint8), mask, np.zeros((200, 300), np.uint16))])
    # quarters of 128x256 px: one background, two gland, one ignored
    assert class_pixels(writer.store, (0, 1)).tolist() == [128 * 256, 2 * 128 * 256]
