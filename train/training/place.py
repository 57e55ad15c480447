"""Where runs are trained: in this process, or on the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pathseg.store.features import FeatureStore
from pathseg.store.location.cache import cache_for
from pathseg.store.location.location import open_location
from pathseg.store.runtime.dask_client import scheduler_client
from pathseg.store.runtime.device import device
from pathseg.train.training.dask_sweep import train_on_cluster
from pathseg.train.training.sweep import train_sweep


def store_opener(path: str | Path, *, cache_dir: Path | None = None, no_cache: bool = False) -> Callable:
    """What opens a store, here or on a worker: a call without arguments that gives the FeatureStore.

    What is read from S3 is kept in cache_dir, or in the user's cache folder, unless no_cache.
    """
    place = str(open_location(path))
    return partial(FeatureStore.open, place, cache=None if no_cache else cache_for(place, cache_dir))


@contextmanager
def trainers(
    opener: Callable, store: FeatureStore, *, scheduler: str | None, device_name: str
) -> Iterator[tuple[Callable, dict[str, Any]]]:
    """What trains a sweep, `train_sweep` or `train_on_cluster`, lacking only the runs and the last options.

    Beside it what `sweep.announcement` wants to know of the place. Each worker chooses its own device for `auto`.
    """
    if not scheduler:
        here = device(device_name)
        yield partial(train_sweep, store, device=here), {"device": here}
        return
    with scheduler_client(scheduler) as client:
        train = partial(train_on_cluster, client, open_store=opener, device=partial(device, device_name))
        yield train, {"workers": len(client.nthreads())}
