"""Everything that changes a number in a store, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from pathseg.store.errors import KeyMismatch, StoreError
from pathseg.store.grid import PATCH_PX

Layout = Literal["grid", "native", "image"]
LAYOUTS: dict[str, str] = {
    "grid": "upsampled to the head's grid, 64 cells per 256 px patch",
    "native": "as the model gives them, each block at its own resolution",
    "image": "upsampled to pixels, 256 cells per patch (eq. 4 of the paper to the letter)",
}
DTYPES = ("float16", "float32")
NOISE_RULE = "sha256(seed/image/patch/t)"  # the rule that INTERFACE fixes; its name changes if the rule ever does


@dataclass(frozen=True)
class StoreKey:
    """What made the features. Timesteps and blocks are not in it: a store can gain more of both later."""

    dataset: str
    preprocessing: str  # everything done to the pixels, in words
    size: tuple[int, int]  # height and width of an image in px
    mpp: float | None  # um/px
    model: str
    model_digest: str  # sha-256 over all weights in use
    first_stage: str | None  # vq-f4, kl-f8; None where the model has none
    condition: str  # ssl or none
    seed: int  # of the noise
    layout: str
    dtype: str
    patch_px: int = PATCH_PX
    noise: str = NOISE_RULE
    precision: str = "float32"  # arithmetic of the forward pass
    packing: str = "none"  # a row of codec.PACKINGS; rounding changes numbers

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "size": list(self.size)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StoreKey:
        """The inverse of `to_dict`; a field that an older release did not have takes its default.

        Raises StoreError on an unknown field or one that is missing and has no default.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        if odd := sorted((set(values) - set(fields)) | (needed - set(values))):
            raise StoreError(
                f"the store's key has other fields than this pathseg knows ({', '.join(odd)}); upgrade pathseg"
            )
        return cls(**{**values, "size": tuple(values["size"])})

    @property
    def digest(self) -> str:
        """64 hex digits that stand for the whole key."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def require(self, wanted: StoreKey, *, store: str) -> None:
        """Raise KeyMismatch, naming both values of each differing field, unless `wanted` is this key."""
        here, there = self.to_dict(), wanted.to_dict()
        differing = [
            f"{name} is {here[name]!r} there, {there[name]!r} asked for" for name in here if here[name] != there[name]
        ]
        if differing:
            raise KeyMismatch(
                f"{store} holds features made in another way: {'; '.join(differing)}; "
                f"pass --store or --workspace for a new store"
            )
