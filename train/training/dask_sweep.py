"""A sweep over Dask: each worker trains a share of the heads, by the same functions as in one process."""

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
from distributed import CancelledError, Client, Future, KilledWorker, Worker, as_completed, get_worker

from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.runtime.dask_client import ClusterError, first_line, require_workers
from pathseg.train.config import Config
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.record import Epoch
from pathseg.train.training.loop import OnEpoch, versions
from pathseg.train.training.sweep import left_out, train_share, unfinished

TURN = threading.Lock()  # one share at a time in a process, whatever its threads: a head's seed is the process's
Share = tuple[tuple[Config, Path], ...]  # the heads of one worker and their run folders


@dataclass(frozen=True)
class Job:
    """What a worker is told of a sweep, and what it must find; small, and the same for all of them.

    open_store and device are called there. data is the digest of the store. threads are PyTorch's on a CPU: rounding
    depends on their number. topic is where the epochs are told.
    """

    open_store: Callable[[], FeatureStore]
    device: Callable[[], str]
    memory_bytes: int | None
    without: frozenset[int]
    data: str
    versions: dict[str, str]
    threads: int
    topic: str


def train_on_cluster(
    client: Client,
    configs: Sequence[Config],
    folders: Sequence[Path],
    *,
    open_store: Callable[[], FeatureStore],
    device: Callable[[], str],
    memory_bytes: int | None = None,
    complete_only: bool = False,
    on_epoch: OnEpoch = lambda run, line: None,
) -> dict[str, str]:
    """`sweep.train_sweep` on the workers of a Dask cluster, which see store and run folders at the same places.

    Each worker trains one share of the heads. A share whose worker dies goes on elsewhere after its heads' last
    epochs. open_store and device are called here and on the workers. memory_bytes is for each worker. What is done is
    judged by the run folders. Returns run name -> why, for those that were given up. Raises ClusterError when a
    worker cannot open what it needs or there is none; StoreError, OSError and ValueError as the workers raise them.
    """
    store = open_store()
    waiting = tuple((config, run.path.absolute()) for config, run in unfinished(store, configs, folders))
    if not waiting:
        return {}
    require_workers(client)
    job = Job(
        open_store, device, memory_bytes, left_out(store, configs, allowed=complete_only), store.digest(), versions(),
        torch.get_num_threads(), f"pathseg-{uuid.uuid4().hex}",
    )  # fmt: skip
    for _, folder in waiting:
        folder.mkdir(parents=True, exist_ok=True)  # so that a worker can tell whether it sees them
    failures: dict[str, str] = {}
    with _told(client, job.topic, on_epoch):
        for share, future in _completed(client, job, shares(waiting, len(client.nthreads()))):
            failures |= _result(future, share)
    for run in map(RunFolder, folders):
        if not run.finished:
            failures.setdefault(run.name, f"not finished in {run.path}, though its worker reported it; run again")
    return failures


def shares(waiting: Sequence[tuple[Config, Path]], workers: int) -> list[Share]:
    """Divide the heads among the workers, as evenly as can be.

    Neighbours stay together: they read the same timestep and blocks.
    """
    count = max(1, min(workers, len(waiting)))
    return [tuple(waiting[i] for i in part) for part in np.array_split(range(len(waiting)), count) if len(part)]


def _completed(client: Client, job: Job, parts: Sequence[Share]) -> Iterator[tuple[Share, Future]]:
    """Each share with its future once that is finished; each begins on a worker of its own."""
    running = {
        client.submit(_work, job, share, pure=False, workers=[address], allow_other_workers=True): share
        for share, address in zip(parts, client.nthreads(), strict=False)
    }
    try:
        for future in as_completed(running, loop=client.loop):
            yield running[future], future
    finally:
        client.cancel(list(running))


def _result(future: Future, share: Share) -> dict[str, str]:
    """Why heads of a share were given up."""
    try:
        return future.result()
    except KilledWorker:
        lost = [folder for _, folder in share if not RunFolder(folder).finished]
        return {
            folder.name: "its worker died, each time it was tried; fewer heads at once need less" for folder in lost
        }
    except CancelledError as e:
        raise ClusterError(
            f"the cluster is no longer there ({first_line(e)}); what is finished is kept, run again"
        ) from e
    except (StoreError, OSError, ValueError):
        raise
    except Exception as e:  # of whatever kind: a worker without pathseg cannot even unpack the task
        raise ClusterError(f"the workers cannot take the run ({first_line(e)}); install this pathseg there") from e


@contextmanager
def _told(client: Client, topic: str, on_epoch: OnEpoch) -> Iterator[None]:
    """Call `on_epoch` here with what the workers tell."""

    def tell(event: tuple[Any, dict[str, Any]]) -> None:
        _, told = event
        on_epoch(RunFolder(told["run"]), Epoch.from_json(told["epoch"].encode(), source=client.scheduler.address))

    client.subscribe_topic(topic, tell)
    try:
        yield
    finally:
        client.unsubscribe_topic(topic)


def _work(job: Job, share: Share) -> dict[str, str]:
    """Train a share on this worker; why heads were given up. Ends after an epoch when nobody waits for it any more."""
    worker = get_worker()
    place, key = f"worker {worker.name} at {worker.address}", worker.get_current_task()

    def tell(run: RunFolder, epoch: Epoch) -> None:
        worker.log_event(job.topic, {"run": str(run.path), "epoch": epoch.to_json().decode()})
        _require_wanted(worker, key)

    with TURN, _threads(job.threads):
        _require_wanted(worker, key)
        try:
            store, device = _open(job, share)
        except Exception as e:
            raise ClusterError(f"{place} cannot take the run: {first_line(e)}") from e
        configs, folders = zip(*share, strict=True)
        limits: dict[str, Any] = {"memory_bytes": job.memory_bytes, "without": job.without}
        try:
            return train_share(store, configs, folders, device=device, on_epoch=tell, **limits)
        except (StoreError, OSError, ValueError):
            raise
        except Exception as e:
            raise ClusterError(f"{place} failed: {first_line(e)}; what is finished is kept") from e


def _open(job: Job, share: Share) -> tuple[FeatureStore, str]:
    """Store and device, once this worker is seen to give what the driver would."""
    for name, version in versions().items():
        if version != job.versions[name]:
            raise ValueError(f"it has {name} {version}, but the sweep was started with {job.versions[name]}")
    store = job.open_store()
    for _, folder in share:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not there; all machines must see the same workspace")
    if store.digest() != job.data:
        raise StoreError(
            f"{store.location} holds other data there; all machines must see the same folder, or take s3://"
        )
    return store, job.device()


def _require_wanted(worker: Worker, key: str) -> None:
    """Raise ClusterError when the driver has gone: another may be about to train the same heads."""
    task = worker.state.tasks.get(key)
    if task is None or task.state == "cancelled":
        raise ClusterError("nobody waits for this share of the sweep any more")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
