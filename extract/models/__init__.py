"""Frozen feature models: load one by its name or from a release folder."""

from typing import TYPE_CHECKING, Any

from pathseg.extract.models.feature_model import FeatureModel

if TYPE_CHECKING:
    from pathseg.extract.models.load import load_model

__all__ = ["FeatureModel", "load_model"]


def __getattr__(name: str) -> Any:
    """Import the loader, and torch with it, on first use: the command line only needs the registry."""
    if name == "load_model":
        from pathseg.extract.models.load import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
