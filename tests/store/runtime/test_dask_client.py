import pytest
from distributed import LocalCluster

from pathseg.store.runtime import dask_client as scheduler
from pathseg.store.runtime.dask_client import ClusterError, first_line, scheduler_client


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(scheduler, "WAIT_S", 0.5)


def test_a_scheduler_that_is_not_there_is_named(impatient):
    with (
        pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"),
        scheduler_client("tcp://127.0.0.1:9"),
    ):
        pass


def test_a_scheduler_without_workers_is_named(impatient):
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(ClusterError, match=r"no worker joined tcp://.* start some with `dask worker tcp://"),
        scheduler_client(cluster.scheduler_address),
    ):
        pass


def test_an_error_is_told_in_one_line():
    assert first_line(TimeoutError()) == "TimeoutError"
    assert first_line(ValueError("one\ntwo")) == "one"
