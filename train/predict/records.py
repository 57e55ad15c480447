"""The JSON files of a prediction as typed records: `_done/NAME.json`, `metrics.json`, a window cache's `about.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from pathseg.store.resolution import MppSource
from pathseg.store.runtime.json_records import decode_json, encode_json
from pathseg.train.metrics.object import ObjectRule
from pathseg.train.metrics.pixel import Scores
from pathseg.train.runs.record import Constant, ImageScores

Matrix = tuple[tuple[int, ...], ...]  # (K, K) pixels, rows = ground truth


class PredictionIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """All that the predicted probabilities of an image depend on, and the settings of its files where it has these.

    file, size_bytes, content_digest: name, bytes and digest of the image file. size: (H, W) px that it is predicted at,
    mpp: um/px there. run, weights_digest: name and hex SHA-256 of head.safetensors. model_digest: of the frozen model.
    features: unset where the model computed them for the prediction. packing: of the head's stores, as whose values
    computed features were rounded; unset for stored features and where packing changes no value. overlap: px that
    neighbouring windows share. smallest, simplify, outline: of `PredictConfig`, unset where no GeoJSON was written.
    objects: the post-processing of its objects in words, unset where they are as predicted. objects_as: of
    `PredictConfig`, unset for annotations. outline_origin: of `PredictConfig`, unset for bounds. regions: of
    `PredictConfig`, unset where no regions to review were written.
    """

    file: str
    size_bytes: int
    content_digest: str = msgspec.field(name="content")
    size: tuple[int, int]
    mpp: float | None
    run: str
    weights_digest: str = msgspec.field(name="head")
    model_digest: str = msgspec.field(name="model")
    features: Literal["stored"] | UnsetType = UNSET
    packing: str | UnsetType = UNSET
    overlap: int
    tissue: str
    smallest: int | UnsetType = UNSET
    simplify: float | UnsetType = UNSET
    outline: int | UnsetType = UNSET
    objects: str | UnsetType = UNSET
    objects_as: str | UnsetType = UNSET
    outline_origin: str | UnsetType = UNSET
    regions: int | UnsetType = UNSET

    def differences(self, wanted: PredictionIdentity) -> Iterator[tuple[str, Any, Any]]:
        """Yield name (as in the file), value here and wanted value of each field that is set in both and differs."""
        here, there = msgspec.to_builtins(self), msgspec.to_builtins(wanted)
        for values in (here, there):
            values.setdefault("features", "computed")
            values.setdefault("packing", "none")  # as of releases that did not round computed features
            if not {"outline", "regions"}.isdisjoint(values):
                values.setdefault("outline_origin", "bounds")
            if "outline" in values:
                values.setdefault("objects", str(ObjectRule()))
                values.setdefault("objects_as", "annotations")
        names = sorted(there, key=lambda name: name != "features")  # first: another overlap follows from it
        yield from ((name, here[name], there[name]) for name in names if here.get(name, there[name]) != there[name])

    def updated(self, newer: PredictionIdentity) -> PredictionIdentity:
        """Return the newer identity; where its settings of files are unset, those of this one are kept."""
        kept = {name: getattr(self, name) for name in FILE_SETTINGS if getattr(newer, name) is UNSET}
        return msgspec.structs.replace(newer, **kept)


FILE_SETTINGS = ("smallest", "simplify", "outline", "objects", "objects_as", "outline_origin", "regions")


class WindowCacheIdentity(PredictionIdentity, frozen=True, kw_only=True):
    """about.json of a window cache: what its windows depend on, and which windows it is for, in batches of which size.

    batch_size: patches per forward pass. windows: numbers of the windows, ascending.
    """

    batch_size: int
    windows: tuple[int, ...]

    @classmethod
    def of(cls, image: PredictionIdentity, *, batch_size: int, windows: tuple[int, ...]) -> WindowCacheIdentity:
        """Return the identity of a cache for these windows of an image."""
        values = {name: getattr(image, name) for name in PredictionIdentity.__struct_fields__}
        return cls(**values, batch_size=batch_size, windows=windows)

    def to_json(self) -> bytes:
        """Return the content of about.json."""
        return encode_json(self)

    @classmethod
    def from_json(cls, content: bytes, *, source: str) -> WindowCacheIdentity:
        """Read what `to_json` gave. Raises ValueError naming `source` and the field."""
        return decode_json(content, cls, source=source)


class ClassObjects(msgspec.Struct, frozen=True):
    """Number and area of a class's outlined objects; area in um2 where um/px is known, else in px of the file."""

    count: int
    area_um2: float | UnsetType = UNSET
    area_px: float | UnsetType = UNSET


class OutlinedObjects(msgspec.Struct, frozen=True):
    """The objects of a GeoJSON file by class name.

    mask_level: of the mosaic that they were outlined on, 0 = full resolution. tolerance_px: px at full resolution that
    an outline may leave the border of its object by.
    """

    mask_level: int = msgspec.field(name="of_mask_level")
    tolerance_px: float
    classes: dict[str, ClassObjects]


class PredictedImage(msgspec.Struct, frozen=True, kw_only=True):
    """`_done/NAME.json`, written once all files of an image are complete.

    formats: those written so far. ground_truth_digest: of the mask that it was scored by, None for no scores. file_px,
    size_px: (H, W) of the file and of the mosaic; mpp: um/px of the mosaic, mpp_axes: vertical and horizontal where an
    image was stretched. mpp_from: where the um/px of the file is from, `training` where that of the training images was
    assumed, in areas too; unset where um/px is unknown and by earlier releases.
    slide: whether it was read by region. windows of windows_total were computed.
    pixels: of the mosaic, by class name. confusion: (K, K) pixels, rows = ground truth. objects: unset without GeoJSON.
    """

    id: str
    identity: PredictionIdentity = msgspec.field(name="about")
    formats: tuple[str, ...]
    ground_truth_digest: str | None = msgspec.field(name="truth")
    file_px: tuple[int, int]
    size_px: tuple[int, int]
    mpp: float | None
    mpp_axes: tuple[float, float] | None = None
    mpp_from: MppSource | UnsetType = UNSET
    slide: bool = False
    windows: int
    windows_total: int = msgspec.field(name="windows_in_all")
    pixels: dict[str, int]
    confusion: Matrix | None
    objects: OutlinedObjects | UnsetType = UNSET

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return encode_json(self)

    @classmethod
    def from_json(cls, content: bytes, *, source: str) -> PredictedImage:
        """Read what `to_json` gave. Raises ValueError naming `source` and the field."""
        return decode_json(content, cls, source=source)


class PredictionMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """metrics.json of a prediction: pixel scores over the images that have a ground truth mask, and of each alone.

    images: how many have one. without_mask: ids of the others. constant: the scores of predicting one class everywhere.
    """

    run: str
    images: int
    without_mask: tuple[str, ...]
    scores: Scores
    confusion: Matrix
    constant: Constant
    per_image: tuple[ImageScores, ...]

    def to_json(self) -> bytes:
        """Return the content of metrics.json."""
        return encode_json(self)

    @classmethod
    def from_json(cls, content: bytes, *, source: str) -> PredictionMetrics:
        """Read what `to_json` gave. Raises ValueError naming `source` and the field."""
        return decode_json(content, cls, source=source)
