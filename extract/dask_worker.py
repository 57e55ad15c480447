"""The worker's side of stage one over Dask: what a worker process holds during a run, and how it makes a unit."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cloudpickle
import torch
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker import Worker

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.pipeline import contents_of
from pathseg.extract.unit import Failure, compute_unit, has_pixels, load_unit, still_lacking, write_unit
from pathseg.store.errors import StoreError
from pathseg.store.format.manifest import MANIFEST
from pathseg.store.location.location import open_location
from pathseg.store.runtime.dask_client import ClusterError, first_line
from pathseg.store.writer import StoreWriter


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to make itself ready; small, and the same for all of them.

    dataset opens the data set, model loads the model on the `device` it is given; both are importable there. digest
    is the one that the model must have. device `auto` is a GPU of the worker's machine, or the CPU.
    """

    store: str
    dataset: Callable[[], Dataset]
    model: Callable[..., FeatureModel]
    config: ExtractConfig
    digest: str
    device: str


class Workbench(WorkerPlugin):
    """What one worker process holds during a run: data set, model and store, opened when its first unit comes.

    They are opened in the task and not in `setup`: that would hold up the worker's event loop, and of a worker that
    joins late nobody would hear that it failed. At the end of the run `teardown` gives the memory back.
    """

    def __init__(self, job: Job) -> None:
        self._packed = cloudpickle.dumps(job)  # a worker that could not unpack its plugins would not even start

    def setup(self, worker: Worker) -> None:
        """Called by Dask on each worker, also on those that join later."""
        self._worker = worker
        self._opening, self._reading, self._computing = threading.Lock(), threading.Lock(), threading.Lock()
        self._opened: tuple[Job, Dataset, FeatureModel, StoreWriter] | None = None

    def teardown(self, worker: Worker) -> None:
        """Called by Dask when the run has ended."""
        self._opened = None

    def work(self, unit: int) -> tuple[Failure, ...]:
        """Make what the store lacks of a unit; the images that were set aside.

        Raises StoreError, OSError and ValueError as they come, whatever else as ClusterError with place and images.
        """
        with self._opening:
            self._opened = self._opened or self._open()
        _, dataset, _, writer = self._opened
        try:
            return self._make(unit)
        except (StoreError, OSError, ValueError):
            raise
        except Exception as e:
            ids = ", ".join(dataset.samples[index].id for index in writer.images(unit))
            raise ClusterError(f"{self._place} failed at {ids}: {first_line(e)}") from e

    def _make(self, unit: int) -> tuple[Failure, ...]:
        job, dataset, model, writer = self._opened
        config = job.config
        with self._reading:
            blocks = tuple(block for block in config.blocks if block in model.blocks)
            lacking = still_lacking(writer, unit, blocks, config)
            if not lacking and has_pixels(writer, unit):
                return ()
            loaded = load_unit(writer, dataset, unit, lacking)
        with self._computing:
            ids = [dataset.samples[index].id for index in writer.images(unit)]
            maps = compute_unit(model, loaded, ids, writer.store.contents.grid, config)
        write_unit(writer, loaded, maps, config)
        return loaded.failures

    def _open(self) -> tuple[Job, Dataset, FeatureModel, StoreWriter]:
        with self._explained("the run"):
            job: Job = pickle.loads(self._packed)
        with self._explained("the data set"):
            dataset = job.dataset()
        with self._explained("the model"):
            model = job.model(device=_device(job.device, self._worker.name))
            if model.digest != job.digest:
                raise ValueError(f"its digest is {model.digest} here, but the store is made with {job.digest}")
        with self._explained("the store"):
            location = open_location(job.store)
            if not location.exists(MANIFEST):  # a writer would make a new one, on this machine alone
                raise StoreError(f"{location} is not there; all machines must see the same folder, or take s3://")
            writer = StoreWriter(location, contents_of(dataset, model, job.config))
        return job, dataset, model, writer

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as e:
            raise ClusterError(f"{self._place} cannot open {what}: {first_line(e)}") from e

    @property
    def _place(self) -> str:
        return f"worker {self._worker.name} at {self._worker.address}"


def _device(device: str, worker: object) -> str:
    """`auto`: the GPU of this worker's number, where workers have numbers as local ones do, else the first."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return f"cuda:{worker % torch.cuda.device_count() if isinstance(worker, int) else 0}"
    return "mps" if torch.backends.mps.is_available() else "cpu"
