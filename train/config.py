"""Every number of a head's training run and its reason."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from pathseg.store.blocks import BLOCKS, format_blocks
from pathseg.store.key import StoreKey


def _flag(default: Any, help: str) -> Any:
    """A field that is also a flag of `train-head`, with its help."""
    return dataclasses.field(default=default, metadata={"help": help})


def _sweep(default: Any, help: str) -> Any:
    """A field whose flag takes a comma list: every combination of such lists is trained."""
    return dataclasses.field(default=default, metadata={"help": help, "sweep": True})


@dataclass(frozen=True)
class HeadConfig:
    """One head: what it reads, how it learns. Written to `config.json` and read back equal; each field is a flag."""

    t: int = _sweep(50, "Timestep of the features; the paper's default is 50. A comma list trains one head for each.")
    blocks: tuple[int, ...] = _sweep(BLOCKS, "4-6, 0,4-6 or all: a head on these; each: a head on every block alone.")
    head: Literal["fcn", "linear"] = _flag("fcn", "fcn: the paper's head; linear: a probe, one 1x1 convolution.")
    lr: float = _sweep(1e-4, "Learning rate of Adam, or a comma list; the paper's Table 5 has 1e-3, 1e-4, 1e-5.")
    epochs: int = _flag(20, "Passes over the training images; the best one on the validation images is kept.")
    patience: int = _flag(0, "Stop a head after this many epochs without a better validation Dice; 0: never.")
    batch_size: int = _flag(1, "Images a step; one 768 px image is nine patches.")
    augment: Literal["none", "flips"] = _flag("none", "flips: random flips and quarter turns of features and mask.")
    class_weights: Literal["none", "balanced"] = _flag("none", "balanced: 1 - N_c / N, the paper's weights for BCSS.")
    precision: Literal["float32", "bfloat16"] = _flag("float32", "Arithmetic of the head; bfloat16 is mixed precision.")
    val_fraction: float = _flag(0.15, "Share of the training images held out for validation, if there is no val split.")
    seed: int = _sweep(0, "Of the head's first weights and its flips, or a comma list.")
    split_seed: int = _flag(0, "Of the choice of validation images and the order of the training images.")
    connectivity: Literal["8", "4"] = _flag("8", "Object scores: 8 joins pixels that touch at a corner, 4 does not.")
    min_object_px: int = _flag(0, "Object scores: drop predicted objects under so many px of the original image.")

    def __post_init__(self) -> None:
        rules = {
            "blocks": (bool(self.blocks), "name at least one block"),
            "lr": (0 < self.lr < math.inf, "must be above 0"),
            "seed": (self.seed >= 0, "must be 0 or more"),
            "split_seed": (self.split_seed >= 0, "must be 0 or more"),
            "epochs": (self.epochs >= 1, "must be at least 1"),
            "patience": (self.patience >= 0, "must be 0 or more epochs"),
            "batch_size": (self.batch_size >= 1, "must be at least 1"),
            "val_fraction": (0 < self.val_fraction < 1, "must lie between 0 and 1"),
            "min_object_px": (self.min_object_px >= 0, "must be 0 px or more"),
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
