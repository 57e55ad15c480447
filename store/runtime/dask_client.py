"""Connecting to a running Dask scheduler, and one-line errors for a cluster that cannot do the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client

WAIT_S = 60  # timeout for the scheduler to answer and for its first worker to join


class ClusterError(ValueError):
    """The workers of a cluster cannot do the work; the message names worker and reason."""


@contextmanager
def scheduler_client(address: str) -> Iterator[Client]:
    """Connect to a running Dask scheduler. Raises ClusterError when none answers or it has no worker."""
    try:
        client = Client(address, timeout=WAIT_S)
    except (OSError, ValueError) as e:
        raise ClusterError(
            f"no Dask scheduler answers at {address} ({first_line(e)}); start one with `dask scheduler`, workers with "
            f"`dask worker ADDRESS`, and pass its address, such as tcp://10.0.0.1:8786"
        ) from e
    with client:
        require_workers(client)
        yield client


def require_workers(client: Client) -> None:
    """Wait for the first worker of a scheduler. Raises ClusterError when none joins in time."""
    try:
        client.wait_for_workers(1, timeout=WAIT_S)
    except TimeoutError as e:
        address = "the scheduler" if client.scheduler is None else client.scheduler.address
        raise ClusterError(f"no worker joined {address} in {WAIT_S} s; start some with `dask worker {address}`") from e


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type when it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
