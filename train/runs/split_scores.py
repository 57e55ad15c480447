"""The scores of one test part of a finished run, as its metrics.json says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pathseg.train.metrics.object import ObjectScores, ObjectSums
from pathseg.train.metrics.pixel import Scores


@dataclass(frozen=True)
class PartScores:
    """The scores of one test split: all its images pooled, each image alone, and always answering one class.

    matrices: confusion matrices (K, K) by image, objects: object scores by image; both are empty where the run did
    not record them, objects also where the data set has none. `rules` is what metrics.json says of the objects,
    sources the slide or region of each image that was cut from one, as far as the run recorded it; uncertainty, in
    nats, is that of the images of a head that says how unsure it is.
    """

    images: int
    scores: Scores
    constant_class: str
    constant: Scores
    per_image: dict[str, Scores]
    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    objects: dict[str, ObjectSums] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    uncertainty: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PartScores:
        """One entry of `splits` in metrics.json, which `expected.METRICS` has been checked against."""
        each = values["per_image"]
        return cls(
            images=values["images"],
            scores=Scores.from_dict(values["scores"]),
            constant_class=values["constant"]["class"],
            constant=Scores.from_dict(values["constant"]["scores"]),
            per_image={one["id"]: Scores.from_dict(one["scores"]) for one in each},
            matrices={one["id"]: np.array(one["confusion"]) for one in each if "confusion" in one},
            objects={one["id"]: ObjectSums(**one["objects"]["sums"]) for one in each if "objects" in one},
            rules=values.get("objects", {}),
            sources={one["id"]: one["source"] for one in each if "source" in one},
            uncertainty={one["id"]: one["uncertainty"] for one in each if one.get("uncertainty") is not None},
        )

    @property
    def matrix(self) -> np.ndarray | None:
        """The confusion matrix (K, K) of all images, rows truth; None where the run did not record it."""
        whole = len(self.matrices) == self.images > 0
        return sum(self.matrices.values()) if whole else None

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The images of each slide or region together, in a fixed order; one without a source is its own."""
        found: dict[tuple[str, str], list[str]] = {}
        for name in sorted(self.per_image):
            key = ("source", self.sources[name]) if name in self.sources else ("image", name)
            found.setdefault(key, []).append(name)
        return tuple(tuple(found[key]) for key in sorted(found))

    @property
    def by_region(self) -> bool:
        """Whether several images are of one slide or region, so that these and not the images are independent."""
        return len(self.groups) < len(self.per_image)

    @property
    def pooled_objects(self) -> ObjectScores | None:
        """The object scores of all images pooled; None where there are none."""
        whole = len(self.objects) == self.images > 0
        return ObjectSums.total(self.objects.values()).scores() if whole else None

    @property
    def rules_text(self) -> str:
        """How predicted objects were counted, in words; empty where nothing is said of it."""
        if not self.rules:
            return ""
        least = self.rules["min_object_px"]
        return f"{self.rules['connectivity']}-connected, of {f'at least {least} px' if least else 'any size'}"
