"""The settings of a prediction and their reasons."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

FORMATS = {
    "mask": "class codes: PNG of the image's size; of a slide a pyramid at the head's um/px",
    "overlay": "classes painted over the tissue, JPEG",
    "geojson": "objects as polygons for QuPath",
    "review": "the regions of 256 px a side to annotate next, those with the least certain predictions, for QuPath",
    "probabilities": "of each class at the head's um/px, Zarr (K, H, W)",
}
DEFAULT_FORMATS = ("mask", "overlay", "geojson")


def _flag(default: Any, help: str, **more: Any) -> Any:
    """A field that is also a flag of `pathseg predict`, with its help."""
    return dataclasses.field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class PredictConfig:
    """How windows are laid over an image and which files are written of it; each field is a flag.

    Raises ValueError, naming setting, rule and value, for a setting out of range.
    """

    formats: tuple[str, ...] = _flag(
        DEFAULT_FORMATS,
        "; ".join(f"{name}: {content}" for name, content in FORMATS.items()) + ".",
        flag="--format",
        shown=",".join(DEFAULT_FORMATS),
    )
    pyramid: Literal["tiff", "ome-zarr"] = _flag(
        "tiff",
        "Masks of slides. tiff: pyramidal tiled TIFF; ome-zarr: OME-Zarr 0.5 labels with class names and colours.",
    )
    overlap: int = _flag(64, "px that neighbouring windows share at least; blended there, so that no seams show.")
    tissue: Literal["otsu", "all"] = _flag(
        "otsu", "otsu: leave out the background of slides where there is no tissue; all: compute everything."
    )
    objects: Literal["tuned", "raw"] = _flag(
        "tuned",
        "Objects in geojson. tuned: dropped by size and filled as train-head chose on its validation images, if it "
        "did; raw: as predicted. Masks and overlays are always as predicted.",
    )
    objects_as: Literal["annotations", "detections", "tiles"] = _flag(
        "annotations",
        "What objects in geojson are in QuPath. annotations can be edited; detections and tiles stay quick to draw "
        "where there are very many, and are no outlines for another training.",
    )
    smallest: int = _flag(
        100, "px of the smallest object in geojson; at 0.5 um/px 100 are 25 um2, less than a nucleus."
    )
    simplify: float = _flag(
        2.0, "px that an outline in geojson may leave the border of its object by; 0: every corner."
    )
    outline: int = _flag(8192, "px of the longest side that outlines are taken from; larger masks are thinned to it.")
    outline_origin: Literal["bounds", "file"] = _flag(
        "bounds",
        "What px in geojson and review are counted from: the bounds of what was scanned, where a slide states any, as "
        "QuPath does; or the first px of the file.",
    )
    regions: int = _flag(20, "Number of regions in review.")
    batch_size: int | None = _flag(
        None,
        "Patches a forward pass; another number than in training changes the last bits of the features.  "
        "[default: that of the run's store, which is 1 where a CPU began it: more are faster on a GPU]",
    )

    def __post_init__(self) -> None:
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ValueError(f"{unknown[0]!r} is no format; choose from {', '.join(FORMATS)}")
        rules = {
            "formats": (bool(self.formats), "must name at least one"),
            "overlap": (self.overlap >= 1, "must be at least 1 px"),
            "smallest": (self.smallest >= 0, "must be 0 px or more"),
            "simplify": (0 <= self.simplify < 1000, "must be 0 to 1000 px"),
            "outline": (self.outline >= 256, "must be at least 256 px"),
            "regions": (self.regions >= 1, "must be at least 1"),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "must be at least 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} {rule}, got {getattr(self, name)}")

    @property
    def needs_confidence(self) -> bool:
        """Whether a format says how sure its predictions are."""
        return not {"geojson", "review"}.isdisjoint(self.formats)
