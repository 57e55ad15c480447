"""Command line options that the training commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import click

from pathseg.store.runtime.flags import PATH, device_option, flags_of, workspace_option

STORE = "Feature store: a path or s3://…."
JOINED = (
    "Given several times, a head reads the features of all: of several models, timesteps or magnifications of the same "
    "images. A store is named after its folder, or NAME=PATH."
)


def training_flags(config: type, *, joined: bool = False) -> Callable[[Callable], Callable]:
    """Return a decorator that adds the options of a training command for a configuration class.

    joined: whether --store may be given several times.
    """
    store = f"{STORE} {JOINED}" if joined else STORE
    flags = (
        click.option("--store", multiple=joined, help=f"{store}  [default: the one in the workspace]"),
        flags_of(config),
        click.option("--name", help="Name of the run.  [default: the store's file name, settings]"),
        click.option("--cache-dir", type=PATH, help="Keeps what is read from S3.  [default: <user cache dir>/pathseg]"),
        click.option("--no-cache", is_flag=True, help="Keep nothing read from S3 on the local disk."),
        click.option("--complete-only", is_flag=True, help="Leave out images that are not completely extracted."),
        click.option(
            "--memory",
            "memory_bytes",
            type=click.FloatRange(min=0, max=1e9),
            callback=lambda context, option, gigabytes: gigabytes and int(gigabytes * 1e9),
            help="GB kept in memory.  [default: half of the free]",
        ),
        click.option("--scheduler", help="Train on the workers of a Dask scheduler, tcp://…."),
        workspace_option,
        device_option,
    )
    return lambda command: reduce(lambda made, flag: flag(made), reversed(flags), command)
