"""Paths in a workspace: stores, runs and the report."""

from __future__ import annotations

from pathlib import Path

from pathseg.store.errors import StoreError

DEFAULT = Path("pathseg-work")


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


def run_path(workspace: Path, run: str) -> Path:
    """Return the folder of a run, given by name or path. Raises FileNotFoundError naming both paths tried."""
    named = heads_path(workspace) / run
    for path in (named, Path(run)):
        if (path / "config.json").is_file():
            return path
    raise FileNotFoundError(f"there is no run {run}, neither at {named} nor at {Path(run).absolute()}; pass --run")
