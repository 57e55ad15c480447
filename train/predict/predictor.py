"""Predict images and whole slides with a trained head: windows, mosaic, files.

Memory grows by at most 3 KiB a px of a slide's width (`tiles.TileWriter`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec import UNSET, UnsetType

from pathseg.store.format.packing import PACKINGS
from pathseg.store.grid import PatchGrid
from pathseg.store.resolution import MppSource
from pathseg.store.runtime.atomic_files import write_atomic
from pathseg.store.runtime.file_lock import file_lock
from pathseg.store.runtime.prefetch import prefetch_map
from pathseg.store.sampling import InputImage, Sampling
from pathseg.train.config import Layer
from pathseg.train.metrics.object import ObjectRule
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.feature_sources import FeatureSource, OpenFeatures
from pathseg.train.predict.ground_truth import GroundTruth, mask_digest, mosaic_confusion, prediction_metrics
from pathseg.train.predict.mosaic import NOT_COMPUTED, MosaicSettings, blend_windows, join_windows
from pathseg.train.predict.outputs import ImageOutputs
from pathseg.train.predict.records import (
    PredictedImage,
    PredictionIdentity,
    PredictionMetrics,
    WindowCacheIdentity,
)
from pathseg.train.predict.sliding_window import SlidingWindow
from pathseg.train.predict.trained_head import TrainedHead
from pathseg.train.predict.window_cache import WindowCache

OpenImage = Callable[[Path, Sampling], InputImage]
OnWindow = Callable[[str, int, int], None]  # image id, windows completed, windows in total
OnNote = Callable[[str], None]
MPP_SOURCES: dict[MppSource, str] = {
    "flag": "by --mpp",
    "tag": "stated in the file",
    "name": "by its name",
    "training": "assumed as of the training images; --mpp states another",
}
SAME_STRETCH = 1.05  # ratio of two stretches up to which tissue looks the same
RESIZED_STRETCH = 1.2  # the same of images resized as the training images, whose own shapes vary (GlaS: 1.30 to 1.48)


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be predicted, and why in one line."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return self.reason if str(self.path) in self.reason else f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class PredictionResult:
    """The outcome of `predict`: the record of each predicted image, the failures, metrics if ground truth was given."""

    out: Path
    images: tuple[PredictedImage, ...]
    failures: tuple[FailedImage, ...]
    metrics: PredictionMetrics | None = None
    notes: tuple[str, ...] = ()


def predict(
    images: Sequence[Path],
    run: Path,
    out: Path,
    config: PredictConfig | None = None,
    *,
    features: OpenFeatures,
    open_image: OpenImage,
    ground_truth: GroundTruth | None = None,
    trained_mpp: float | None = None,
    device: str = "cpu",
    on_window: OnWindow = lambda image_id, completed, total: None,
    on_note: OnNote = lambda note: None,
) -> PredictionResult:
    """Predict images and slides with the head of a finished run and write the results below `out`.

    images: paths. run: a run folder. config: default settings when omitted. features: `computed_features` of a model or
    `stored_features` of the run's stores (pathseg.train.predict.feature_sources). open_image: `open_input_image`
    (pathseg.extract.inputs.images) or a partial of it with `file_mpp`. trained_mpp: um/px of the training images, in
    place of what the run records. on_window: called after every batch of windows. on_note: called with each kind of
    warning before the first window of the image; the result holds them too.

    An image that cannot be read or does not fit is set aside as a failure and the others are predicted. With
    `ground_truth`, metrics.json is written too. Results that exist are kept, and a slide that was interrupted is
    resumed after its last finished batch of windows, with the same result.

    Raises FileNotFoundError for an unfinished run; ValueError for a damaged one, for another model or other stores than
    those of the run's features, for an overlap that does not fit the head, and when no image has a ground truth mask.
    """
    config = config or PredictConfig()
    head = TrainedHead.load(run, device=device, mpp=trained_mpp)
    predictor = Predictor(head, features(head, config), out, config, ground_truth)
    return predictor.predict_all(images, open_image, on_window, on_note)


@dataclass(frozen=True)
class _Warnings:
    """Warnings on images, of each kind the first as soon as it is found; the others are counted.

    head: that they are predicted with. found: by kind, the first warning and the images that have one of this kind.
    """

    head: TrainedHead
    on_note: OnNote
    found: dict[str, tuple[str, set[Path]]] = field(default_factory=dict)

    def add(self, image: InputImage) -> None:
        """Note what must be known of an image that was opened."""
        if image.mpp_note is not None:
            self._add(f"um/px by {image.mpp_from}", image.mpp_note, image)
        sampling, stretch = self.head.sampling, _stretch(image)
        resized = sampling.resized and not image.slide and image.size == sampling.size
        ratio = max(stretch / sampling.stretch, sampling.stretch / stretch)
        if ratio > (RESIZED_STRETCH if resized else SAME_STRETCH):
            text = (
                f"{image.path}: tissue in it is {_stretch_text(stretch)}, but in the training images of run "
                f"{self.head.name} {_stretch_text(sampling.stretch)} ({sampling.mpp_text()}), so that it looks "
                "different to the head; extract --keep-aspect trains heads on tissue that is not stretched"
            )
            self._add("stretch", text, image)

    def _add(self, kind: str, text: str, image: InputImage) -> None:
        if kind not in self.found:
            self.found[kind] = text, set()
            self.on_note(text)
        self.found[kind][1].add(image.path)

    def notes(self) -> tuple[str, ...]:
        """Return one line for each kind, with the number of images."""
        return tuple(
            f"{text} (and so for {len(images)} images in all)" if len(images) > 1 else text
            for text, images in self.found.values()
        )


def _stretch(image: InputImage) -> float:
    """Return how much longer a length becomes along the height than along the width, as `Sampling.stretch`."""
    return 1.0 if image.slide else image.scale[1] / image.scale[0]  # slides are read at one um/px both ways


def _stretch_text(stretch: float) -> str:
    if 1 / SAME_STRETCH <= stretch <= SAME_STRETCH:
        return "not stretched"
    return f"stretched {max(stretch, 1 / stretch):.2f} times {'down' if stretch > 1 else 'across'}"


@dataclass(frozen=True)
class Predictor:
    """A head, the source of the features that it takes, and the folder of its results; `predict` makes one."""

    head: TrainedHead
    source: FeatureSource
    out: Path
    config: PredictConfig
    ground_truth: GroundTruth | None = None

    def predict_all(
        self,
        paths: Sequence[Path],
        open_image: OpenImage,
        on_window: OnWindow = lambda image_id, completed, total: None,
        on_note: OnNote = lambda note: None,
    ) -> PredictionResult:
        """Predict one file after the other, those last that another process is predicting; see `predict`."""
        predicted: dict[Path, PredictedImage] = {}
        failures: dict[Path, FailedImage] = {}
        warnings = _Warnings(self.head, on_note)
        for wait in (False, True):
            for path in paths:
                if path in predicted or path in failures:
                    continue
                try:
                    with closing(open_image(path, self.head.sampling)) as image:
                        warnings.add(image)
                        predicted[path] = self.predict_image(image, on_window, wait=wait)
                except BlockingIOError:
                    continue
                except (ValueError, FileNotFoundError, PermissionError) as e:
                    failures[path] = FailedImage(path, str(e))
                    on_window(path.stem, 1, 1)
        images = tuple(predicted[path] for path in paths if path in predicted)
        metrics = None
        if self.ground_truth is not None and images:
            metrics = prediction_metrics(images, self.head)
            with file_lock(self.out / "metrics.lock", wait=True):
                write_atomic(self.out / "metrics.json", metrics.to_json())
        return PredictionResult(
            self.out, images, tuple(failures.values()), metrics, (*warnings.notes(), *self._notes(images))
        )

    def _notes(self, images: Sequence[PredictedImage]) -> tuple[str, ...]:
        """The post-processing of objects."""
        rule = self.head.object_rule
        if images and "geojson" in self.config.formats and self.config.objects == "tuned" and rule != ObjectRule():
            return (
                f"objects in geojson are of {rule} (px of the training images), as run {self.head.name} scores its "
                "objects; masks are as predicted; --objects raw leaves objects as predicted",
            )
        return ()

    def predict_image(
        self,
        image: InputImage,
        on_window: OnWindow = lambda image_id, completed, total: None,
        *,
        wait: bool = True,
    ) -> PredictedImage:
        """Predict one image, write its files and return its record.

        While another process predicts it into the same folder, wait for the result of that one, or without `wait` raise
        BlockingIOError. Raises ValueError for an image that cannot be read, for a ground truth mask that does not fit
        it, for features or probabilities that are not finite, and where the folder holds results that were made
        differently.
        """
        head, config = self.head, self.config
        identity = self._identity(image)
        mask = None if self.ground_truth is None else self.ground_truth.class_codes(image.id, head)
        digest = None if mask is None else mask_digest(mask, image)
        outputs = ImageOutputs(self.out, image, head, config, identity, digest)
        with outputs.locked(wait=wait) as alone:
            if not alone:
                raise BlockingIOError(f"{image.path} is being predicted into {self.out} by another process")
            return self._predict_locked(outputs, mask, on_window)

    def _predict_locked(self, outputs: ImageOutputs, mask: np.ndarray | None, on_window: OnWindow) -> PredictedImage:
        """Predict an image whose files no other process writes; mask: class codes of its ground truth."""
        head, config, image, identity = self.head, self.config, outputs.image, outputs.identity
        earlier = outputs.earlier_record()
        if earlier is not None and outputs.satisfied_by(earlier):
            on_window(image.id, earlier.windows, earlier.windows)
            return earlier if mask is not None else msgspec.structs.replace(earlier, confusion=None)
        outputs.require_own_files(earlier)

        # without a background class, pixels beside the tissue have no class that they could be scored as
        everywhere = config.tissue == "all" or (mask is not None and head.background is None)
        tissue = None if everywhere else image.tissue()
        windows = self.source.windows(image, tissue)
        settings = MosaicSettings(
            classes=len(head.classes),
            fill=NOT_COMPUTED if head.background is None else head.background,
            folder=outputs.work_folder if image.slide else None,
            tissue=tissue,
            probabilities=outputs.work_folder / "probabilities.zarr" if "probabilities" in config.formats else None,
            uncertainty=head.gives_uncertainty,
            confidence=config.needs_confidence,
        )
        if self.source.overlap:
            cache = self._window_cache(image, windows, outputs.work_folder, identity)
            self._predict_windows(image, windows, cache, on_window)
            mosaic = blend_windows(cache, windows, settings)
        else:
            with closing(self._predicted_windows(image, windows, on_window)) as predicted:
                mosaic = join_windows(predicted, windows, settings)
        confusion = None if mask is None else mosaic_confusion(mosaic, mask, head)
        return outputs.write(mosaic, windows, confusion=confusion, earlier=earlier)

    def _window_cache(
        self, image: InputImage, windows: SlidingWindow, folder: Path, identity: PredictionIdentity
    ) -> WindowCache:
        shape = len(self.head.classes) + self.head.gives_uncertainty, *self.head.sampling.size
        if not image.slide:
            return WindowCache.in_memory()
        of_windows = WindowCacheIdentity.of(identity, batch_size=self.source.batch_size, windows=windows.selected)
        return WindowCache.on_disk(folder, of_windows, shape=shape)

    def _predict_windows(
        self, image: InputImage, windows: SlidingWindow, cache: WindowCache, on_window: OnWindow
    ) -> None:
        """Predict the missing windows in batches, which are the same however often a run was interrupted."""
        total = len(windows.selected)
        missing = [batch for batch in self._batches(windows) if not cache.complete(batch)]
        completed = total - sum(map(len, missing))
        on_window(image.id, completed, total)
        with closing(self.source.features(image, windows, missing)) as features_of_batches:
            predicted = (
                (batch, self._predict_batch(image.id, features))
                for batch, features in zip(missing, features_of_batches, strict=True)
            )

            def write(item: tuple[range, np.ndarray]) -> int:
                cache.write(*item)
                return len(item[0])

            # written in a thread while the next batch is predicted here
            for count in prefetch_map(write, predicted, threads=1, size_bytes=lambda item: item[1].nbytes):
                completed += count
                on_window(image.id, completed, total)

    def _predicted_windows(
        self, image: InputImage, windows: SlidingWindow, on_window: OnWindow
    ) -> Generator[np.ndarray, None, None]:
        """Yield the maps (M, H, W) of each window; nothing is kept, as it is read and predicted again as quickly."""
        batches, completed = self._batches(windows), 0
        with closing(self.source.features(image, windows, batches)) as features_of_batches:
            for batch, features in zip(batches, features_of_batches, strict=True):
                yield from self._predict_batch(image.id, features)
                completed += len(batch)
                on_window(image.id, completed, len(windows.selected))

    def _batches(self, windows: SlidingWindow) -> list[range]:
        """Return the positions in `windows.selected` that the head predicts at once."""
        total = len(windows.selected)
        step = max(1, self.source.batch_size // PatchGrid.of(*self.head.sampling.size).patches)
        return [range(first, min(first + step, total)) for first in range(0, total, step)]

    def _predict_batch(self, image_id: str, features: Mapping[Layer, torch.Tensor]) -> np.ndarray:
        """Return probabilities, and uncertainty if any, (N, M, H, W) float32, of windows by their features."""
        predicted = self.head.predict(features, PatchGrid.of(*self.head.sampling.size)).cpu().numpy()
        if not np.isfinite(predicted).all():
            raise ValueError(
                f"{image_id}: the head of run {self.head.name} gives values that are not finite; train it with a "
                f"smaller --lr or with --precision float32"
            )
        return predicted

    def _identity(self, image: InputImage) -> PredictionIdentity:
        return PredictionIdentity(
            file=image.path.name,
            size_bytes=image.path.stat().st_size,
            content_digest=image.digest,
            size=image.size,
            mpp=image.mpp,
            run=self.head.name,
            weights_digest=self.head.weights_digest,
            model_digest="+".join(source.key.model_digest for source in self.head.sources),
            features="stored" if self.source.stored else UNSET,
            packing=UNSET if self.source.stored else _rounding_packing(self.head),
            overlap=self.source.overlap,
            tissue=self.config.tissue,
        )


def _rounding_packing(head: TrainedHead) -> str | UnsetType:
    """The packings of a head's stores, joined by `+`; unset where none of them changes a value."""
    names = [source.key.packing for source in head.sources]
    rounds = any(PACKINGS[name].scaled or PACKINGS[name].keep_bits is not None for name in names)
    return "+".join(names) if rounds else UNSET


def summary(result: PredictionResult) -> str:
    """Describe a result for people: size, windows, share of each class and objects of each image, scores if any."""
    lines = []
    for image in result.images:
        total = max(1, sum(image.pixels.values()))
        shares = ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in image.pixels.items())
        found = {} if isinstance(image.objects, msgspec.UnsetType) else image.objects.classes
        objects = "".join(f"; {of_class.count} x {name}" for name, of_class in found.items())
        none = "; no tissue was found, --tissue all computes everything" if not image.windows else ""
        height, width = image.file_px
        windows = f"{image.windows} of {image.windows_total} windows"
        size = f"{width}x{height} px{_resolution(image)}"
        lines.append(f"{result.out}: {image.id}, {size}, {windows}: {shares}{objects}{none}")
    if (metrics := result.metrics) is not None:
        scores, constant = metrics.scores, metrics.constant
        values = {"accuracy": scores.accuracy, "dice": scores.dice, "miou": scores.miou, "f1": scores.f1}
        shown = "  ".join(f"{name} {_score(value)}" for name, value in values.items())
        always = f"always {constant.class_name}: dice {_score(constant.scores.dice)}"
        lines.append(f"{metrics.images} images with a mask: {shown}  ({always})")
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _resolution(image: PredictedImage) -> str:
    """um/px of an image file and where it is from; nothing where it is unknown, or of a record of earlier releases."""
    if image.mpp is None or isinstance(image.mpp_from, msgspec.UnsetType):
        return ""
    of_file = image.mpp * math.sqrt(math.prod(image.size_px) / math.prod(image.file_px))  # up to rounded sizes
    return f", {of_file:.2g} um/px ({MPP_SOURCES[image.mpp_from]})"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
