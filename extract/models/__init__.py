"""Frozen feature models: loading them by name or folder, and what each computes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathseg.extract.models.load import FeatureModel, load_model

__all__ = ["FeatureModel", "load_model"]


def __getattr__(name: str) -> Any:
    """Import the loader, and torch with it, on first use: the command line reads only the registry."""
    if name in __all__:
        from pathseg.extract.models import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
