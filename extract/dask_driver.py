"""Stage one over Dask: the same units of work as in one process, on processes of this machine or of a cluster."""

from __future__ import annotations

import logging
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice

import dask
from dask.system import CPU_COUNT
from distributed import CancelledError, Client, Future, KilledWorker, LocalCluster, as_completed, get_worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.scheduler import NoValidWorkerError, NoWorkerError
from distributed.worker import Worker

from pathseg.extract.config import ExtractConfig
from pathseg.extract.dask_worker import Job, Workbench
from pathseg.extract.datasets.registry import Dataset
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.unit import Failure, work_left
from pathseg.store.runtime.dask_client import ClusterError, first_line, require_workers, scheduler_client
from pathseg.store.writer import StoreWriter

THREADS = 2  # of a local worker: one unit is in the model while another is read or written, so the device never waits
IN_FLIGHT = 1000  # units handed to the scheduler at a time: work for 300 workers, whatever the size of the data set
RETRIES = 1  # of a unit whose local worker died, before it is looked at alone; elsewhere the scheduler's own setting
HOPELESS = 20  # units that ended with their worker before the first was finished: it is not the images
REVIVAL_S = 300  # for local workers to come back when all have died; importing torch from a slow disk takes a minute


class LeaveInterrupts(WorkerPlugin):
    """Ctrl-C reaches all processes of a terminal: the driver ends its workers, they need not end themselves."""

    def setup(self, worker: Worker) -> None:
        """Called by Dask on each worker, in its main thread."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """Start worker processes on this machine, which end with the `with` block or soon after this process dies.

    They share out the GPUs (with more workers than GPUs several use one) and the CPU's threads. A worker that dies is
    started anew.
    """
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    threads = str(max(1, CPU_COUNT // workers))
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": f"{REVIVAL_S}s"}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=THREADS,
            memory_limit=0,
            silence_logs=logging.CRITICAL,  # what matters of a death is told in the result
            scheduler_kwargs={"allowed_failures": RETRIES, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
            env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(LeaveInterrupts(), name="leave-interrupts")
        yield client


def extract_spread(
    writer: StoreWriter,
    dataset: Callable[[], Dataset],
    model: Callable[..., FeatureModel],
    config: ExtractConfig,
    on_unit: Callable[[int], None],
    *,
    workers: int | None,
    scheduler: str | None,
    device: str,
) -> tuple[Failure, ...]:
    """`extract_on_cluster` on so many processes of this machine, or else on a scheduler's workers."""
    with local_client(workers) if workers else scheduler_client(scheduler or "") as client:
        return extract_on_cluster(
            writer, client, dataset=dataset, model=model, config=config, device=device, on_unit=on_unit
        )


def extract_on_cluster(
    writer: StoreWriter,
    client: Client,
    *,
    dataset: Callable[[], Dataset],
    model: Callable[..., FeatureModel],
    config: ExtractConfig,
    device: str = "auto",
    on_unit: Callable[[int], None] = lambda images: None,
) -> tuple[Failure, ...]:
    """`pipeline.extract` on the workers of a Dask cluster, which all see the store at the same place.

    dataset: opens the data set, `partial(open_dataset, name, options)`. model: loads the model on a `device`,
    `partial(load_model, name, hipt=..., condition=...)`. Each worker calls both once; paths in them hold there too.

    A unit whose worker dies is tried again, at last alone, so that no other unit suffers from it; one that still ends
    with its worker is set aside, its images named. What is done is judged by the completion records. Returns the
    images that were set aside, in the order of the store. Raises ClusterError when a worker cannot open what it
    needs or there is none; StoreError, OSError and ValueError as the workers raise them. Finished units are kept.
    """
    require_workers(client)
    store, failures = writer.store, []
    blocks = tuple(block for block in config.blocks if block in store.contents.blocks)
    job = Job(str(store.location), dataset, model, config, store.contents.key.model_digest, device)
    finished = 0

    def run(units: Iterable[int], at_once: int) -> list[int]:
        """Units that ended with their worker."""
        nonlocal finished
        lost = []
        for unit, future in _completed(client, bench, units, at_once=at_once):
            if (result := _result(future)) is None:
                lost.append(unit)
            else:
                failures.extend(result)
                finished += 1
                on_unit(len(writer.images(unit)))
            if len(lost) >= HOPELESS and not finished:
                raise ClusterError(
                    f"{len(lost)} units ended with the death of their worker and none was finished; run without "
                    f"--workers and --scheduler to see why"
                )
        return lost

    with store.location.writer_lock(), _benches(client, job) as bench:
        todo = (u for u in range(store.contents.units) if work_left(writer, u, blocks, config))
        for unit in run(run(todo, IN_FLIGHT), 1):
            failures += [Failure(store.ids[i], "its worker died, each time it was tried") for i in writer.images(unit)]
            on_unit(len(writer.images(unit)))
    return _accounted(writer, blocks, config, failures)


def _accounted(
    writer: StoreWriter, blocks: tuple[int, ...], config: ExtractConfig, failures: list[Failure]
) -> tuple[Failure, ...]:
    """The failures, and whatever else has no completion record now, in the order of the store."""
    reasons = {failure.id: failure.reason for failure in failures}
    now = StoreWriter(writer.store.location, writer.store.contents)
    for unit in range(now.store.contents.units):
        if not work_left(now, unit, blocks, config):
            continue
        whole = {index for index in now.images(unit) if now.store.complete(index, config.t, blocks)}
        for index in set(now.images(unit)) - whole:
            reasons.setdefault(now.store.ids[index], "not in the store, though its worker reported it; run again")
    return tuple(Failure(id_, reasons[id_]) for id_ in now.store.ids if id_ in reasons)


@contextmanager
def _benches(client: Client, job: Job) -> Iterator[str]:
    """Put a bench on every worker, present and future, for the time of a run; its name."""
    name = f"pathseg-{uuid.uuid4().hex}"
    try:
        try:
            client.register_plugin(Workbench(job), name=name)
        except Exception as e:  # of whatever kind: Dask passes on an error of its workers as a plain Exception
            raise ClusterError(f"the workers cannot take the run ({first_line(e)}); install this pathseg there") from e
        yield name
    finally:
        with suppress(OSError, KeyError):  # a scheduler that has gone, a worker that never had it
            client.unregister_worker_plugin(name)


def _completed(client: Client, bench: str, units: Iterable[int], *, at_once: int) -> Iterator[tuple[int, Future]]:
    """Each unit with its future once that is finished; never more than `at_once` are with the scheduler."""
    units = iter(units)
    running = {client.submit(_work, bench, unit, pure=False): unit for unit in islice(units, at_once)}
    completed = as_completed(running, loop=client.loop)
    try:
        for future in completed:
            yield running.pop(future), future
            for unit in islice(units, 1):
                following = client.submit(_work, bench, unit, pure=False)
                running[following] = unit
                completed.add(following)
    finally:
        client.cancel(list(running))


def _work(bench: str, unit: int) -> tuple[Failure, ...]:
    return get_worker().plugins[bench].work(unit)


def _result(future: Future) -> tuple[Failure, ...] | None:
    """What the worker reported, None when the unit killed it."""
    try:
        return future.result()
    except KilledWorker:
        return None
    except (CancelledError, NoValidWorkerError, NoWorkerError) as e:
        raise ClusterError(
            f"the cluster is no longer there ({first_line(e)}); what is finished is kept, run again"
        ) from e
