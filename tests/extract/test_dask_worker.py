"""The plugin on a real Dask worker that is part of this process."""

import pickle
from dataclasses import replace
from functools import partial

import pytest
from distributed import LocalCluster

from pathseg.extract.config import ExtractConfig
from pathseg.extract.dask_worker import ExtractionJob, ExtractionPlugin
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.models.load import load_model
from pathseg.extract.pipeline import open_extraction
from pathseg.store.features import FeatureStore
from pathseg.store.runtime.dask_client import ClusterError

pytestmark = pytest.mark.soak

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
    open_extraction(tissue(2)(), model, tmp_path / "store.zarr", CONFIG)
    loader = partial(load_model, "mini")
    return ExtractionJob(str(tmp_path / "store.zarr"), tissue(2), loader, CONFIG, model.digest, "auto")


def installed(job, worker):
    plugin = pickle.loads(pickle.dumps(ExtractionPlugin(job)))  # as Dask sends it
    plugin.setup(worker)
    return plugin


def test_a_worker_makes_the_unit_of_a_task(job, worker):
    assert installed(job, worker).extract_unit(1) == ()
    assert FeatureStore.open(job.store).unfinished(t=50, blocks=(4,)) == (0,)


def test_a_unit_that_another_worker_has_finished_is_not_made_again(job, worker, tmp_path):
    late = installed(job, worker)
    late.extract_unit(1)  # opens the store while unit 0 is missing
    installed(job, worker).extract_unit(0)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert late.extract_unit(0) == ()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_pickled_plugin_is_small_and_does_not_grow_with_the_data_set(job):
    few, many = (replace(job, open_dataset=tissue(limit)) for limit in (10, 99))
    assert len(pickle.dumps(ExtractionPlugin(few))) == len(pickle.dumps(ExtractionPlugin(many))) < 2000


def test_a_failure_to_open_names_the_worker_in_one_line(job, worker, tmp_path):
    missing = replace(job, open_dataset=partial(open_dataset, "glas", DatasetOptions(root=tmp_path / "nowhere")))
    with pytest.raises(
        ClusterError, match=r"^worker 0 at inproc://\S+ cannot open the data set: no glas data set"
    ) as caught:
        installed(missing, worker).extract_unit(0)
    assert "\n" not in str(caught.value)
