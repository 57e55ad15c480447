"""Paths in a workspace: stores, runs and the report."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from pathseg.store.errors import StoreError

DEFAULT = Path("pathseg-work")


def user_data_folder() -> Path:
    """Return `<user data dir>/pathseg`, where data sets and models are looked for by default.

    Raises FileNotFoundError where the user has no known home folder, as in containers that run under a bare user id.
    """
    try:
        return platformdirs.user_data_path("pathseg", appauthor=False)
    except RuntimeError as e:
        raise FileNotFoundError(
            "the user's data folder is not known because HOME is not set; set HOME or XDG_DATA_HOME, or pass the path "
            "(--root, --model, --hipt)"
        ) from e


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path whose leading `~` or `~user` is that home folder. Raises ValueError where it is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise ValueError(f"{os.fspath(path)}: the home folder is not known; write the whole path") from e


def store_path(workspace: Path, dataset: str, model: str) -> Path:
    """Return the default path of a store."""
    return workspace / f"{dataset}-{model}.zarr"


def heads_path(workspace: Path) -> Path:
    """Return the folder of all run folders."""
    return workspace / "heads"


def only_store(workspace: Path) -> Path:
    """Return the path of a workspace's only store. Raises StoreError when there is none or, listing them, several."""
    stores = sorted(path for path in workspace.glob("*.zarr") if (path / "zarr.json").is_file())
    if not stores:
        raise StoreError(f"there is no feature store in {workspace}; run pathseg extract first, or pass --store")
    if len(stores) > 1:
        listed = ", ".join(str(path) for path in stores)
        raise StoreError(f"there are {len(stores)} feature stores in {workspace}; pass --store with one of {listed}")
    return stores[0]


def run_path(workspace: Path, run: str, *, flag: str = "--run") -> Path:
    """Return the folder of a run, given to a flag by name or path. Raises FileNotFoundError naming both paths tried."""
    named = heads_path(workspace) / run
    if (named / "config.json").is_file():
        return named
    given = expand_home(run).absolute()
    if (given / "config.json").is_file():
        return given
    raise FileNotFoundError(f"there is no run {run}, neither at {named} nor at {given}; pass another {flag}")
