"""The shares of waiting in the benchmarks lie between 0 and 1, whatever else runs on the machine."""

import time

import torch

from benchmarks.constant_model import TINY, ConstantModel
from benchmarks.store.store import write_png_dataset
from benchmarks.waiting import timed_batches, timed_computation
from pathseg.extract.config import ExtractConfig
from pathseg.extract.pipeline import open_extraction, run_extraction
from pathseg.train.config import Layer
from pathseg.train.data.reader import FeatureReader


def test_time_in_which_batches_are_used_is_no_waiting(toy_store):
    with timed_batches() as times:
        reader = FeatureReader(toy_store, [Layer(0, 50, 4)], device=torch.device("cpu"), memory_bytes=0)
        for _ in reader.batches(range(5), 1):
            time.sleep(0.05)
        for _ in reader.batches(range(5), 2):
            break
    assert len(times.waited) == len(times.used) == 2
    assert 0.25 <= times.used[0] < 1
    assert 0 < times.share() < 1 and times.share(first=1) > times.share()


def test_time_that_a_batch_takes_to_be_read_is_waiting(toy_store, monkeypatch):
    def slow(*arguments):
        time.sleep(0.1)

    monkeypatch.setattr("pathseg.train.data.reader.read_image", slow)
    with timed_batches() as times:
        reader = FeatureReader(toy_store, [Layer(0, 50, 4)], device=torch.device("cpu"), memory_bytes=0)
        assert len(list(reader.batches([0], 1))) == 1
    assert times.waited[0] >= 0.1 and times.share() > 0.5


def test_the_computation_of_an_extraction_is_a_part_of_it(tmp_path):
    dataset = write_png_dataset(tmp_path / "tissue", 2, 256)
    config = ExtractConfig(layout="native")
    extraction = open_extraction(dataset, ConstantModel(TINY), tmp_path / "store.zarr", config)
    with timed_computation() as computing:
        start = time.perf_counter()
        assert run_extraction(extraction).computed == 2
        taken = time.perf_counter() - start
    assert 0 < computing() < taken
