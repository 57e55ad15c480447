"""Every number of a run of stage one and its reason."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pathseg.extract.datasets.registry import DatasetOptions, check_options
from pathseg.extract.models.registry import DEFAULT_MODEL, TIMM
from pathseg.store.format.packing import PACKINGS
from pathseg.store.key import LAYOUTS, StoreKey, ViTSettings


def _flag(default: Any, help: str, **more: Any) -> Any:
    """A field that is also a flag of `extract` or `refine`, with its help."""
    return dataclasses.field(default=default, metadata={"help": help, **more})


def _of_slides(name: str) -> Any:
    """A field that is the flag of `extract` for a setting of slides, with its default and help."""
    field = DatasetOptions.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


WEIGHTS_HELP = "File of weights of --model timm:NAME."
CONTEXT_HELP = "File that holds the context tokens of a diffusers pipeline, one tensor."
HIPT_HELP = (
    "HIPT's vit256_small_dino.pth, if it does not lie beside the model; of ZoomLDM the folder of UNI (config.json with "
    "its weights)."
)
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ExtractConfig:
    """What to compute and how to keep it; each field is a flag."""

    t: tuple[int, ...] = _flag((50,), "Timestep of the noise, 0-based, or a comma list; the paper's default is 50.")
    blocks: tuple[int, ...] | Literal["all", "last"] | None = _flag(
        None,
        "Blocks to keep: 4-6, 0,4-6, last or all. Of a diffusion model 0 = middle, 1-12 = upsampling; of a ViT k = "
        "output of layer k, from 0.  [default: all; of a timm model four evenly spaced ones with the last]",
    )
    layout: Literal["grid", "native", "image"] = _flag("grid", "; ".join(f"{k}: {v}" for k, v in LAYOUTS.items()) + ".")
    dtype: Literal["float16", "float32"] = _flag("float16", "Type of the values.")
    packing: Literal["none", "lossless", "rounded", "int8"] = _flag(
        "none", "; ".join(f"{k}: {v.summary}" for k, v in PACKINGS.items()) + "."
    )
    precision: Literal["float32", "bfloat16", "float16"] = _flag(
        "float32",
        "Arithmetic of the forward pass; the halves pay on a GPU, bfloat16 on a CPU with units for it too. Part of the "
        "store's key.",
    )
    seed: int = _flag(0, "Of the noise and of generated tissue.")
    batch_size: int | None = _flag(
        None,
        "Patches a forward pass, never across images. It changes the last bits of the features: part of the store's "
        "key.  [default: that of the store; of a new one 1 for a diffusion model in float32 on a CPU, otherwise 9]",
    )

    surroundings: int = _flag(
        1,
        "Show the model each 256 px patch in a field so many patches wide, shrunk to 256 px, and keep the cells on the "
        "patch: features of a coarser magnification, to be joined with others. 2 or 4; beyond an image lies the "
        "tissue of its slide (slides) or region (bcss), beyond the edges of a region or image file its mirror image. "
        "1: the patch alone.",
    )

    def __post_init__(self) -> None:
        if self.surroundings not in (1, 2, 4):
            raise ValueError(f"surroundings must be 1 (the patch alone), 2 or 4 patches wide, got {self.surroundings}")
        if not self.t or len(set(self.t)) != len(self.t):
            raise ValueError(f"timesteps must be one or more different numbers, got {self.t}")
        if self.seed < 0 or min(self.t) < 0:
            raise ValueError(f"seed and timesteps must be 0 or more, got seed {self.seed}, t {self.t}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {self.batch_size}")

    def following(self, key: StoreKey) -> Self:
        """Return this configuration with the batch size of an existing store, unless it names one itself."""
        return self if self.batch_size is not None else dataclasses.replace(self, batch_size=key.batch_size)

    @classmethod
    def of_key(
        cls, key: StoreKey, t: tuple[int, ...], blocks: tuple[int, ...] | Literal["all", "last"] | None = None
    ) -> Self:
        """Return the configuration that adds features to a store with this key, whose batch size it follows."""
        names = ("layout", "dtype", "packing", "precision", "seed")
        kept = {name: getattr(key, name) for name in names}
        return cls(t=t, blocks=blocks, surroundings=key.field_patches, **kept)


@dataclass(frozen=True)
class ViTConfig:
    """How a timm model is built and fed, where its file is not to decide; each field is a flag.

    mean, std, input_px: None for those of the file, and for the largest multiple of the model's patch up to 256 px.
    norm: None for `final`.
    """

    mean: tuple[float, float, float] | None = _flag(
        None, "Of RGB in 0..1, if the file of a timm model is wrong: r,g,b."
    )
    std: tuple[float, float, float] | None = _flag(None, "Of RGB in 0..1, likewise: r,g,b.")
    input_px: int | None = _flag(
        None,
        "Side that a timm model gets each 256 px patch resized to, bicubic.  [default: 256, or the multiple of the "
        "model's patch below it: 252 for 14 px]",
    )
    norm: Literal["final", "none"] | None = _flag(
        None,
        "final: the last norm of a timm model is applied to every block; none: the layers' outputs as they are.  "
        "[default: final]",
    )
    model_args: tuple[str, ...] = _flag(
        (), "Arguments of a timm architecture that replace those of its file: mlp_layer=SwiGLUPacked,act_layer=silu."
    )

    def __post_init__(self) -> None:
        for name, least in (("mean", -math.inf), ("std", 0.0)):
            values = getattr(self, name)
            if values is not None and not (len(values) == 3 and all(least < value < math.inf for value in values)):
                above = " above 0" if name == "std" else ""
                raise ValueError(f"{name} must be three numbers{above}, one for each of R, G and B, got {values}")
        if self.input_px is not None and self.input_px < 1:
            raise ValueError(f"input px must be at least 1, got {self.input_px}")
        if wrong := [text for text in self.model_args if not text.partition("=")[0].isidentifier() or "=" not in text]:
            raise ValueError(f"{wrong[0]!r} is no argument of a model; write name=value")

    @classmethod
    def from_settings(cls, settings: ViTSettings) -> ViTConfig:
        """Return the configuration that builds and feeds a model as these settings say, whatever its file says."""
        arguments = tuple(f"{name}={json.dumps(value)}" for name, value in settings.model_args.items())
        return cls(settings.mean, settings.std, settings.input_px, settings.norm, arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        """Return `model_args` by name: JSON where the value is JSON, otherwise text."""
        return {name: _json_or_text(value) for name, _, value in (text.partition("=") for text in self.model_args)}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class SlideStoreConfig:
    """How `refine` keeps a store of slides, where the store does not say it already; each field is a flag.

    weights, hipt, context: files of the model, read where features are computed. windows: None for those that the store
    follows (`stored_windows`), of a new store "tissue". How a store's features were made is taken from the store. Of
    the settings of slides, None or () is the store's own, of a new store the default of `extract`; a store does not
    record `classes` and `min_labelled_px`. t: None for that of the store, of a new one 50.

    Raises ValueError, naming setting, rule and value, for a setting out of range.
    """

    model: str = _flag(DEFAULT_MODEL, "The model, as for extract.")
    weights: Path | None = _flag(None, WEIGHTS_HELP)  # noqa: RUF009 (a Path is immutable)
    hipt: Path | None = _flag(None, HIPT_HELP)  # noqa: RUF009 (a Path is immutable)
    context: Path | None = _flag(None, f"{CONTEXT_HELP}  [default: zeros]")  # noqa: RUF009 (a Path is immutable)
    t: int | None = _flag(None, "Timestep of the features.  [default: that of the store, of a new one 50]")
    blocks: tuple[int, ...] | Literal["all", "last"] = _flag(
        (4, 5, 6), "Blocks of the features, as for extract and train-head.", flag_default="4-6"
    )
    windows: Literal["tissue", "all"] | None = _flag(
        None,
        "Windows whose features are kept, as for extract. all: every window, for stains that the tissue rule, made for "
        "H&E, does not fit.  [default: as the store was made, of a new one tissue]",
    )
    classes: tuple[str, ...] = _of_slides("classes")
    mpp: float | None = _of_slides("mpp")
    min_labelled_px: int | None = _of_slides("min_labelled_px")
    brush_um: float | None = _of_slides("brush_um")
    region_class: str | None = _of_slides("region_class")
    outline_origin: Literal["bounds", "file"] | None = _of_slides("outline_origin")

    def __post_init__(self) -> None:
        check_options("slides", DatasetOptions(**self.of_slides))
        if self.weights is not None and not self.model.startswith(TIMM):
            raise ValueError(f"--weights FILE and --model {TIMM}NAME belong together, got the model {self.model}")
        if self.t is not None and self.t < 0:
            raise ValueError(f"t must be 0 or more, got {self.t}")

    @property
    def of_slides(self) -> dict[str, Any]:
        """Those settings of slides that are given, by the names of DatasetOptions."""
        names = ("classes", "mpp", "min_labelled_px", "brush_um", "region_class", "outline_origin")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value not in (None, ())}
