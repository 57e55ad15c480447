"""Real Dask clusters of two processes, whose stores are compared byte by byte with that of one process."""

import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
from PIL import Image

from pathseg.extract.config import ExtractConfig
from pathseg.extract.dask_driver import RETRIES, extract_on_workers, local_client, usable_workers
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.models.load import load_model
from pathseg.extract.pipeline import extract
from pathseg.store.features import FeatureStore
from pathseg.store.runtime import dask_client as scheduler
from pathseg.store.runtime.dask_client import ClusterError, scheduler_client

pytestmark = pytest.mark.soak

IMAGES = 6
CONFIG = ExtractConfig(blocks=(0, 4, 9), layout="native")
TISSUE = partial(open_dataset, "synthetic", DatasetOptions(limit=IMAGES, resize=256))
MINI = partial(load_model, "mini")

# A module of a user's own, on the path of driver and workers: a model that takes its time, but no processor; an image
# that ends the process that reads it.
TRAPS = """
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from toy_model import ToyModel

class Toy(ToyModel):
    def prepare(self, images):
        time.sleep(0.3)
        return super().prepare(images)

def toy(device="cpu"):
    return Toy()

def other(device):
    model = Toy()
    model.digest = "cd" * 32
    return model

def deadly(limit, ids):
    dataset = open_dataset("synthetic", DatasetOptions(limit=limit, resize=256))
    return replace(dataset, load=partial(load, dataset.load, ids))

def load(inner, ids, sample):
    if sample.id in ids:
        os._exit(1)
    return inner(sample)

def without_store(path, limit):
    for folder in Path(path).parent.glob("store.zarr"):
        folder.rename(folder.with_name("elsewhere.zarr"))
    return open_dataset("synthetic", DatasetOptions(limit=limit, resize=256))

def broken(device):
    model = Toy()
    model.prepare = fail
    return model

def fail(images):
    raise RuntimeError("CUDA error: an illegal memory access")
"""


def write_traps(folder):
    (folder / "pathseg_traps.py").write_text(TRAPS)
    shutil.copy(Path(__file__).with_name("conftest.py"), folder / "toy_model.py")


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traps")
    write_traps(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)  # processes that are spawned later take it over
        yield importlib.import_module("pathseg_traps")


@pytest.fixture(scope="module")
def client(traps):
    with local_client(2) as client:
        yield client


@pytest.fixture(scope="module")
def made_here(tmp_path_factory, traps):
    """A store made in one process; its bytes."""
    path = tmp_path_factory.mktemp("one") / "store.zarr"
    assert extract(TISSUE(), traps.toy(), path, CONFIG).failures == ()
    return path, tree(path)


@pytest.fixture
def one_process(made_here):
    return made_here[1]


@pytest.fixture
def run(tmp_path, traps, client):
    """Extract into `store.zarr` on the client's workers; `open_dataset` and `load_model` are what these open."""

    def extract_there(client=client, dataset=None, model=None, **changes):
        options = {"open_dataset": TISSUE, "load_model": traps.toy} | changes
        opened = TISSUE() if dataset is None else dataset
        return extract_on_workers(
            opened, model or traps.toy(), tmp_path / "store.zarr", CONFIG, client=client, **options
        )

    return extract_there


def tree(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def lacking(path):
    store = FeatureStore.open(path)
    return [store.ids[index] for index in store.unfinished(t=50, blocks=CONFIG.blocks)]


def test_the_bytes_are_those_of_one_process(run, one_process, tmp_path):
    patches = []
    result = run(progress=patches.append)
    assert (result.failures, result.complete, result.computed) == ((), IMAGES, IMAGES)
    assert result.store.unfinished(t=50, blocks=CONFIG.blocks) == ()
    assert patches == [1] * IMAGES
    assert tree(tmp_path / "store.zarr") == one_process


def test_a_diffusion_model_gives_a_new_store_the_batch_size_and_bytes_of_one_process(run, tmp_path):
    opening, model = partial(open_dataset, "synthetic", DatasetOptions(limit=1, resize=512)), load_model("mini")
    here = extract(opening(), model, tmp_path / "here.zarr", CONFIG).store.contents.key
    there = run(dataset=opening(), open_dataset=opening, model=model, load_model=MINI).store.contents.key
    assert there == here
    assert there.batch_size == 1  # of four patches
    assert tree(tmp_path / "store.zarr") == tree(tmp_path / "here.zarr")


def test_a_finished_store_is_left_alone(run, made_here, tmp_path):
    shutil.copytree(made_here[0], tmp_path / "store.zarr")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "store.zarr").rglob("*") if file.is_file()}
    patches = []
    assert run(progress=patches.append).computed == 0
    assert patches == []
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "store.zarr").rglob("*") if file.is_file()} == before


def test_an_image_that_cannot_be_read_is_named_as_in_one_process(run, traps, tmp_path):
    rng = np.random.default_rng(0)
    for kind, channels in (("images", (3,)), ("masks", ())):
        (tmp_path / kind).mkdir()
        for name in "ab":
            pixels = rng.integers(0, 2, (256, 256, *channels), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{name}.png")
    opening = partial(open_dataset, "folder", DatasetOptions(root=tmp_path))
    dataset = opening()
    whole = (tmp_path / "images/b.png").read_bytes()
    (tmp_path / "images/b.png").write_bytes(whole[: len(whole) // 2])
    failures = run(dataset=dataset, open_dataset=opening).failures
    assert [failure.id for failure in failures] == ["b"]
    assert failures == extract(dataset, traps.toy(), tmp_path / "here.zarr", CONFIG).failures


def test_a_model_that_cannot_be_loaded_is_one_line(run):
    with pytest.raises(ClusterError) as caught:
        run(load_model=partial(load_model, "no-such-model"))
    assert "cannot open the model: no model no-such-model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_with_other_weights_is_refused(run, traps):
    with pytest.raises(ClusterError, match="its digest is"):
        run(load_model=traps.other)


def test_another_data_set_on_the_worker_is_refused(run):
    other = partial(open_dataset, "synthetic", DatasetOptions(limit=IMAGES, resize=256, seed=1))
    with pytest.raises(ClusterError, match=r"cannot open the store.*generator_seed"):
        run(open_dataset=other)


def test_a_worker_that_does_not_see_the_store_makes_none(run, traps, tmp_path):
    away = partial(traps.without_store, str(tmp_path / "store.zarr"), IMAGES)
    with pytest.raises(ClusterError, match="is not there; all machines must see the same folder"):
        run(open_dataset=away)
    assert not (tmp_path / "store.zarr/zarr.json").exists()


def test_a_failure_of_the_model_names_worker_and_image(run, traps):
    with pytest.raises(ClusterError, match=r"^worker [01] at tcp://\S+ failed at tissue_\d: CUDA error"):
        run(load_model=traps.broken)


def test_a_write_that_fails_ends_the_run_with_its_error(run, client, one_process, tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    client.run(resource.setrlimit, resource.RLIMIT_FSIZE, (10_000, usual[1]))
    with pytest.raises(OSError, match="File too large"):
        run()
    client.run(resource.setrlimit, resource.RLIMIT_FSIZE, usual)
    assert run().failures == ()
    assert tree(tmp_path / "store.zarr") == one_process


def test_any_dask_scheduler_can_be_used(run, client, one_process, tmp_path):
    with scheduler_client(client.scheduler.address) as other:
        assert run(other).failures == ()
    assert tree(tmp_path / "store.zarr") == one_process


def test_the_threads_of_torch_are_shared_out(client):
    assert set(client.run(torch.get_num_threads).values()) == {max(1, CPU_COUNT // 2)}


@pytest.mark.parametrize(
    ("cores", "device", "workers"), [(2, "cpu", 1), (3, "cpu", 1), (8, "cpu", 4), (1, "cpu", 1), (2, "cuda", 6)]
)
def test_a_cpu_runs_no_more_workers_than_it_has_threads_for_their_forward_passes(cores, device, workers, monkeypatch):
    monkeypatch.setattr("pathseg.extract.dask_driver.CPU_COUNT", cores)
    assert usable_workers(6, device=device) == workers


def test_no_more_workers_than_requested_are_used():
    assert usable_workers(1, device="cpu") == 1


def test_nothing_stays_on_the_workers(run, client):
    with pytest.raises(ClusterError):
        run(load_model=partial(load_model, "no-such-model"))
    plugins = client.run(lambda dask_worker: [name for name in dask_worker.plugins if name.startswith("pathseg")])
    assert list(plugins.values()) == [[], []]


def test_a_module_that_the_workers_lack_is_named(run, client, tmp_path, monkeypatch):
    (tmp_path / "pathseg_late.py").write_text(TRAPS)  # it finds its toy_model where pathseg_traps lies
    monkeypatch.syspath_prepend(tmp_path)  # of this process alone: the workers are running
    late = importlib.import_module("pathseg_late")
    with pytest.raises(ClusterError, match="cannot open the run: No module named 'pathseg_late'"):
        run(load_model=late.broken)


def test_a_worker_that_is_killed_costs_only_time(run, client, one_process, tmp_path):
    finished = []

    def kill_one(patches):
        finished.append(patches)
        if len(finished) == 2:
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

    assert run(progress=kill_one).failures == ()
    assert len(finished) == IMAGES
    assert tree(tmp_path / "store.zarr") == one_process


@pytest.mark.parametrize("retries", [0, pytest.param(RETRIES, marks=pytest.mark.slow)])
def test_a_unit_that_kills_its_workers_is_set_aside_and_the_rest_finishes(
    retries, run, client, traps, tmp_path, monkeypatch
):
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", retries)
    result = run(open_dataset=partial(traps.deadly, IMAGES, ("tissue_2",)))
    assert [failure.id for failure in result.failures] == ["tissue_2"]
    assert lacking(tmp_path / "store.zarr") == ["tissue_2"]


@pytest.mark.slow
def test_a_run_in_which_every_unit_kills_its_worker_ends(run, traps, monkeypatch):
    monkeypatch.setattr("pathseg.extract.dask_driver.MAX_LOST_UNITS", 2)
    everything = partial(traps.deadly, IMAGES, tuple(f"tissue_{i}" for i in range(IMAGES)))
    with pytest.raises(ClusterError, match="none was finished"):
        run(open_dataset=everything)


@pytest.mark.slow
def test_a_cluster_without_workers_is_named_and_one_that_joins_late_does_the_work(
    run, one_process, tmp_path, monkeypatch
):
    threads = str(max(1, CPU_COUNT // 2))
    with (
        LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        ) as late,
        Client(late) as client,
    ):
        with monkeypatch.context() as patch, pytest.raises(ClusterError, match="no worker joined tcp://"):
            patch.setattr(scheduler, "WAIT_S", 0.2)
            run(client)
        late.scale(1)

        def replace(patches):  # by one that was not there when the run began
            if not finished:
                late.scale(2)
                client.wait_for_workers(2)
                client.retire_workers([next(iter(client.nthreads()))])
            finished.append(patches)

        finished = []
        assert run(client, progress=replace).failures == ()
        assert client.run(lambda dask_worker: dask_worker.name).values() != [0]
    assert tree(tmp_path / "store.zarr") == one_process


DRIVER = """
import os, sys, time
from functools import partial
from pathseg.extract.dask_driver import extract_on_workers, local_client
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg_traps import toy

if __name__ == "__main__":
    config = ExtractConfig(blocks=(0, 4, 9), layout="native")
    dataset = partial(open_dataset, "synthetic", DatasetOptions(limit=int(sys.argv[2]), resize=256))
    with local_client(2) as client:
        def tell(patches):
            print(*client.run(os.getpid).values(), flush=True)
            time.sleep(60)  # so that the end of this process finds units that are not submitted yet
        extract_on_workers(dataset(), toy(), sys.argv[1], config, client=client, open_dataset=dataset,
                           load_model=toy, progress=tell)
"""


@pytest.fixture
def driver(tmp_path):
    """A process that extracts IMAGES images with two workers, and the pids of these, once a unit is done."""
    (tmp_path / "driver.py").write_text(DRIVER)
    write_traps(tmp_path)
    command = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "store.zarr"), str(IMAGES)]
    as_in_a_terminal = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells let background jobs ignore Ctrl-C
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=as_in_a_terminal,
    ) as process:  # fmt: skip
        yield process, [int(pid) for pid in process.stdout.readline().split()]
        process.kill()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def seconds_until_gone(pids):
    start = time.monotonic()
    while any(map(alive, pids)):
        assert time.monotonic() - start < 30
        time.sleep(0.05)
    return time.monotonic() - start


def test_the_workers_go_with_a_driver_that_is_killed_and_the_next_run_goes_on(driver, run, one_process, tmp_path):
    process, pids = driver
    process.kill()
    assert len(pids) == 2
    assert seconds_until_gone(pids) < 15
    assert lacking(tmp_path / "store.zarr")
    assert run().failures == ()
    assert tree(tmp_path / "store.zarr") == one_process


def test_ctrl_c_ends_driver_and_workers(driver):
    process, pids = driver
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) != 0
    assert seconds_until_gone(pids) < 15
    told = process.stderr.read()
    assert told.splitlines()[-1] == "KeyboardInterrupt"
    assert told.count("Traceback") == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_five_kills_at_random_moments_cost_only_time(seed, run, client, tmp_path):
    count, rng, mini = 30, np.random.default_rng(seed), load_model("mini")
    dataset = partial(open_dataset, "synthetic", DatasetOptions(limit=count, resize=256))
    extract(dataset(), mini, tmp_path / "here.zarr", CONFIG)
    ended, kills = threading.Event(), []

    def kill():
        for pause in rng.uniform(0.5, 3, 5):
            if ended.wait(pause):
                return
            pids = list(client.run(os.getpid, on_error="ignore").values())
            if pids:
                os.kill(int(rng.choice(pids)), signal.SIGKILL)
                kills.append(pids)

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.monotonic()
    failures = run(dataset=dataset(), open_dataset=dataset, model=mini, load_model=MINI).failures
    ended.set()
    killer.join()
    print(f"{len(kills)} kills in {time.monotonic() - start:.1f} s")
    assert failures == ()
    assert kills
    assert tree(tmp_path / "store.zarr") == tree(tmp_path / "here.zarr")
