"""The settings of `refine` and their reasons."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from pathseg.extract.datasets.registry import DatasetOptions, check_options
from pathseg.extract.models.registry import DEFAULT_MODEL
from pathseg.train.config import HeadConfig
from pathseg.train.predict.config import PredictConfig


def _flag(default: Any, help: str, **more: Any) -> Any:
    """A field that is also a flag of `pathseg refine`, with its help."""
    return dataclasses.field(default=default, metadata={"help": help, **more})


def _of_slides(name: str) -> Any:
    """A field that is the flag of `extract` for a setting of slides, with its default and help."""
    field = DatasetOptions.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


OF_SLIDES = ("classes", "mpp", "min_labelled_px", "brush_um", "region_class", "outline_origin")
FORMATS = ("geojson", "review", "overlay")


@dataclass(frozen=True)
class RefineConfig:
    """How slides are segmented again after their outlines have changed; each field is a flag.

    How a store's features were made is taken from the store. Of the settings of slides, None or () is the store's own,
    of a new store the default of `extract`; a store does not record `classes` and `min_labelled_px`. t: None for that
    of the store, of a new one 50. fresh: whether the head starts from random weights, not from the last run.

    Raises ValueError, naming setting, rule and value, for a setting out of range.
    """

    model: str = _flag(DEFAULT_MODEL, "The model, as for extract.")
    t: int | None = _flag(None, "Timestep of the features.  [default: that of the store, of a new one 50]")
    blocks: tuple[int, ...] | Literal["all", "last"] = _flag(
        (4, 5, 6), "Blocks of the features, as for extract and train-head.", flag_default="4-6"
    )
    classes: tuple[str, ...] = _of_slides("classes")
    mpp: float | None = _of_slides("mpp")
    min_labelled_px: int | None = _of_slides("min_labelled_px")
    brush_um: float | None = _of_slides("brush_um")
    region_class: str | None = _of_slides("region_class")
    outline_origin: Literal["bounds", "file"] | None = _of_slides("outline_origin")
    head_type: Literal["linear", "fcn", "scalar-mix"] = _flag("linear", "As for train-head.", flag="--head")
    lr: float = _flag(1e-2, "Learning rate of the head.")
    epochs: int = _flag(10, "Passes over the windows with labels.")
    fresh: bool = _flag(False, "Start from random weights, not from the last run of this command.")
    formats: tuple[str, ...] = _flag(FORMATS, "As for predict.", flag="--format", shown=",".join(FORMATS))

    def __post_init__(self) -> None:
        check_options("slides", DatasetOptions(**self.of_slides))
        HeadConfig(head_type=self.head_type, lr=self.lr, epochs=self.epochs)
        PredictConfig(formats=self.formats)
        if self.t is not None and self.t < 0:
            raise ValueError(f"t must be 0 or more, got {self.t}")

    @property
    def of_slides(self) -> dict[str, Any]:
        """Those settings of slides that are given, by the names of DatasetOptions."""
        given = {name: getattr(self, name) for name in OF_SLIDES}
        return {name: value for name, value in given.items() if value not in (None, ())}
