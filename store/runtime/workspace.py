"""Where things lie in a workspace: stores, heads, the report."""

from __future__ import annotations

from pathlib import Path

from pathseg.store.errors import StoreError

DEFAULT = Path("pathseg-work")


def store_path(workspace: Path, dataset: str, model: str) -> Path:
    """Where stage one puts a store unless told otherwise."""
    return workspace / f"{dataset}-{model}.zarr"


def heads_path(workspace: Path) -> Path:
    """The folder of all run folders."""
    return workspace / "heads"


def only_store(workspace: Path) -> Path:
    """The one store of a workspace. Raises StoreError when there is none, or several (they are listed)."""
    stores = sorted(path for path in workspace.glob("*.zarr") if (path / "zarr.json").is_file())
    if not stores:
        raise StoreError(f"there is no feature store in {workspace}; run pathseg extract first, or pass --store")
    if len(stores) > 1:
        listed = ", ".join(str(path) for path in stores)
        raise StoreError(f"there are {len(stores)} feature stores in {workspace}; pass --store with one of {listed}")
    return stores[0]


def run_path(workspace: Path, run: str) -> Path:
    """The folder of a run, given by its name in the workspace or as a path. Raises FileNotFoundError naming both."""
    named = heads_path(workspace) / run
    for path in (named, Path(run)):
        if (path / "config.json").is_file():
            return path
    raise FileNotFoundError(f"there is no run {run}, neither at {named} nor at {Path(run).absolute()}; pass --run")
