"""A bench on a real Dask worker that lives in this process."""

import pickle
from dataclasses import replace
from functools import partial

import pytest
from distributed import LocalCluster

from pathseg.extract.config import ExtractConfig
from pathseg.extract.dask_worker import Job, Workbench
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.models.load import load_model
from pathseg.extract.pipeline import prepare_store
from pathseg.store.features import FeatureStore
from pathseg.store.runtime.dask_client import ClusterError

CONFIG = ExtractConfig(blocks=(4,), layout="native")


def tissue(limit):
    return partial(open_dataset, "synthetic", DatasetOptions(limit=limit, resize=256))


@pytest.fixture(scope="module")
def worker():
    with LocalCluster(
        1, processes=False, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.workers[0]


@pytest.fixture
def job(tmp_path):
    model = load_model("mini")
    prepare_store(tmp_path / "store.zarr", tissue(2)(), model, CONFIG)
    opening = partial(load_model, "mini")
    return Job(str(tmp_path / "store.zarr"), tissue(2), opening, CONFIG, model.digest, "auto")


def put(job, worker):
    bench = pickle.loads(pickle.dumps(Workbench(job)))  # as Dask sends it
    bench.setup(worker)
    return bench


def test_a_bench_makes_the_unit_it_is_asked_for(job, worker):
    assert put(job, worker).work(1) == ()
    assert FeatureStore.open(job.store).unfinished(t=50, blocks=(4,)) == (0,)


def test_a_unit_that_another_has_finished_is_not_made_again(job, worker, tmp_path):
    late = put(job, worker)
    late.work(1)  # opens the store while unit 0 is lacking
    put(job, worker).work(0)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert late.work(0) == ()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


def test_what_travels_is_small_however_many_images_there_are(job):
    few, many = (replace(job, dataset=tissue(limit)) for limit in (10, 99))
    assert len(pickle.dumps(Workbench(few))) == len(pickle.dumps(Workbench(many))) < 2000


def test_a_failure_to_open_says_where_in_one_line(job, worker, tmp_path):
    missing = replace(job, dataset=partial(open_dataset, "glas", DatasetOptions(root=tmp_path / "nowhere")))
    with pytest.raises(
        ClusterError, match=r"^worker 0 at inproc://\S+ cannot open the data set: no glas data set"
    ) as caught:
        put(missing, worker).work(0)
    assert "\n" not in str(caught.value)
