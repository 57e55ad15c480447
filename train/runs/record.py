"""The files of a run folder as typed records: config.json, history.jsonl and metrics.json.

Whoever writes or reads one of these files uses the records here. Files that release 0.1.0 wrote are read too: its
config.json called the settings `head`, told a baseline by its settings and held the preprocessing as a sentence. Format
2 knew a single store, whose fields stood among those of `data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from pathseg.store.classes import background_code
from pathseg.store.errors import StoreError
from pathseg.store.key import StoreKey
from pathseg.store.runtime.json_records import convert_json, decode_json, encode_json, encode_json_line
from pathseg.store.sampling import Sampling
from pathseg.train.config import IMAGE, BaselineConfig, Config, HeadConfig, Layer
from pathseg.train.metrics.object import ObjectRule, ObjectScores, ObjectSums
from pathseg.train.metrics.pixel import Scores

FORMAT = 3  # of config.json; 0.1.0 wrote none
METRICS_FORMAT = 2  # of metrics.json; 0.1.0 wrote none, and the F1 of means as F1
Kind = Literal["head", "baseline"]
SETTINGS: Mapping[Kind, type] = {"head": HeadConfig, "baseline": BaselineConfig}
Code = Annotated[int, msgspec.Meta(ge=0, le=255)]  # of a mask, as in a store
Colour = Annotated[str, msgspec.Meta(pattern="^#[0-9A-F]{6}$")]
Channels = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Pixels = Annotated[int, msgspec.Meta(ge=0, le=10**15)]  # sums of many stay within int64
TRAIN_AGAIN = "delete the run folder and train it again"


@contextmanager
def _way_out() -> Iterator[None]:
    """Append the way out to the ValueError of a damaged file."""
    try:
        yield
    except ValueError as e:
        raise ValueError(f"{e}; {TRAIN_AGAIN}") from e


@dataclass(frozen=True)
class Source:
    """One of the joined stores that a run read, or its only one.

    store: path or URL. digest: of the store's description and pixels, as `FeatureStore.digest` gives it. key: what made
    the features. model_trained: whether the frozen model has learned anything. channels: of each block that the head
    reads, empty for a baseline.
    """

    store: str
    digest: str
    key: StoreKey
    model_trained: bool
    channels: dict[int, Channels]


@dataclass(frozen=True)
class SeenImages:
    """Images that weights were trained and validated on.

    train, val: ids. train_sources, val_sources: the patients, slides or regions of those that have one. Each sorted.
    """

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    train_sources: tuple[str, ...] = ()
    val_sources: tuple[str, ...] = ()

    def __or__(self, other: SeenImages) -> SeenImages:
        """Return the union."""
        return SeenImages(*(
            tuple(sorted({*getattr(self, name), *getattr(other, name)})) for name in SeenImages.__dataclass_fields__
        ))  # fmt: skip


@dataclass(frozen=True)
class RunData:
    """What a run was trained on.

    sources: the stores, in the order of the settings t and blocks; all hold the same images. background, ignore: codes
    in `classes`, None where there is none. test_split: the split that results are quoted on. images: ids of every
    split, held-out validation images under `val`. shared_sources: test split -> number of its sources (patients,
    slides) that training or validation images are of too; empty where there are none, and in runs of releases that did
    not count them. train_images: number of training images, of which each may have several views. patch_bytes: of the
    features that the head reads of one patch, as they are in memory; of a baseline 0. Both None in runs made before
    they were recorded. colours: `#RRGGBB` of each class, None of one without; empty where the store has none.
    image_sources: the patients, slides or regions of the images under `train` and `val`, of a split that has any; empty
    in runs that did not record them. ancestors: the images of the runs whose weights it started from, directly or
    through others; None of a run that started afresh, and of runs that did not record them.
    """

    sources: Annotated[tuple[Source, ...], msgspec.Meta(min_length=1)]
    classes: tuple[str, ...]
    background: Code | None
    ignore: Code | None
    sampling: Sampling
    test_split: str
    images: dict[str, tuple[str, ...]]
    shared_sources: dict[str, int] = field(default_factory=dict)
    train_images: int | None = None
    patch_bytes: int | None = None
    colours: tuple[Colour | None, ...] = ()
    image_sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ancestors: SeenImages | None = None

    @property
    def store(self) -> str:
        """Path or URL of the store that images and masks were read from."""
        return self.sources[0].store

    @property
    def digest(self) -> str:
        """The digests of all stores, joined by `+`."""
        return "+".join(source.digest for source in self.sources)

    @property
    def key(self) -> StoreKey:
        """The key of the first store: data set, size and preprocessing of the images are those of all stores."""
        return self.sources[0].key

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.key.dataset

    def channels(self, layer: Layer) -> int:
        """Return the channels of a layer; 3 of the image itself."""
        return 3 if layer == IMAGE else self.sources[layer.source].channels[layer.block]

    @property
    def size_text(self) -> str:
        """Width and height of the images, `512x256 px`."""
        height, width = self.key.size
        return f"{width}x{height} px"


@dataclass(frozen=True)
class RunConfig:
    """config.json: the settings of a run, the data it saw, its number of parameters, what ran and on which device."""

    settings: Config
    data: RunData
    parameters: int
    versions: dict[str, str]
    device: str

    @property
    def kind(self) -> Kind:
        """`head`: learned from features. `baseline`: learned from the images themselves."""
        return "baseline" if isinstance(self.settings, BaselineConfig) else "head"

    def to_json(self) -> bytes:
        """The content of config.json."""
        rest = {name: getattr(self, name) for name in ("settings", "data", "parameters", "versions", "device")}
        data = msgspec.to_builtins(self.data, str_keys=True)
        optional = ("image_sources", "ancestors")  # left out where unset, as in runs of earlier releases
        rest["data"] = {name: value for name, value in data.items() if value or name not in optional}
        return encode_json({"format": FORMAT, "kind": self.kind, **rest})

    @classmethod
    def from_json(cls, content: bytes, *, source: str) -> RunConfig:
        """The inverse of `to_json`; also reads what 0.1.0 wrote. Raises ValueError naming `source` and the field."""
        with _way_out():
            values = decode_json(content, dict, source=source)
            if "format" not in values:
                values = _from_format_1(values, source=source)
            form = convert_json(values, _Format, source=source).format
            if form == 2:
                values = _from_format_2(values, source=source)
        if form > FORMAT:
            raise ValueError(f"{source} has format {form}, this pathseg reads up to {FORMAT}; upgrade pathseg")
        with _way_out():
            file = convert_json(values, _ConfigFile, source=source)
            settings: Config = convert_json(file.settings, SETTINGS[file.kind], source=f"{source}: settings")
            _require_channels(settings, file.data, source=source)
        return cls(settings, file.data, file.parameters, file.versions, file.device)


def _require_channels(settings: Config, data: RunData, *, source: str) -> None:
    """Raise ValueError unless data has a store for each selection of the settings, with the channels of its blocks."""
    if settings.selections and len(settings.selections) != len(data.sources):
        raise ValueError(
            f"{source} is damaged: the head reads {len(settings.selections)} stores, data names {len(data.sources)}"
        )
    for selection, of_store in zip(settings.selections, data.sources, strict=False):
        if lacking := sorted(set(selection.blocks) - of_store.channels.keys()):
            raise ValueError(f"{source} is damaged: the head reads block {lacking[0]}, data has no channels of it")


class _Format(msgspec.Struct, frozen=True):
    format: int


class _ConfigFile(msgspec.Struct, frozen=True):
    kind: Kind
    settings: dict[str, Any]
    data: RunData
    parameters: int
    versions: dict[str, str] = {}
    device: str = "not recorded"


def _from_format_2(values: dict[str, Any], *, source: str) -> dict[str, Any]:
    """config.json of format 2, with its only store as the list of sources."""
    data = dict(convert_json(values, _ConfigFormat2, source=source).data)
    only = {name: data.pop(name) for name in Source.__dataclass_fields__ if name in data}
    return {**values, "format": FORMAT, "data": {**data, "sources": [only]}}


class _ConfigFormat2(msgspec.Struct, frozen=True):
    data: dict[str, Any]


def _from_format_1(values: dict[str, Any], *, source: str) -> dict[str, Any]:
    """config.json of 0.1.0 as format 2."""
    old = convert_json(values, _ConfigFormat1, source=source)
    kind: Kind = "baseline" if "weights" in old.head else "head"
    settings = {name: value for name, value in old.head.items() if name != "head"}
    settings["network" if kind == "baseline" else "head_type"] = old.head.get("head")
    try:
        key = StoreKey.from_json(old.data.features)
    except StoreError as e:
        raise ValueError(f"{source} is damaged: {e}") from e
    data = msgspec.to_builtins(old.data) | {
        "key": key.to_json(),
        "model_trained": (old.data.store_model or old.data.model).trained,
        "background": background_code(old.data.classes),
    }
    return {**values, "format": 2, "kind": kind, "settings": settings, "data": data}


class _ModelFormat1(msgspec.Struct, frozen=True):
    trained: bool


class _DataFormat1(msgspec.Struct, frozen=True):
    store: str
    features: dict[str, Any]
    model: _ModelFormat1
    classes: tuple[str, ...]
    ignore: int | None
    sampling: Sampling
    test_split: str
    images: dict[str, tuple[str, ...]]
    digest: str = ""
    channels: dict[str, int] = {}
    store_model: _ModelFormat1 | None = None  # of a baseline, whose `model` said "images"


class _ConfigFormat1(msgspec.Struct, frozen=True):
    head: dict[str, Any]
    data: _DataFormat1


class Epoch(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of history.jsonl: an epoch's mean losses, its scores on the validation images, its steps of Adam.

    seconds: trained so far. steps: None in runs of releases that did not record them.

    None where a value is not finite or not defined. val_f1 is the macro F1, which equals val_dice: 0.1.0 wrote the
    F1 of means under this name, so that it is not taken from the file.
    """

    epoch: int
    train_loss: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_dice: float | None = None
    val_miou: float | None = None
    val_f1: float | None = None
    seconds: float | None = None
    steps: int | None = None

    def to_json(self) -> bytes:
        """One line of history.jsonl, line end included."""
        return encode_json_line(self)

    @classmethod
    def from_json(cls, line: bytes, *, source: str) -> Epoch:
        """The inverse of `to_json`. Raises ValueError naming `source` and the field."""
        with _way_out():
            epoch = decode_json(line, cls, source=source)
        return epoch if epoch.val_f1 is None else msgspec.structs.replace(epoch, val_f1=epoch.val_dice)


class Constant(msgspec.Struct, frozen=True):
    """The scores of predicting one class everywhere: the class that is most frequent in the training pixels."""

    class_name: str = msgspec.field(name="class")
    scores: Scores


class ObjectTuning(msgspec.Struct, frozen=True):
    """The post-processing of predicted objects that was chosen on the validation images.

    images: number of validation images. f1, dice: pooled object F1 and Dice on them with the rule; f1_as_predicted,
    dice_as_predicted: with no object dropped and no hole filled.
    """

    rule: ObjectRule
    images: int
    f1: float
    dice: float
    f1_as_predicted: float
    dice_as_predicted: float


class ObjectSplitScores(msgspec.Struct, frozen=True, omit_defaults=True):
    """How predicted objects of a test split were counted, and the object scores of all its images.

    connectivity: `8` or `4`. min_object_px: predicted objects under so many px of the original image were dropped.
    resized: resampling that brought the predicted codes to the original size. pooled, mean: names of `ObjectScores`
    -> value over all objects of all images, and the mean of each image's own scores. hausdorff_left_out: images
    without a Hausdorff distance (objects on one side only). fill_holes: whether holes of predicted objects were filled
    before small ones were dropped.
    """

    connectivity: str
    min_object_px: int
    resized: str
    pooled: dict[str, float | None]
    mean: dict[str, float | None]
    hausdorff_left_out: int
    fill_holes: bool = False

    def __str__(self) -> str:
        return f"{self.connectivity}-connected, of {self.rule}"

    @property
    def rule(self) -> ObjectRule:
        """The post-processing of the predicted objects."""
        return ObjectRule(self.min_object_px, self.fill_holes)


class ImageObjects(msgspec.Struct, frozen=True):
    """The object scores of one image, and the sums that the scores of several images follow from."""

    tp: float
    fp: float
    fn: float
    f1: float
    dice: float
    hausdorff: float | None
    sums: ObjectSums

    @classmethod
    def of(cls, sums: ObjectSums) -> ImageObjects:
        """The record of an image with these sums."""
        return cls(**sums.scores()._asdict(), sums=sums)


class ImageScores(msgspec.Struct, frozen=True, omit_defaults=True):
    """The scores of one test image.

    confusion: (K, K) pixels, rows = ground truth. source: the slide or region it was cut from. uncertainty: mean of
    its most uncertain tenth of pixels, in nats, of a head that gives one. tuned_objects: with the post-processing that
    was chosen on validation images; objects: without. loss: mean cross-entropy of its pixels in nats, weighted as in
    training; None in runs that did not record it.
    """

    id: str
    scores: Scores
    confusion: tuple[tuple[Pixels, ...], ...]
    source: str | None = None
    objects: ImageObjects | None = None
    uncertainty: float | None = None
    tuned_objects: ImageObjects | None = None
    loss: float | None = None


class SplitScores(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    """The scores of one test split: all its images pooled, each image alone, and the constant prediction.

    objects is None where the data set has no object masks. tuned_objects: with the post-processing that was chosen on
    validation images, None where none was.
    """

    images: int
    scores: Scores
    confusion: tuple[tuple[Pixels, ...], ...]
    constant: Constant
    per_image: tuple[ImageScores, ...]
    objects: ObjectSplitScores | None = None
    tuned_objects: ObjectSplitScores | None = None

    @cached_property
    def matrix(self) -> np.ndarray:
        """The confusion matrix (K, K) int64 of all images, rows = ground truth."""
        return np.array(self.confusion, dtype=np.int64)

    @cached_property
    def by_image(self) -> dict[str, ImageScores]:
        """The scores of each image by its id."""
        return {image.id: image for image in self.per_image}

    @cached_property
    def matrices(self) -> dict[str, np.ndarray]:
        """The confusion matrix (K, K) int64 of each image by its id, rows = ground truth."""
        return {image.id: np.array(image.confusion, dtype=np.int64) for image in self.per_image}

    @cached_property
    def object_sums(self) -> dict[str, ObjectSums]:
        """The object sums of each image by its id; empty where there are none."""
        return {image.id: image.objects.sums for image in self.per_image if image.objects is not None}

    @cached_property
    def tuned_object_sums(self) -> dict[str, ObjectSums]:
        """The object sums of each image by its id with the chosen post-processing; empty where none was chosen."""
        return {image.id: image.tuned_objects.sums for image in self.per_image if image.tuned_objects is not None}

    @cached_property
    def pooled_objects(self) -> ObjectScores | None:
        """The object scores of all images pooled; None where there are none."""
        whole = len(self.object_sums) == self.images > 0
        return ObjectSums.total(self.object_sums.values()).scores() if whole else None

    @cached_property
    def pooled_tuned_objects(self) -> ObjectScores | None:
        """The same with the chosen post-processing; None where none was chosen."""
        whole = len(self.tuned_object_sums) == self.images > 0
        return ObjectSums.total(self.tuned_object_sums.values()).scores() if whole else None

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The ids of each slide's or region's images together, in a fixed order; an image without a source is alone."""
        found: dict[tuple[str, str], list[str]] = {}
        for image in sorted(self.per_image, key=lambda one: one.id):
            key = ("image", image.id) if image.source is None else ("source", image.source)
            found.setdefault(key, []).append(image.id)
        return tuple(tuple(found[key]) for key in sorted(found))

    @property
    def by_region(self) -> bool:
        """Whether several images are of one slide or region, so that these and not the images are independent."""
        return len(self.groups) < len(self.per_image)


class LayerWeight(msgspec.Struct, frozen=True):
    """The weight that a scalar mix learned for one layer; those of a head add up to 1.

    source: position of the store in `RunData.sources`.
    """

    source: int
    t: int
    block: int
    weight: float


class ImageLoss(msgspec.Struct, frozen=True):
    """The loss of one image: mean cross-entropy of its pixels in nats, weighted as in training."""

    id: str
    loss: float


class Metrics(msgspec.Struct, frozen=True, omit_defaults=True):
    """metrics.json: how training ended and the scores of every test split. Written last: it finishes a run.

    seconds: of training steps. bytes_read: from the store, by the pass over it that heads_from_one_read heads shared.
    These three alone may differ after an interruption. sha256: hex SHA-256 of each file of weights by its name, empty
    in runs of 0.1.0. object_tuning: None where no post-processing of objects was chosen. constant_class: the most
    frequent class in the training pixels, None in runs that did not record it. layer_weights: of a scalar mix, in the
    order of its layers. splits: empty without test images. train_losses: of each image that the kept epoch trained on,
    before the step that was taken on it, flipped as it was then; the last one where the epoch took it several times.
    Empty for a pixel ensemble and in runs that did not record them.
    """

    best_epoch: int
    epochs: int
    seconds: float
    test_split: str
    splits: dict[str, SplitScores]
    bytes_read: int | None = None
    heads_from_one_read: int | None = None
    sha256: dict[str, str] = {}
    object_tuning: ObjectTuning | None = None
    constant_class: str | None = None
    layer_weights: tuple[LayerWeight, ...] = ()
    train_losses: tuple[ImageLoss, ...] = ()

    def to_json(self) -> bytes:
        """The content of metrics.json."""
        return encode_json(_MetricsFile(**msgspec.structs.asdict(self), format=METRICS_FORMAT))

    @classmethod
    def from_json(cls, content: bytes, *, source: str) -> Metrics:
        """The inverse of `to_json`; also reads what 0.1.0 wrote. Raises ValueError naming `source` and the field."""
        with _way_out():
            file = decode_json(content, _MetricsFile, source=source)
        if file.format > METRICS_FORMAT:
            raise ValueError(
                f"{source} has format {file.format}, this pathseg reads up to {METRICS_FORMAT}; upgrade pathseg"
            )
        metrics = cls(**{name: getattr(file, name) for name in cls.__struct_fields__})
        if file.format < METRICS_FORMAT:
            splits = {name: _split_from_format_1(split) for name, split in metrics.splits.items()}
            metrics = msgspec.structs.replace(metrics, splits=splits)
        return metrics

    def require_classes(self, classes: Sequence[str], *, source: str) -> None:
        """Raise ValueError unless the quoted split is there and every score and matrix is of so many classes.

        A run without images of that split was not scored on it; then it names its most frequent class.
        """
        if self.test_split not in self.splits and self.constant_class not in classes:
            raise ValueError(
                f"{source} has scores of {', '.join(self.splits) or 'no split'} but none of its "
                f"test split {self.test_split!r}; {TRAIN_AGAIN}"
            )
        count = len(classes)
        for name, split in self.splits.items():
            if len(split.scores.classes) != count:
                raise ValueError(
                    f"{source} is damaged: splits.{name} has scores of {len(split.scores.classes)} classes, "
                    f"config.json names {count}; {TRAIN_AGAIN}"
                )
            for matrix in (split.confusion, *(image.confusion for image in split.per_image)):
                if len(matrix) != count or any(len(row) != count for row in matrix):
                    raise ValueError(
                        f"{source} is damaged: a confusion matrix in splits.{name} is not {count}x{count}; "
                        f"{TRAIN_AGAIN}"
                    )


class _MetricsFile(Metrics, frozen=True, omit_defaults=True):
    format: int = 1


def _split_from_format_1(split: SplitScores) -> SplitScores:
    """A test split of 0.1.0 with F1 as it is defined today."""
    return msgspec.structs.replace(
        split,
        scores=split.scores.from_release_1(),
        constant=msgspec.structs.replace(split.constant, scores=split.constant.scores.from_release_1()),
        per_image=tuple(
            msgspec.structs.replace(image, scores=image.scores.from_release_1()) for image in split.per_image
        ),
    )
