"""Stage one on a Dask worker: the data set, model and store that a worker process opens, and how it makes a unit."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cloudpickle
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker import Worker

from pathseg.extract.changes import with_kept_splits
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.plan import contents_of, wanted_blocks
from pathseg.extract.unit import Extraction, Failure
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.names import MANIFEST
from pathseg.store.location.location import open_location
from pathseg.store.runtime.dask_client import ClusterError, first_line
from pathseg.store.runtime.device import device, worker_device
from pathseg.store.writer import StoreWriter


@dataclass(frozen=True)
class ExtractionJob:
    """What a worker opens; the same for all workers, and small.

    store: its path or s3 URL. open_dataset: returns the data set. load_model: returns the model on a `device`. Both are
    importable on the workers. model_digest: the digest that the loaded model must have. device: `auto` takes a GPU of
    the worker's machine, or its CPU.
    """

    store: str
    open_dataset: Callable[[], Dataset]
    load_model: Callable[..., FeatureModel]
    config: ExtractConfig
    model_digest: str
    device: str


class ExtractionPlugin(WorkerPlugin):
    """Keeps data set, model and store open in a worker process from its first unit to the end of the run.

    They are opened by the first task and not in `setup`, which would block the worker's event loop, and whose errors on
    a worker that joins late reach nobody. Two tasks run at a time: while one is in the model, the other decodes its
    images or writes its features.
    """

    def __init__(self, job: ExtractionJob) -> None:
        self._pickled_job = cloudpickle.dumps(job)  # a worker that cannot unpickle its plugins does not start at all

    def setup(self, worker: Worker) -> None:
        """Called by Dask on each worker, also on those that join later."""
        self._worker = worker
        self._open_lock, self._load_lock, self._compute_lock = threading.Lock(), threading.Lock(), threading.Lock()
        self._extraction: Extraction | None = None

    def teardown(self, worker: Worker) -> None:
        """Called by Dask at the end of the run: frees the memory of model and data set."""
        self._extraction = None

    def extract_unit(self, unit: int) -> tuple[Failure, ...]:
        """Compute and write what the store lacks of a unit; return the images that were set aside.

        Raises StoreError, OSError and ValueError as they come, any other exception as ClusterError that names the
        worker and the images.
        """
        with self._open_lock:
            if self._extraction is None:
                self._extraction = self._open()
            extraction = self._extraction
        try:
            with self._load_lock:
                loaded = extraction.load(unit)
            if not loaded.missing:  # another run has completed it
                return ()
            with self._compute_lock:
                computed = extraction.compute(loaded)
            extraction.write(computed)
            return loaded.failures
        except (StoreError, OSError, ValueError):
            raise
        except Exception as e:
            ids = ", ".join(extraction.ids(unit))
            raise ClusterError(f"{self._name} failed at {ids}: {first_line(e)}") from e

    def _open(self) -> Extraction:
        with self._errors_named("the run"):
            job: ExtractionJob = pickle.loads(self._pickled_job)
        with self._errors_named("the data set"):
            dataset = job.open_dataset()
        with self._errors_named("the model"):
            model = job.load_model(device=device(worker_device(job.device, self._worker.name)))
            if model.digest != job.model_digest:
                raise ValueError(f"its digest is {model.digest} here, but the store is made with {job.model_digest}")
        with self._errors_named("the store"):
            location = open_location(job.store)
            if not location.exists(MANIFEST):  # a StoreWriter would create one that only this machine sees
                raise StoreError(f"{location} is not there; all machines must see the same folder, or take s3://")
            existing = FeatureStore.open(location)
            dataset, config = with_kept_splits(dataset, existing), job.config.following(existing.contents.key)
            writer = StoreWriter(location, contents_of(dataset, model, config))
        return Extraction(dataset, model, writer, config, wanted_blocks(model, config))

    @contextmanager
    def _errors_named(self, opened: str) -> Iterator[None]:
        try:
            yield
        except Exception as e:
            raise ClusterError(f"{self._name} cannot open {opened}: {first_line(e)}") from e

    @property
    def _name(self) -> str:
        return f"worker {self._worker.name} at {self._worker.address}"
