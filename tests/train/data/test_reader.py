import threading
import time

import numpy as np
import pytest
import torch

from pathseg.store.errors import Damaged
from pathseg.store.writer import StoreWriter
from pathseg.train.config import IMAGE, BaselineConfig, HeadConfig, Layer
from pathseg.train.data import memory
from pathseg.train.data import reader as reader_module
from pathseg.train.data.joined import join_stores
from pathseg.train.data.reader import FeatureReader, class_pixels, required_layers

CPU = torch.device("cpu")


def layers(*blocks, source=0, t=50):
    return [Layer(source, t, block) for block in blocks]


def test_batches_come_in_the_order_given_with_what_the_store_holds(toy_store):
    reader = FeatureReader(toy_store, layers(4, 9), device=CPU)
    seen = list(reader.batches([3, 0, 2], 2))
    assert [batch.indices for batch in seen] == [(3, 0), (2,)]
    assert seen[0].features[Layer(0, 50, 4)].shape == (2, 2, 6, 16, 16)
    assert np.array_equal(seen[0].features[Layer(0, 50, 9)][1].numpy(), toy_store.read(0, t=50, blocks=(9,))[9])
    assert np.array_equal(seen[1].masks[0].numpy(), toy_store.mask(2))


@pytest.mark.parametrize(("free", "reads"), [(2**40, 2), (0, 6)])
def test_an_image_is_read_once_where_it_fits_into_memory(toy_store, monkeypatch, free, reads):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    read, count = toy_store.read_stored, []
    monkeypatch.setattr(toy_store, "read_stored", lambda index, **kw: count.append(index) or read(index, **kw))
    reader = FeatureReader(toy_store, layers(4), device=CPU)
    for _ in range(3):
        assert len(list(reader.batches([0, 1], 1))) == 2
    assert len(count) == reads


def test_class_pixels_are_those_of_the_masks(toy_store):
    expected = np.bincount(np.stack([toy_store.mask(i) for i in (0, 1)]).ravel(), minlength=2)
    assert class_pixels(toy_store, (0, 1)).tolist() == expected.tolist()


def test_memory_can_be_capped_and_what_was_read_is_counted(toy_store):
    # one image: block 4 of 2 patches * 6 channels * 16 * 16 cells * 2 bytes, and its mask of 256 * 512 bytes
    one = 2 * 6 * 16 * 16 * 2 + 256 * 512
    reader = FeatureReader(toy_store, layers(4), device=CPU, memory_bytes=2 * one + 5)
    for _ in range(2):
        assert len(list(reader.batches([0, 1, 2], 1))) == 3
    assert reader.kept == 2
    assert reader.bytes_read == 4 * one


def values(batch, block=4):
    return batch.features[Layer(0, 50, block)].numpy()


def test_a_batch_is_whole_until_the_next_is_requested_and_its_memory_is_used_again(toy_store):
    reader = FeatureReader(toy_store, layers(4), device=CPU, memory_bytes=0)
    stored, addresses = [toy_store.read(i)[4] for i in range(5)], set()
    for _ in range(4):
        for batch in reader.batches(range(5), 1):
            addresses.add(batch.features[Layer(0, 50, 4)].data_ptr())
            time.sleep(0.01)  # so that the threads could spoil it
            assert np.array_equal(values(batch)[0], stored[batch.indices[0]])
    assert len(addresses) <= toy_store.location.concurrency + 1  # those being read, and the one in use


def test_large_images_are_prefetched_one_at_a_time(toy_store, monkeypatch):
    monkeypatch.setattr(reader_module, "PREFETCH_BYTES", 0)
    reader = FeatureReader(toy_store, layers(4), device=CPU, memory_bytes=0)
    addresses = {batch.features[Layer(0, 50, 4)].data_ptr() for _ in range(4) for batch in reader.batches(range(5), 1)}
    assert len(addresses) == 2


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_kept_images_have_memory_of_their_own(toy_store, batch_size):
    reader, order = FeatureReader(toy_store, layers(4, 9), device=CPU), [[0, 1, 2, 3, 4], [3, 0, 4, 1, 2]]
    for indices in (*order, *order):
        for batch in reader.batches(indices, batch_size):
            for n, index in enumerate(batch.indices):
                assert np.array_equal(values(batch, 9)[n], toy_store.read(index)[9])
                assert np.array_equal(batch.masks[n].numpy(), toy_store.mask(index))
    assert reader.kept == 5


def test_a_batch_of_images_that_are_kept_and_others_is_whole(toy_store):
    one = 2 * 6 * 16 * 16 * 2 + 256 * 512
    reader = FeatureReader(toy_store, layers(4), device=CPU, memory_bytes=2 * one)
    list(reader.batches([0, 1], 1))
    (batch,) = reader.batches([2, 1, 3, 0], 4)
    assert all(np.array_equal(values(batch)[n], toy_store.read(i)[4]) for n, i in enumerate(batch.indices))
    assert reader.bytes_read == 4 * one


def test_several_images_are_read_at_once(toy_store, monkeypatch):
    read, meeting = toy_store.read_stored, threading.Barrier(4, timeout=10)  # which nobody leaves before four are there
    monkeypatch.setattr(toy_store, "read_stored", lambda index, **kw: (index < 4 and meeting.wait(), read(index, **kw)))
    reader = FeatureReader(toy_store, layers(4), device=CPU, memory_bytes=0)
    assert len(list(reader.batches(range(5), 1))) == 5


def test_a_pass_that_is_left_early_spoils_nothing(toy_store):
    (toy_store.location.root / "t50/block04/c/3/0/0/0/0").unlink()
    reader = FeatureReader(toy_store, layers(4), device=CPU)
    for _ in range(3):
        for batch in reader.batches([0, 2, 3, 1], 1):  # the damaged one is prefetched and never due
            assert np.array_equal(values(batch)[0], toy_store.read(0)[4])
            break
    (other,) = reader.batches([4], 1)
    assert np.array_equal(values(other)[0], toy_store.read(4)[4])


def test_an_error_is_raised_at_its_turn(toy_store):
    (toy_store.location.root / "t50/block04/c/3/0/0/0/0").unlink()
    reader = FeatureReader(toy_store, layers(4), device=CPU)
    found = reader.batches([0, 3, 1], 1)
    assert next(found).indices == (0,)
    with pytest.raises(Damaged, match="t50/block04 of train_3"):
        next(found)


@pytest.mark.parametrize("memory_bytes", [0, None])
def test_images_first_read_in_inference_mode_can_be_trained_on(toy_store, memory_bytes):
    reader = FeatureReader(toy_store, layers(9), device=CPU, memory_bytes=memory_bytes)
    with torch.inference_mode():
        list(reader.batches([0, 1], 1))
    (batch,) = reader.batches([1], 1)
    weight = torch.ones(1, requires_grad=True)
    (batch.features[Layer(0, 50, 9)] * weight).sum().backward()
    assert weight.grad.item() == pytest.approx(toy_store.read(1)[9].astype(np.float64).sum(), rel=1e-2)


def test_images_are_read_as_patches(toy_store):
    for limit in (0, None):
        reader = FeatureReader(toy_store, [IMAGE], device=CPU, memory_bytes=limit)
        for _ in range(2):
            (batch,) = reader.batches([2, 0], 2)
        assert batch.features[IMAGE].shape == (2, 2, 3, 256, 256)
        right = batch.features[IMAGE][1, 1].permute(1, 2, 0).numpy()  # of image 0 the second patch
        assert np.array_equal(right, toy_store.image(0)[:, 256:])


@pytest.fixture
def int8_store(tmp_path, toy_contents, toy_key, fill_store):
    made = toy_contents(key=toy_key(packing="int8", dtype="float32"), images_per_unit=2)
    return fill_store(StoreWriter(tmp_path / "int8.zarr", made))


@pytest.mark.parametrize("memory_bytes", [0, None])
def test_bytes_are_read_and_kept_and_their_values_are_in_the_batches(int8_store, memory_bytes):
    reader = FeatureReader(int8_store, layers(4, 9), device=CPU, memory_bytes=memory_bytes)
    for indices, batch_size in (([3, 0, 2], 2), ([1, 0, 2, 3, 4], 1), ([4, 1, 0], 3)):
        for batch in reader.batches(indices, batch_size):
            for n, index in enumerate(batch.indices):
                for block, stored in int8_store.read(index, blocks=(4, 9)).items():
                    assert batch.features[Layer(0, 50, block)].dtype == torch.float32
                    assert np.array_equal(values(batch, block)[n], stored)
                assert np.array_equal(batch.masks[n].numpy(), int8_store.mask(index))
    # a byte a value of 2 patches of 6 x 16 x 16 and 3 x 64 x 64, 4 bytes a channel of the image, and the mask
    one = 2 * (6 * 16 * 16 + 3 * 64 * 64) + 4 * (6 + 3) + 256 * 512
    assert reader.bytes_read == (11 if memory_bytes == 0 else 5) * one
    assert reader.kept == (0 if memory_bytes == 0 else 5)


def test_bytes_first_read_in_inference_mode_can_be_trained_on(int8_store):
    reader = FeatureReader(int8_store, layers(9), device=CPU, memory_bytes=0)
    with torch.inference_mode():
        list(reader.batches([0, 1], 1))
    (batch,) = reader.batches([1], 1)
    weight = torch.ones(1, requires_grad=True)
    (batch.features[Layer(0, 50, 9)] * weight).sum().backward()
    assert weight.grad.item() == pytest.approx(int8_store.read(1)[9].astype(np.float64).sum(), rel=1e-3)


def test_stores_of_two_packings_are_read_together(int8_store, toy_store):
    joined = join_stores({"bytes": int8_store, "halves": toy_store})
    scaled, halves = (Layer(joined.names.index(name), 50, 4) for name in ("bytes", "halves"))
    assert joined.dtype([halves]) == np.float16 and joined.dtype([scaled, halves]) == np.float32
    (batch,) = FeatureReader(joined, [scaled, halves], device=CPU).batches([2, 4], 2)
    for layer, store in ((scaled, int8_store), (halves, toy_store)):
        expected = np.stack([store.read(index, blocks=(4,))[4] for index in (2, 4)])
        assert batch.features[layer].numpy().dtype == expected.dtype
        assert np.array_equal(batch.features[layer].numpy(), expected)


def test_ignored_pixels_are_of_no_class(tmp_path, toy_contents):
    writer = StoreWriter(tmp_path / "a.zarr", toy_contents(ignore=255))
    masks = [np.array([[0, 1], [1, 255]], np.uint8).repeat(128, 0).repeat(256, 1), np.full((256, 512), 255, np.uint8)]
    for unit, mask in enumerate(masks):
        writer.write_pixels(unit, [(np.zeros((256, 512, 3), np.uint8), mask, np.zeros((200, 300), np.uint16))])
    # quarters of 128x256 px: one background, two gland, one ignored
    assert class_pixels(writer.store, (0, 1)).tolist() == [128 * 256, 2 * 128 * 256]


def test_heads_and_baselines_can_read_together():
    configs = [HeadConfig(t=50, blocks=(9, 4)), BaselineConfig(), HeadConfig(t=10, blocks=(4,))]
    assert required_layers(configs) == (IMAGE, (0, 10, 4), (0, 50, 4), (0, 50, 9))
