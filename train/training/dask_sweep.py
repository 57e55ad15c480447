"""A sweep on a Dask cluster: each worker trains several heads, by the same functions as in one process."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dask.typing import Key
from distributed import CancelledError, Client, Future, KilledWorker, Worker, as_completed, get_worker

from pathseg.store.errors import StoreError
from pathseg.store.runtime.dask_client import ClusterError, first_line, require_workers
from pathseg.store.runtime.device import device as resolve_device
from pathseg.store.runtime.device import worker_device
from pathseg.train.config import Config
from pathseg.train.data.joined import JoinedStores
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.record import Epoch
from pathseg.train.training.loop import OnEpoch, versions
from pathseg.train.training.sweep import SweepPlan, train_in_passes

ONE_TASK = threading.Lock()  # one task at a time in a process, whatever its threads: heads seed its global generators
Task = tuple[tuple[Config, Path], ...]  # the heads of one worker and their run folders


@dataclass(frozen=True)
class Job:
    """What every worker gets: how to train, and what it must find there.

    open_stores and device are called on the worker. digest: of all stores. versions: of the driver's libraries.
    threads: of PyTorch on a CPU, since rounding depends on their number. topic: of the events that report epochs.
    """

    open_stores: Callable[[], JoinedStores]
    device: Callable[[], str]
    memory_bytes: int | None
    without: frozenset[int]
    digest: str
    versions: dict[str, str]
    threads: int
    topic: str


def train_on_cluster(
    client: Client,
    plan: SweepPlan,
    *,
    open_stores: Callable[[], JoinedStores],
    device: Callable[[], str],
    memory_bytes: int | None = None,
    on_epoch: OnEpoch = lambda run, epoch: None,
) -> dict[str, str]:
    """Train the unfinished runs of a plan on the workers of a Dask cluster; run name -> why it was given up.

    The workers must see stores and run folders at the same paths. Each trains some of the heads; a task whose worker
    dies is resumed on another after the last finished epoch of its heads. memory_bytes is for each worker. Raises
    ClusterError when there is no worker or one cannot open what it needs; StoreError, OSError and ValueError as the
    workers raise them.
    """
    require_workers(client)
    job = Job(
        open_stores, device, memory_bytes, plan.left_out, plan.stores.digest, versions(), torch.get_num_threads(),
        f"pathseg-{uuid.uuid4().hex}",
    )  # fmt: skip
    waiting = [(config, run.path.absolute()) for config, run in plan.unfinished]
    for _, folder in waiting:
        folder.mkdir(parents=True, exist_ok=True)  # so that a worker can check that it sees them
    failures: dict[str, str] = {}
    with _reporting(client, job.topic, on_epoch):
        for task, future in _completed(client, job, divide(waiting, len(client.nthreads()))):
            failures |= _result(future, task)
    for _, run in plan.unfinished:
        if not run.finished:
            failures.setdefault(run.name, f"not finished in {run.path}, though its worker reported it; run again")
    return failures


def divide(runs: Sequence[tuple[Config, Path]], workers: int) -> list[Task]:
    """Divide the heads among the workers as evenly as possible.

    Neighbours stay together, since they read the same timestep and blocks.
    """
    count = max(1, min(workers, len(runs)))
    return [tuple(runs[i] for i in numbers) for numbers in np.array_split(range(len(runs)), count) if len(numbers)]


def _completed(client: Client, job: Job, tasks: Sequence[Task]) -> Iterator[tuple[Task, Future]]:
    """Submit each task to a worker of its own, and yield tasks as they complete."""
    running = {
        client.submit(_work, job, task, pure=False, workers=[address], allow_other_workers=True): task
        for task, address in zip(tasks, client.nthreads(), strict=False)
    }
    try:
        for future in as_completed(running, loop=client.loop):
            yield running[future], future
    finally:
        client.cancel(list(running))


def _result(future: Future, task: Task) -> dict[str, str]:
    """Return why heads of a task were given up, by run name."""
    try:
        failures: dict[str, str] = future.result()
    except KilledWorker:
        lost = [folder for _, folder in task if not RunFolder(folder).finished]
        return {folder.name: "its worker died, each time it was tried; train fewer heads at once" for folder in lost}
    except CancelledError as e:
        raise ClusterError(
            f"the cluster is no longer there ({first_line(e)}); what is finished is kept, run again"
        ) from e
    except (StoreError, OSError, ValueError):
        raise
    except Exception as e:  # of any kind: a worker without pathseg cannot even unpickle the task
        raise ClusterError(f"the workers cannot take the run ({first_line(e)}); install this pathseg there") from e
    return failures


@contextmanager
def _reporting(client: Client, topic: str, on_epoch: OnEpoch) -> Iterator[None]:
    """Call `on_epoch` here for each epoch that a worker reports."""

    def receive(event: tuple[Any, dict[str, str]]) -> None:
        _, values = event
        on_epoch(RunFolder(values["run"]), Epoch.from_json(values["epoch"].encode(), source=f"topic {topic}"))

    client.subscribe_topic(topic, receive)
    try:
        yield
    finally:
        client.unsubscribe_topic(topic)


def _work(job: Job, task: Task) -> dict[str, str]:
    """Train the heads of a task on this worker; run name -> why it was given up.

    Stops after the current epoch when the driver has gone.
    """
    worker = get_worker()
    name, key = f"worker {worker.name} at {worker.address}", worker.get_current_task()

    def report(run: RunFolder, epoch: Epoch) -> None:
        worker.log_event(job.topic, {"run": str(run.path), "epoch": epoch.to_json().decode()})
        _require_driver(worker, key)

    with ONE_TASK, _threads(job.threads):
        _require_driver(worker, key)
        try:
            stores, device = _open(job, task)
        except Exception as e:
            raise ClusterError(f"{name} cannot take the run: {first_line(e)}") from e
        runs = [(config, RunFolder(folder)) for config, folder in task]
        try:
            return train_in_passes(
                stores, runs, device=device, memory_bytes=job.memory_bytes, without=job.without, on_epoch=report
            )
        except (StoreError, OSError, ValueError):
            raise
        except Exception as e:
            raise ClusterError(f"{name} failed: {first_line(e)}; what is finished is kept") from e


def device_of_worker(name: str) -> str:
    """Return the device of the worker that calls this, of `auto` as `worker_device` chooses it.

    Raises ValueError for a device that is not available.
    """
    return resolve_device(worker_device(name, get_worker().name))


def _open(job: Job, task: Task) -> tuple[JoinedStores, str]:
    """Open stores and device on a worker, once it is known to have what the driver has."""
    for name, version in versions().items():
        if version != job.versions[name]:
            raise ValueError(f"it has {name} {version}, but the sweep was started with {job.versions[name]}")
    stores = job.open_stores()
    for _, folder in task:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not there; all machines must see the same workspace")
    if stores.digest != job.digest:
        where = " or ".join(str(store.location) for store in stores.stores)
        raise StoreError(f"{where} holds other data there; all machines must see the same folder, or take s3://")
    return stores, job.device()


def _require_driver(worker: Worker, key: Key) -> None:
    """Raise ClusterError when the driver has gone: another may be about to train the same heads."""
    task = worker.state.tasks.get(key)
    if task is None or task.state == "cancelled":
        raise ClusterError("the driver of this sweep has gone")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads on a CPU inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
