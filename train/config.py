"""Every number of a head's training run and its reason."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from pathseg.store.blocks import BLOCKS, format_blocks
from pathseg.store.key import StoreKey

HEAD_KINDS = ("fcn", "linear")
CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True)
class HeadConfig:
    """One head: what it reads, how it learns. Written to `config.json` and read back equal."""

    t: int = 50  # timestep, 0-based; the paper's default (its Figure 4 is best early in the middle)
    blocks: tuple[int, ...] = BLOCKS  # all 13: the paper's best; 4-6 are its best single blocks (Figure 5)
    head: Literal["fcn", "linear"] = "fcn"
    lr: float = 1e-4  # Adam; the paper's (its Table 5 compares 1e-3, 1e-4, 1e-5)
    epochs: int = 30  # the paper states none; validation keeps the best one
    batch_size: int = 1  # images a step; one 768 px image is nine patches
    val_fraction: float = 0.15  # of the training images, held out by seed, when the store has no `val` split
    class_weights: Literal["none", "balanced"] = "none"  # balanced: 1 - N_c / N (the paper's, for BCSS)
    seed: int = 0  # head initialisation, order of images, choice of validation images

    def __post_init__(self) -> None:
        rules = {
            "blocks": (bool(self.blocks), "name at least one block"),
            "lr": (self.lr > 0, "must be above 0"),
            "epochs": (self.epochs >= 1, "must be at least 1"),
            "batch_size": (self.batch_size >= 1, "must be at least 1"),
            "val_fraction": (0 < self.val_fraction < 1, "must lie between 0 and 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} {rule}, got {getattr(self, name)}")

    def run_name(self, key: StoreKey) -> str:
        """A name that tells runs of one workspace apart: data set, model and every setting that is not the default."""
        parts = [key.dataset, key.model, f"t{self.t}", f"b{format_blocks(self.blocks)}", self.head, f"lr{self.lr:g}"]
        if key.condition == "none":
            parts.insert(2, "uncond")
        odd = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("t", "blocks", "head", "lr", "seed") and getattr(self, f.name) != f.default
        }
        return "-".join([*parts, *(f"{name.replace('_', '')}{value}" for name, value in odd.items()), f"s{self.seed}"])

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeadConfig:
        """The inverse of `dataclasses.asdict`, lists as JSON has them. Raises ValueError on an unknown key."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"unknown setting {unknown[0]!r} in a head's configuration; known: {', '.join(sorted(known))}"
            )
        return cls(**{**values, "blocks": tuple(values.get("blocks", BLOCKS))})
