"""A Dask scheduler that is already running: connecting to it, and one line for what can be wrong with a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client

WAIT_S = 60  # for a scheduler to answer and for its first worker to join


class ClusterError(ValueError):
    """The workers cannot do the work; the message says where and why."""


@contextmanager
def scheduler_client(address: str) -> Iterator[Client]:
    """Connect to a running Dask scheduler. Raises ClusterError when none answers there, or it has no worker."""
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
    """Wait for the first worker. Raises ClusterError when none comes."""
    try:
        client.wait_for_workers(1, timeout=WAIT_S)
    except TimeoutError as e:
        address = client.scheduler.address
        raise ClusterError(f"no worker joined {address} in {WAIT_S} s; start some with `dask worker {address}`") from e


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its message, or its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0]
