"""Sweeps on a real Dask cluster of two processes: killed, misled, and compared with one process."""

import functools
import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from distributed import Client, LocalCluster

from pathseg.store.errors import Incomplete
from pathseg.store.features import FeatureStore
from pathseg.store.runtime.dask_client import ClusterError
from pathseg.store.runtime.device import device
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.data.joined import JoinedStores, join_stores
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.dask_sweep import divide, train_on_cluster
from pathseg.train.training.sweep import expand_heads, plan_sweep, train_plan

pytestmark = pytest.mark.soak

SWEEP = [
    HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=3, class_weights="balanced"),
    HeadConfig(blocks=(4, 9), head_type="linear", lr=1e-2, epochs=3, augment="flips"),
    HeadConfig(blocks=(0,), head_type="linear", lr=1e-2, epochs=3, seed=5),
]


def open_single(path):
    return JoinedStores.of(FeatureStore.open(path))


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def train(one_patch_store, tmp_path, client):
    """A sweep on the cluster; its run folders and what was given up."""

    def run(configs=SWEEP, complete_only=False, **changes):
        folders = [tmp_path / "spread" / str(number) for number in range(len(configs))]
        opener = changes.get("open_stores", JoinedStores.of(one_patch_store).opener())
        plan = plan_sweep(opener(), list(zip(configs, map(RunFolder, folders), strict=True)), complete_only)
        options = {"open_stores": opener, "device": functools.partial(str, "cpu")} | changes
        return folders, train_on_cluster(client, plan, **options)

    return run


@pytest.fixture
def one_process(one_patch_store, tmp_path):
    def run(configs=SWEEP, stores=one_patch_store):
        folders = [tmp_path / "here" / str(number) for number in range(len(configs))]
        plan = plan_sweep(stores, list(zip(configs, map(RunFolder, folders), strict=True)))
        assert train_plan(plan, device="cpu").failures == {}
        return folders

    return run


def results(folders):
    """All that a run is judged by, but the times."""
    metrics = [RunFolder(folder).read_metrics() for folder in folders]
    losses = [[epoch.val_loss for epoch in RunFolder(folder).read_history()] for folder in folders]
    return [m.splits for m in metrics], losses, [(f / "head.safetensors").read_bytes() for f in folders]


def test_the_heads_are_those_of_one_process(train, one_process):
    folders, failures = train()
    assert failures == {}
    assert results(folders) == results(one_process())


def test_heads_on_joined_stores_are_those_of_one_process(train, one_process, toy_store, other_model_store):
    joined = join_stores({"A": toy_store, "B": other_model_store})
    configs = expand_heads(joined, blocks={"A": (4,), "B": (2,)}, head_type="linear", lr=(1e-2,), epochs=2, seed=(0, 1))
    folders, failures = train(configs, open_stores=joined.opener())
    assert failures == {}
    assert results(folders) == results(one_process(configs, joined))


def test_a_worker_takes_the_threads_of_the_driver(train, tmp_path):
    def device():
        (tmp_path / f"threads-{os.getpid()}").write_text(str(torch.get_num_threads()))
        return "cpu"

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    train(device=device)
    torch.set_num_threads(before)
    assert [file.read_text() for file in tmp_path.glob("threads-*")] == ["3", "3"]


def test_both_workers_take_part(train):
    folders, _ = train()
    # three heads on two workers: one of them reads for two heads, the other for one
    assert [RunFolder(f).read_metrics().heads_from_one_read for f in folders] == [2, 2, 1]


def test_every_epoch_is_reported_to_the_driver(train):
    reported = []
    train(on_epoch=lambda run, epoch: reported.append((run.name, epoch.epoch)))
    assert sorted(reported) == [(name, epoch) for name in "012" for epoch in (1, 2, 3)]


def test_a_worker_that_is_killed_costs_only_time(train, client, one_process):
    reported, first = [], client.run(os.getpid)[next(iter(client.nthreads()))]

    def kill_one(run, epoch):
        reported.append((run.name, epoch.epoch))
        if reported[-1] == ("0", 2):
            os.kill(first, signal.SIGKILL)

    longer = [replace(config, epochs=12) for config in SWEEP]
    folders, failures = train(longer, on_epoch=kill_one)
    assert failures == {}
    assert reported.count(("0", 1)) == 1  # it went on after its last epoch
    assert first not in client.run(os.getpid).values()
    assert results(folders) == results(one_process(longer))


def test_a_finished_sweep_is_left_alone(train):
    folders, _ = train()
    before = [(folder / "head.safetensors").stat().st_mtime_ns for folder in folders]
    reported = []
    assert train(on_epoch=lambda run, epoch: reported.append(run)) == (folders, {})
    assert reported == []
    assert [(folder / "head.safetensors").stat().st_mtime_ns for folder in folders] == before


def test_a_head_that_diverges_is_named_and_the_others_finish(train):
    folders, failures = train([replace(SWEEP[0], lr=1e37), *SWEEP[1:]])
    assert list(failures) == ["0"]
    assert "diverged" in failures["0"]
    assert [RunFolder(folder).finished for folder in folders] == [False, True, True]


def test_a_worker_that_does_not_see_the_store_is_one_line(train, one_patch_store, tmp_path):
    def opener():
        return open_single(here if os.getpid() == driver else tmp_path / "none.zarr")

    driver, here = os.getpid(), str(one_patch_store.location)
    with pytest.raises(
        ClusterError, match=r"^worker \d at tcp://\S+ cannot take the run: there is no feature"
    ) as caught:
        train(open_stores=opener)
    assert "\n" not in str(caught.value)


def test_a_worker_that_sees_another_store_is_one_line(train, one_patch_store, tmp_path, toy_contents, fill_store):
    def opener():
        return open_single(here if os.getpid() == driver else there)

    fill_store(StoreWriter(tmp_path / "other.zarr", toy_contents()), seed=1)
    driver, here, there = os.getpid(), str(one_patch_store.location), str(tmp_path / "other.zarr")
    with pytest.raises(ClusterError, match="holds other data there; all machines must see the same folder"):
        train(open_stores=opener)


def test_a_worker_that_does_not_see_the_workspace_is_one_line(train, one_patch_store, tmp_path):
    def opener():  # the worker's own disk, on which the run folders are not
        if os.getpid() != driver:
            shutil.rmtree(spread, ignore_errors=True)
        return open_single(here)

    driver, here, spread = os.getpid(), str(one_patch_store.location), tmp_path / "spread"
    with pytest.raises(ClusterError, match="is not there; all machines must see the same workspace"):
        train(open_stores=opener)


def test_a_device_that_a_worker_lacks_is_one_line(train):
    with pytest.raises(ClusterError, match=r"^worker \d at tcp://\S+ cannot take the run: .*cuda:77"):
        train(device=functools.partial(device, "cuda:77"))


def test_a_store_that_lacks_features_is_refused_before_anything_is_sent(train, one_patch_store, tmp_path):
    next((tmp_path / "one-patch.zarr/_done/t50").rglob("000001.json")).unlink()
    with pytest.raises(Incomplete, match="--complete-only"):
        train()
    folders, failures = train(complete_only=True)
    assert failures == {}
    used = [RunFolder(folder).read_config().data.images for folder in folders]
    assert all("train_1" not in one["train"] + one["val"] for one in used)


def test_an_interrupted_driver_stops_its_workers_after_their_epoch(train, client, tmp_path):
    def interrupt(run, epoch):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
    try:
        with pytest.raises(KeyboardInterrupt):
            train([replace(SWEEP[1], epochs=100_000)], on_epoch=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    start, run = time.monotonic(), RunFolder(tmp_path / "spread" / "0")
    while not let_go(run):
        assert time.monotonic() - start < 60
        time.sleep(0.05)
    assert not run.finished


def let_go(run):
    try:
        with run.lock():
            return True
    except ValueError:
        return False


def test_a_run_is_trained_by_one_process_at_a_time(train, tmp_path):
    with RunFolder(tmp_path / "spread" / "1").lock(), pytest.raises(ValueError, match="is being trained by another"):
        train()


def test_heads_are_divided_in_their_order():
    heads = [(config, None) for config in "abcde"]
    assert [[config for config, _ in task] for task in divide(heads, 2)] == [["a", "b", "c"], ["d", "e"]]
    assert [len(task) for task in divide(heads, 9)] == [1] * 5
