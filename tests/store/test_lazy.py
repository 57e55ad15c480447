import numpy as np

from pathseg.store.lazy import open_lazy


def test_arrays_are_read_when_they_are_computed(toy_store):
    arrays = open_lazy(toy_store.location.root)
    assert set(arrays) == {"images", "masks", "instances", "t50/block00", "t50/block04", "t50/block05", "t50/block09"}
    block = arrays["t50/block04"]
    assert block.shape == (5, 2, 6, 16, 16)
    assert block.chunksize == (1, 2, 6, 16, 16)
    assert np.array_equal(block[3].compute(), toy_store.read(3, t=50, blocks=(4,))[4])
