"""Every number of a run of stage one and its reason."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from pathseg.store.blocks import BLOCKS
from pathseg.store.format.packing import PACKINGS
from pathseg.store.key import BATCH_SIZE, LAYOUTS


def _flag(default: Any, help: str) -> Any:
    """A field that is also a flag of `extract`, with its help."""
    return dataclasses.field(default=default, metadata={"help": help})


Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ExtractConfig:
    """What to compute and how to keep it; each field is a flag."""

    t: tuple[int, ...] = _flag((50,), "Timestep of the noise, 0-based, or a comma list; the paper's default is 50.")
    blocks: tuple[int, ...] = _flag(BLOCKS, "Blocks to keep: 4-6, 0,4-6 or all; 0 = middle, 1-12 = upsampling.")
    layout: Literal["grid", "native", "image"] = _flag("grid", "; ".join(f"{k}: {v}" for k, v in LAYOUTS.items()) + ".")
    dtype: Literal["float16", "float32"] = _flag("float16", "Stored type.")
    packing: Literal["none", "lossless", "rounded"] = _flag(
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

    def __post_init__(self) -> None:
        if not self.t or len(set(self.t)) != len(self.t):
            raise ValueError(f"timesteps must be one or more different numbers, got {self.t}")
        if self.seed < 0 or min(self.t) < 0:
            raise ValueError(f"seed and timesteps must be 0 or more, got seed {self.seed}, t {self.t}")
        if self.batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {self.batch_size}")
