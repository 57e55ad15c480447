import numpy as np
import pytest

from pathseg.train import batches
from pathseg.train.batches import FeatureReader, class_pixels


def test_batches_come_in_the_order_given_with_what_the_store_holds(toy_store):
    reader = FeatureReader(toy_store, t=50, blocks=(4, 9))
    seen = list(reader.batches([3, 0, 2], 2))
    assert [batch.indices for batch in seen] == [(3, 0), (2,)]
    assert seen[0].features[4].shape == (2, 2, 6, 16, 16)
    assert np.array_equal(seen[0].features[9][1].numpy(), toy_store.read(0, t=50, blocks=(9,))[9])
    assert np.array_equal(seen[1].masks[0].numpy(), toy_store.mask(2))


@pytest.mark.parametrize(("free", "reads"), [(2**40, 2), (0, 6)])
def test_an_image_is_read_once_where_it_fits_into_memory(toy_store, monkeypatch, free, reads):
    monkeypatch.setattr(batches, "free_memory", lambda: free)
    read, count = toy_store.read, []
    monkeypatch.setattr(toy_store, "read", lambda index, **kw: count.append(index) or read(index, **kw))
    reader = FeatureReader(toy_store, t=50, blocks=(4,))
    for _ in range(3):
        assert len(list(reader.batches([0, 1], 1))) == 2
    assert len(count) == reads


def test_class_pixels_are_those_of_the_masks(toy_store):
    expected = np.bincount(np.stack([toy_store.mask(i) for i in (0, 1)]).ravel(), minlength=2)
    assert class_pixels(toy_store, (0, 1)).tolist() == expected.tolist()
