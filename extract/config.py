"""Every number of a run of stage one and its reason."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from pathseg.store.format.packing import PACKINGS
from pathseg.store.key import BATCH_SIZE, LAYOUTS, StoreKey, ViTSettings


def _flag(default: Any, help: str) -> Any:
    """A field that is also a flag of `extract`, with its help."""
    return dataclasses.field(default=default, metadata={"help": help})


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
    batch_size: int = _flag(
        BATCH_SIZE,
        "Patches a forward pass, never across images; 9 = one 768 px image. It changes the last bits of the features: "
        "part of the store's key.",
    )

    surroundings: int = _flag(
        1,
        "Show the model each 256 px patch in a field so many patches wide, shrunk to 256 px, and keep the cells on the "
        "patch: features of a coarser magnification, to be joined with others. 2 or 4; beyond an image lies the "
        "tissue of its slide (slides) or region (bcss), else the image mirrored. 1: the patch alone.",
    )

    def __post_init__(self) -> None:
        if self.surroundings not in (1, 2, 4):
            raise ValueError(f"surroundings must be 1 (the patch alone), 2 or 4 patches wide, got {self.surroundings}")
        if not self.t or len(set(self.t)) != len(self.t):
            raise ValueError(f"timesteps must be one or more different numbers, got {self.t}")
        if self.seed < 0 or min(self.t) < 0:
            raise ValueError(f"seed and timesteps must be 0 or more, got seed {self.seed}, t {self.t}")
        if self.batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {self.batch_size}")

    @classmethod
    def of_key(
        cls, key: StoreKey, t: tuple[int, ...], blocks: tuple[int, ...] | Literal["all", "last"] | None = None
    ) -> Self:
        """Return the configuration that makes features of a store's key."""
        names = ("layout", "dtype", "packing", "precision", "seed", "batch_size")
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
