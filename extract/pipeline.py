"""Stage one in one process: compute the features of all images with a frozen model and write them to a store."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch

from pathseg.extract.changes import apply_changes, find_changes, record_touched, with_kept_splits
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.plan import contents_of, plan_for, wanted_blocks
from pathseg.extract.unit import Extraction, Failure, LoadedUnit
from pathseg.store.errors import KeyMismatch, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.names import MANIFEST
from pathseg.store.growth import finish_growth
from pathseg.store.location.location import Location, open_location
from pathseg.store.writer import StoreWriter

QUEUED_UNITS = 2  # units that wait for the forward pass, and as many that wait to be written


@dataclass(frozen=True)
class ExtractResult:
    """A store after a run.

    failures: the images that were set aside, in the order of the store. computed: number of images that the run worked
    on. passes: forward passes of single patches, each timestep one. seconds: from the first image to the last byte.
    """

    store: FeatureStore
    failures: tuple[Failure, ...]
    computed: int
    passes: int
    seconds: float

    @property
    def complete(self) -> int:
        """Number of images of the data set that were not set aside."""
        return len(self.store.listed) - len(self.failures)


def extract(
    dataset: Dataset,
    model: FeatureModel,
    store: str | os.PathLike[str],
    config: ExtractConfig,
    *,
    progress: Callable[[int], object] = lambda patches: None,
) -> ExtractResult:
    """Compute the features that a store lacks and write them; the store is created if there is none.

    An existing store follows its data set: new images are added at its end, changed masks are written again, and images
    that are no longer listed count nowhere.

    store: a path or `s3://bucket/prefix`. progress: called with the number of computed patches of each unit of work
    once it is done (0 where masks alone change), in total `ExtractPlan.missing_patches`. Images that cannot be read are
    set aside and returned as failures. What is complete is not computed again, so an interrupted run is continued by
    the same call.

    Raises StoreError before anything is written when the missing features do not fit into the free space, KeyMismatch
    when the store has features that were made in another way, StoreError when images have changed, or when the store is
    to follow its data set while another run writes to it, ValueError for a block or a timestep that the model does not
    have.
    """
    return run_extraction(open_extraction(dataset, model, store, config), progress=progress)


def open_extraction(
    dataset: Dataset,
    model: FeatureModel,
    store: str | os.PathLike[str],
    config: ExtractConfig,
    *,
    device_type: str | None = None,
) -> Extraction:
    """Check the free space, create the store or let it follow the data set, and create the arrays that it lacks.

    device_type: torch's name for the kind of device that computes the features, which a new store's batch size depends
    on; by default the model's. Raises as `extract`.
    """
    location, blocks = open_location(store), wanted_blocks(model, config)
    exists = location.exists(MANIFEST)
    if exists:
        dataset, settled = _follow(dataset, model, config, location)
    else:
        settled = config
        plan_for(dataset, model, config, location, None).require_space()
    try:
        writer = StoreWriter(location, contents_of(dataset, model, settled, device_type=device_type))
    except KeyMismatch:
        if exists or config.batch_size is not None:
            raise
        # another run has created the store meanwhile, maybe with the batch size of another device
        return open_extraction(dataset, model, store, config, device_type=device_type)
    writer.add_arrays(config.t, blocks)
    return Extraction(dataset, model, writer, settled, blocks)


def _follow(
    dataset: Dataset, model: FeatureModel, config: ExtractConfig, location: Location
) -> tuple[Dataset, ExtractConfig]:
    """Let a store follow its data set while no other run writes to it.

    Returns the data set with the splits that the store keeps, and the configuration with its batch size.
    """
    with location.writer_lock(exclusive=True) as alone:
        if alone:
            with location.metadata_lock():
                finish_growth(location)
            store = FeatureStore.open(location)
            dataset, config = with_kept_splits(dataset, store), config.following(store.contents.key)
            changes = find_changes(dataset, store, contents_of(dataset, model, config))
            plan_for(dataset, model, config, location, store, changes).require_space()
            apply_changes(store, changes)
            return dataset, config
    with location.writer_lock():  # after a repair or a growth, beside a run that writes
        store = FeatureStore.open(location)
        dataset, config = with_kept_splits(dataset, store), config.following(store.contents.key)
        changes = find_changes(dataset, store, contents_of(dataset, model, config))
        plan_for(dataset, model, config, location, store, changes).require_space()
        if changes:
            raise StoreError(
                f"another run is writing to {location}, which is to get {changes}; run again when it has ended"
            )
        record_touched(store, changes)
    return dataset, config


def run_extraction(
    extraction: Extraction, *, progress: Callable[[int], object] = lambda patches: None
) -> ExtractResult:
    """Process the unfinished units of a store, as `extract` does.

    Three threads work at the same time: one decodes the next units, this one runs the model, one writes the last units.
    At most QUEUED_UNITS wait before and after the model, which bounds the memory. A second run on the same store starts
    at the other end and skips what the first has completed.
    """
    store, failures, computed_images, passes = extraction.writer.store, list[Failure](), 0, 0
    started = time.perf_counter()
    with (
        extraction.writer.lock() as is_first,
        ThreadPoolExecutor(1) as loader,
        _single_threaded_writer() as writer,
    ):
        units = extraction.unfinished_units()
        writing: deque[Future[None]] = deque()
        for loaded in _load_ahead(loader, extraction, units if is_first else reversed(units)):
            if loaded.missing:
                computed = extraction.compute(loaded)
                while len(writing) >= QUEUED_UNITS:
                    writing.popleft().result()
                writing.append(writer.submit(extraction.write, computed))
                failures.extend(loaded.failures)
                computed_images += len(loaded.missing)
                passes += extraction.passes(loaded)
            progress(units[loaded.unit].patches)
        for written in writing:
            written.result()
    seconds = time.perf_counter() - started
    return ExtractResult(store, in_store_order(failures, store), computed_images, passes, seconds)


def in_store_order(failures: Iterable[Failure], store: FeatureStore) -> tuple[Failure, ...]:
    """Return failures in the order of the store's images."""
    by_id = {failure.id: failure for failure in failures}
    return tuple(by_id[id_] for id_ in store.ids if id_ in by_id)


def _load_ahead(pool: ThreadPoolExecutor, extraction: Extraction, units: Iterable[int]) -> Iterator[LoadedUnit]:
    """Yield the loaded units in order; QUEUED_UNITS more are loaded while the caller works on one."""
    waiting = iter(units)
    loading = deque(pool.submit(extraction.load, unit) for unit in islice(waiting, QUEUED_UNITS))
    while loading:
        loaded = loading.popleft().result()
        loading.extend(pool.submit(extraction.load, unit) for unit in islice(waiting, 1))
        yield loaded


@contextmanager
def _single_threaded_writer() -> Iterator[ThreadPoolExecutor]:
    """Return a pool of one thread in which PyTorch uses one core: the forward pass needs the others."""
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(torch.get_num_threads())  # threads started later take the number that was set last
