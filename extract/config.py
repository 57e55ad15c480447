"""Every number of a run of stage one and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pathseg.store.blocks import BLOCKS

DEFAULT_MODEL = "brca-hipt-20x"  # the paper's; a row of catalogue.MODELS


@dataclass(frozen=True)
class ExtractConfig:
    """What to compute and how to keep it."""

    t: tuple[int, ...] = (50,)  # timesteps, 0-based; the paper's default
    blocks: tuple[int, ...] = BLOCKS  # all 13, so that stage two can choose
    layout: Literal["grid", "native", "image"] = "grid"  # what the head reads without further work
    dtype: Literal["float16", "float32"] = "float16"  # rounding far below the features' own noise
    seed: int = 0  # of the noise
    batch_size: int = 9  # patches a forward pass: one 768 px image; never across images

    def __post_init__(self) -> None:
        if not self.t or len(set(self.t)) != len(self.t):
            raise ValueError(f"timesteps must be one or more different numbers, got {self.t}")
        if self.batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {self.batch_size}")
