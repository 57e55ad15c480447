"""Stage one on Dask workers: the same units of work as in one process, on this machine's processes or on a cluster."""

from __future__ import annotations

import logging
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from typing import cast

import dask
from dask.system import CPU_COUNT
from distributed import CancelledError, Client, Future, KilledWorker, LocalCluster, as_completed, get_worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.scheduler import NoValidWorkerError, NoWorkerError
from distributed.worker import Worker

from pathseg.extract.config import ExtractConfig
from pathseg.extract.dask_worker import ExtractionJob, ExtractionPlugin
from pathseg.extract.datasets.registry import Dataset
from pathseg.extract.models.arithmetic import CPU_THREADS
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.pipeline import ExtractResult, in_store_order, open_extraction
from pathseg.extract.unit import Extraction, Failure, missing_work
from pathseg.store.features import FeatureStore
from pathseg.store.runtime.dask_client import ClusterError, first_line, require_workers, scheduler_client
from pathseg.store.runtime.device import device as resolve_device

TASKS_PER_WORKER = 2  # while one unit is in the model, another is decoded or written
MAX_QUEUED_UNITS = 1000  # with the scheduler at a time: enough for 300 workers, however large the data set
RETRIES = 1  # of a unit whose local worker died, before it is tried alone; a cluster has its scheduler's setting
MAX_LOST_UNITS = 20  # units that ended with their worker before the first was finished: the images are not the cause
RESTART_S = 300  # for local workers to restart when all have died; importing torch from a slow disk takes a minute


def extract_on_workers(
    dataset: Dataset,
    model: FeatureModel,
    store: str | os.PathLike[str],
    config: ExtractConfig,
    *,
    client: Client,
    open_dataset: Callable[[], Dataset],
    load_model: Callable[..., FeatureModel],
    device: str = "auto",
    progress: Callable[[int], object] = lambda patches: None,
) -> ExtractResult:
    """Compute and write the features that a store lacks, as `pipeline.extract`, on the workers of a Dask client.

    dataset and model are those of this process, which computes nothing: the model may be on the CPU. open_dataset and
    load_model open them again, once on each worker: `partial(open_dataset, name, options)` and
    `partial(load_model, name, hipt=..., condition=...)`, called with `device=`. The workers must have pathseg, the
    files, and the store under the same paths.

    A unit whose worker dies is retried, at last while no other unit runs. One that ends with its worker again is set
    aside, its images are failures. Which units are complete is read from the store's completion records.

    Raises as `pipeline.extract`; ClusterError when there is no worker, or one cannot open data set, model or store.
    Finished units are kept.
    """
    require_workers(client)
    device_type = None if config.batch_size else _device_type(client, device)
    extraction = open_extraction(dataset, model, store, config, device_type=device_type)
    location, digest = extraction.writer.store.location, extraction.writer.store.contents.key.model_digest
    job = ExtractionJob(str(location), open_dataset, load_model, config, digest, device)
    with extraction.writer.lock(), _installed_plugin(client, job) as plugin:
        started = time.perf_counter()
        failures, computed, passes = _run_units(extraction, client, plugin, progress)
        seconds = time.perf_counter() - started
    return _checked_result(extraction, failures, computed, passes, seconds)


def _device_type(client: Client, device: str) -> str:
    """Return torch's name for the kind of device that workers compute on, for `auto` that of the first to answer."""
    if device != "auto":
        return device.partition(":")[0]
    with _errors_of_workers():
        return client.submit(resolve_device, device, pure=False).result()


@contextmanager
def _errors_of_workers() -> Iterator[None]:
    try:
        yield
    except Exception as e:  # Dask raises errors of its workers as a plain Exception
        raise ClusterError(f"the workers cannot take the run ({first_line(e)}); install this pathseg there") from e


def worker_client(*, workers: int | None, scheduler: str | None) -> AbstractContextManager[Client]:
    """Return a client of `workers` processes on this machine, or else of the scheduler at an address."""
    return local_client(workers) if workers else scheduler_client(scheduler or "")


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """Start worker processes on this machine; they end with the `with` block, or soon after this process dies.

    GPUs are assigned to the workers in turn, and the CPU's threads are divided among them. On a CPU take no more than
    `usable_workers`. A worker that dies is restarted.
    """
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    threads = str(max(1, CPU_COUNT // workers))
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": f"{RESTART_S}s"}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=TASKS_PER_WORKER,
            memory_limit=0,
            silence_logs=logging.CRITICAL,  # a worker that dies is reported in the result
            scheduler_kwargs={"allowed_failures": RETRIES, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
            env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(IgnoreInterrupts(), name="ignore-interrupts")
        yield client


def usable_workers(workers: int, *, device: str) -> int:
    """Return how many of `workers` local processes a device can keep busy: on a CPU one per CPU_THREADS cores.

    A forward pass on a CPU always takes CPU_THREADS threads, because rounding depends on their number. More passes at
    a time than the cores have threads for would take turns on them, each with its own copy of the model.
    """
    return min(workers, max(1, CPU_COUNT // CPU_THREADS)) if device == "cpu" else workers


class IgnoreInterrupts(WorkerPlugin):
    """Makes workers ignore Ctrl-C, which reaches all processes of a terminal: the driver ends its workers itself."""

    def setup(self, worker: Worker) -> None:
        """Called by Dask on each worker, in its main thread."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_units(
    extraction: Extraction, client: Client, plugin: str, progress: Callable[[int], object]
) -> tuple[list[Failure], int, int]:
    """Run the unfinished units on the workers; return failures, number of images worked on and of forward passes."""
    failures: list[Failure] = []
    finished: list[int] = []
    units = extraction.unfinished_units()

    def run(numbers: Iterable[int], max_queued: int) -> list[int]:
        """Run units; return those that ended with their worker."""
        lost = []
        for unit, future in _completed(client, plugin, numbers, max_queued=max_queued):
            if (result := _result(future)) is None:
                lost.append(unit)
            else:
                failures.extend(result)
                finished.append(unit)
                progress(units[unit].patches)
            if len(lost) >= MAX_LOST_UNITS and not finished:
                raise ClusterError(
                    f"{len(lost)} units ended with the death of their worker and none was finished; run without "
                    f"--workers and --scheduler to see why"
                )
        return lost

    killers = run(run(units, MAX_QUEUED_UNITS), 1)  # the lost ones again, one at a time
    for unit in killers:
        lost = [extraction.writer.store.ids[index] for index in extraction.missing(unit)]
        failures += [Failure(id_, "its worker died, each time it was tried") for id_ in lost]
        progress(units[unit].patches)
    passes = sum(units[unit].passes for unit in finished)
    return failures, sum(units[unit].images for unit in finished + killers), passes


def _checked_result(
    extraction: Extraction, failures: list[Failure], computed: int, passes: int, seconds: float
) -> ExtractResult:
    """Return the result of a run after reading the store's records: what is not complete is a failure."""
    config, blocks = extraction.config, extraction.blocks
    store = FeatureStore.open(extraction.writer.store.location)
    reported = {failure.id for failure in failures}
    for unit in range(store.contents.units):
        for index in missing_work(store, unit, config.t, blocks):
            if store.ids[index] not in reported:
                reason = "not in the store, though its worker reported it; run again"
                failures.append(Failure(store.ids[index], reason))
    return ExtractResult(store, in_store_order(failures, store), computed, passes, seconds)


@contextmanager
def _installed_plugin(client: Client, job: ExtractionJob) -> Iterator[str]:
    """Install an ExtractionPlugin on every present and future worker for the time of a run; return its name."""
    name = f"pathseg-{uuid.uuid4().hex}"
    try:
        with _errors_of_workers():
            client.register_plugin(ExtractionPlugin(job), name=name)
        yield name
    finally:
        with suppress(OSError, KeyError):  # the scheduler has gone, or a worker never had the plugin
            client.unregister_worker_plugin(name)


def _completed(client: Client, plugin: str, units: Iterable[int], *, max_queued: int) -> Iterator[tuple[int, Future]]:
    """Yield each unit with its finished future; at most `max_queued` are with the scheduler at a time."""
    units = iter(units)
    running = {client.submit(_extract_unit, plugin, unit, pure=False): unit for unit in islice(units, max_queued)}
    completed = as_completed(running, loop=client.loop)
    try:
        for future in completed:
            yield running.pop(future), future
            for unit in islice(units, 1):
                following = client.submit(_extract_unit, plugin, unit, pure=False)
                running[following] = unit
                completed.add(following)
    finally:
        client.cancel(list(running))


def _extract_unit(plugin: str, unit: int) -> tuple[Failure, ...]:
    """The task: runs on a worker."""
    return cast(ExtractionPlugin, get_worker().plugins[plugin]).extract_unit(unit)


def _result(future: Future) -> tuple[Failure, ...] | None:
    """Return the failures of a unit, None when its worker died."""
    try:
        return cast(tuple[Failure, ...], future.result())
    except KilledWorker:
        return None
    except (CancelledError, NoValidWorkerError, NoWorkerError) as e:
        raise ClusterError(
            f"the cluster is no longer there ({first_line(e)}); what is finished is kept, run again"
        ) from e
