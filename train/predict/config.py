"""Every number of a prediction and its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import click

from pathseg.store.runtime.flags import PATH, Parsed, flags_of

FORMATS = {
    "mask": "class codes: PNG of the image's size; of a slide a pyramidal tiled TIFF at the head's um/px",
    "overlay": "classes painted over the tissue, JPEG",
    "geojson": "objects as polygons for QuPath",
    "probabilities": "of each class at the head's um/px, Zarr (K, H, W)",
}
DEFAULT_FORMATS = ("mask", "overlay", "geojson")
NOT_COMPUTED = 255  # code of glass in a mask whose classes have no background


def _flag(default: Any, help: str) -> Any:
    """A field that is also a flag of `predict`, with its help."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class PredictConfig:
    """How a head is led over a picture and what becomes of its answer; each field is a flag."""

    overlap: int = _flag(64, "px that neighbouring windows share at least; blended there, so that no seams show.")
    tissue: Literal["otsu", "all"] = _flag("otsu", "otsu: leave out the glass of slides; all: compute everything.")
    smallest: int = _flag(
        100, "px of the smallest object in geojson; at 0.5 um/px 100 are 25 um2, less than a nucleus."
    )
    simplify: float = _flag(
        2.0, "px that an outline in geojson may leave the border of its object by; 0: every corner."
    )
    outline: int = _flag(8192, "px of the longest side that outlines are taken from; larger masks are thinned to it.")
    batch_size: int = _flag(9, "Patches a forward pass; 9 = one 768 px window.")

    def __post_init__(self) -> None:
        rules = {
            "overlap": (self.overlap >= 1, "must be at least 1 px"),
            "smallest": (self.smallest >= 0, "must be 0 px or more"),
            "simplify": (0 <= self.simplify < 1000, "must be 0 to 1000 px"),
            "outline": (self.outline >= 256, "must be at least 256 px"),
            "batch_size": (self.batch_size >= 1, "must be at least 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} {rule}, got {getattr(self, name)}")


def parse_formats(text: str) -> tuple[str, ...]:
    """`mask,geojson` -> ("mask", "geojson"), in the order of FORMATS. Raises ValueError for an unknown one."""
    wanted = [part.strip() for part in text.split(",")]
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise ValueError(f"{unknown[0]!r} is no format; choose from {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in wanted)


_RESOLUTION = click.FloatRange(min=0, min_open=True)
_OPTIONS = (
    click.option("--run", required=True, help="A run of the workspace, or the folder of one."),
    click.option("--out", type=PATH, required=True, help="Folder of the results: <format>/<image>.<suffix>."),
    click.option(
        "--format",
        "formats",
        type=Parsed("name[,name…]", parse_formats),
        default=",".join(DEFAULT_FORMATS),
        help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()) + ".",
    ),
    click.option("--truth", type=PATH, help="Folder of masks named after the images: score by them."),
    click.option("--mpp", type=_RESOLUTION, help="um/px of the images, in place of what slides say."),
    click.option("--trained-mpp", type=_RESOLUTION, help="um/px the head was trained at, if its run does not say."),
    click.option("--model", help="Folder of the model that the head was trained with.  [default: by its name]"),
    click.option("--hipt", type=PATH, help="HIPT's vit256_small_dino.pth, if it does not lie beside the model."),
    flags_of(PredictConfig),
)


def predict_options(command: Callable) -> Callable:
    """All flags of `predict` but those that every command has."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
