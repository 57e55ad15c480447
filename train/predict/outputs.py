"""The files of a predicted image: class codes, overlay, polygons, probabilities, and a record that is written last."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import zarr
from msgspec import UNSET
from zarr.storage import LocalStore

from pathseg.store.classes import object_class
from pathseg.store.runtime.atomic_files import atomic_path, write_atomic
from pathseg.store.runtime.file_lock import file_lock
from pathseg.store.runtime.regular_files import read_file
from pathseg.store.sampling import InputImage
from pathseg.train.colours import class_colours, jpeg_bytes, overlay, painted_classes, png_bytes, to_uint8
from pathseg.train.metrics.object import ObjectRule, post_process
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.geojson import (
    OBJECT_TYPES,
    OutlineSettings,
    measured_maps,
    uncertainty_name,
    write_geojson,
    write_review,
)
from pathseg.train.predict.ground_truth import as_matrix
from pathseg.train.predict.mosaic import NOT_COMPUTED, Mosaic, resize_nearest
from pathseg.train.predict.ome_zarr import write_ome_zarr
from pathseg.train.predict.pyramid_tiff import write_pyramid
from pathseg.train.predict.records import OutlinedObjects, PredictedImage, PredictionIdentity
from pathseg.train.predict.review import most_uncertain_regions
from pathseg.train.predict.sliding_window import SlidingWindow
from pathseg.train.predict.trained_head import TrainedHead
from pathseg.train.runs.folder import short_name

DONE, WORK = "_done", "_work"
SUFFIXES = {"mask": ".png", "overlay": ".jpg", "geojson": ".geojson", "review": ".geojson", "probabilities": ".zarr"}
PYRAMID_SUFFIXES = {"tiff": ".tif", "ome-zarr": ".ome.zarr"}
OVERLAY_PX = 2048  # longest side of an overlay: a screen's worth
OVERLAY_QUALITY = 90


@dataclass(frozen=True)
class ImageOutputs:
    """The files of one image below a folder: `<format>/<id>.<suffix>`, then `_done/<id>.json`, each written atomically.

    `_done/<id>.written` names each format with its suffix, before the file is written: other files are not ours.
    identity: what the predicted probabilities depend on. ground_truth_digest: of the mask that the image is scored by,
    None for no scores.
    """

    folder: Path
    image: InputImage
    head: TrainedHead
    config: PredictConfig
    identity: PredictionIdentity
    ground_truth_digest: str | None = None

    @property
    def record_path(self) -> Path:
        """Path of the image's record, which is written last."""
        return self.folder / DONE / f"{short_name(self.image.id)}.json"

    @contextmanager
    def locked(self, *, wait: bool) -> Iterator[bool]:
        """Keep other processes from the image's files; gives False, without `wait`, while another one has them."""
        with file_lock(self.record_path.with_suffix(".lock"), wait=wait) as alone:
            yield alone

    @property
    def work_folder(self) -> Path:
        """Folder of intermediate files, deleted once the record is written."""
        return self.folder / WORK / short_name(self.image.id)

    def path(self, format_name: str) -> Path:
        """Return the path of the image's file in one of `config.FORMATS`."""
        return self.folder / format_name / f"{short_name(self.image.id)}{self._suffix(format_name)}"

    def _suffix(self, format_name: str) -> str:
        of_slide = format_name == "mask" and self.image.slide
        return PYRAMID_SUFFIXES[self.config.pyramid] if of_slide else SUFFIXES[format_name]

    def earlier_record(self) -> PredictedImage | None:
        """Read the record of an earlier run; None where there is none.

        Raises ValueError for a damaged one, and, naming the setting and both values, when its predictions or outlines
        were made differently.
        """
        try:
            record = PredictedImage.from_json(read_file(self.record_path), source=str(self.record_path))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as e:
            raise ValueError(f"{e}; delete that file to predict the image again") from e
        for name, here, wanted in record.identity.differences(self._complete_identity()):
            raise ValueError(
                f"{self.folder} holds a prediction of {self.image.id} made in another way: {name} is {here} there, "
                f"{wanted} asked for; pass another --out"
            )
        return record

    def satisfied_by(self, record: PredictedImage) -> bool:
        """Return whether an earlier run wrote all formats, which still exist, and scored by the same mask, if any.

        False also where it assumed um/px that are stated now, or the other way round: GeoJSON says so.
        """
        formats, own = self.config.formats, self._own_files(record)
        written = all(name + self._suffix(name) in own and self.path(name).exists() for name in formats)
        return (
            written
            and set(formats) <= set(record.formats)
            and self._states_mpp_as(record)
            and self.ground_truth_digest in (None, record.ground_truth_digest)
        )

    def _states_mpp_as(self, record: PredictedImage) -> bool:
        """Return whether an earlier run assumed um/px if this one does; True where its record does not say."""
        return record.mpp_from is UNSET or (record.mpp_from == "training") == (self.image.mpp_from == "training")

    def require_own_files(self, earlier: PredictedImage | None) -> None:
        """Raise ValueError naming a file that is to be written, but lies there already and is not of an earlier run."""
        own = self._own_files(earlier)
        for name in self.config.formats:
            if name + self._suffix(name) not in own and os.path.lexists(self.path(name)):
                raise ValueError(
                    f"{self.path(name)} is there already, but not written by predict, which replaces its own files "
                    "alone; move it away or pass another --out"
                )

    @property
    def _written_path(self) -> Path:
        return self.record_path.with_name(f"{short_name(self.image.id)}.written")

    def _own_files(self, earlier: PredictedImage | None) -> set[str]:
        """Return format and suffix of each file that is ours; results of earlier releases have a record alone."""
        try:
            return set(read_file(self._written_path).decode(errors="replace").split())
        except OSError:
            return set() if earlier is None else {name + self._suffix(name) for name in earlier.formats}

    def write(
        self,
        mosaic: Mosaic,
        windows: SlidingWindow,
        *,
        confusion: np.ndarray | None,
        earlier: PredictedImage | None,
    ) -> PredictedImage:
        """Write the mosaic in all formats, then the record; delete intermediate files.

        confusion: (K, K) by the ground truth. earlier: record of an earlier run, whose formats and objects stay valid.
        """
        formats, objects = self.config.formats, UNSET if earlier is None else earlier.objects
        kept = set() if earlier is None else set(earlier.formats)
        if earlier is not None and not self._states_mpp_as(earlier):
            kept -= {"geojson", "review"}  # they say whether um/px are assumed
            objects = UNSET
        files = {*self._own_files(earlier), *(name + self._suffix(name) for name in formats)}
        write_atomic(self._written_path, "\n".join(sorted(files)).encode())
        if "mask" in formats:
            self._write_mask(mosaic)
        if "overlay" in formats:
            self._write_overlay(mosaic)
        if "geojson" in formats:
            objects = self._write_geojson(mosaic)
        if "review" in formats:
            self._write_review(mosaic)
        if "probabilities" in formats:
            self._write_probabilities(mosaic)
        identity = self._complete_identity()
        record = PredictedImage(
            id=self.image.id,
            identity=identity if earlier is None else earlier.identity.updated(identity),
            formats=tuple(sorted(kept | set(formats))),
            ground_truth_digest=self.ground_truth_digest,
            file_px=self.image.file_px,
            size_px=self.image.size,
            mpp=self.image.mpp,
            mpp_axes=self._mpp_axes(),
            mpp_from=UNSET if self.image.mpp_from is None else self.image.mpp_from,
            slide=self.image.slide,
            windows=len(windows.selected),
            windows_total=windows.total,
            pixels=dict(zip(self.head.classes, mosaic.pixels.tolist(), strict=True)),
            confusion=None if confusion is None else as_matrix(confusion),
            objects=objects,
        )
        write_atomic(self.record_path, record.to_json())
        if self.work_folder.exists():
            shutil.rmtree(self.work_folder)
            with suppress(OSError):  # other images have intermediate files beside it
                self.work_folder.parent.rmdir()
        return record

    def _mpp_axes(self) -> tuple[float, float] | None:
        """Vertical and horizontal um/px of the mosaic. Slides are read at one um/px, files have one until a resize."""
        if self.image.mpp is None or self.image.slide:
            return None if self.image.mpp is None else (self.image.mpp, self.image.mpp)
        stretch = math.sqrt(self.image.scale[0] / self.image.scale[1])
        return self.image.mpp * stretch, self.image.mpp / stretch

    def _complete_identity(self) -> PredictionIdentity:
        """The identity, with the settings of the GeoJSON files that are written."""
        config = self.config
        identity = msgspec.structs.replace(
            self.identity,
            regions=config.regions if "review" in config.formats else UNSET,
            outline_origin="file" if config.needs_confidence and config.outline_origin == "file" else UNSET,
        )
        if "geojson" not in config.formats:
            return identity
        return msgspec.structs.replace(
            identity,
            smallest=config.smallest,
            simplify=config.simplify,
            outline=config.outline,
            objects=UNSET if self.object_rule == ObjectRule() else str(self.object_rule),
            objects_as=UNSET if config.objects_as == "annotations" else config.objects_as,
        )

    @property
    def object_rule(self) -> ObjectRule:
        """The post-processing of the objects in GeoJSON; sizes in px of the head's training files."""
        return self.head.object_rule if self.config.objects == "tuned" else ObjectRule()

    @property
    def _outline_origin(self) -> tuple[int, int]:
        """What the first px of the image has as (y, x) in GeoJSON."""
        return self.image.origin if self.config.outline_origin == "file" else (0, 0)

    def _extent(self, level: int = 0) -> tuple[float, float]:
        """Height and width of the image in px of a level of the mosaic, beyond which its last px may reach."""
        image = self.image
        height, width = (
            min(side, file_side / scale) / 2**level
            for side, file_side, scale in zip(image.size, image.file_px, image.scale, strict=True)
        )
        return height, width

    @property
    def _training_px(self) -> float:
        """The area of one px of the head's training files in px of the mosaic.

        By um/px where they are known; else files are assumed to share one resolution.
        """
        trained, own = self.head.sampling.file_mpp, self.image.mpp
        return 1 / math.prod(self.image.scale) if trained is None or own is None else (trained / own) ** 2

    @property
    def _assumed_mpp(self) -> float | None:
        """um/px of the file, as the geometric mean of both axes, where that of the training images was assumed."""
        if self.image.mpp is None or self.image.mpp_from != "training":
            return None
        return self.image.mpp / math.sqrt(math.prod(self.image.scale))

    def _write_mask(self, mosaic: Mosaic) -> None:
        """Class codes: PNG of the file's size; of a slide a pyramid."""
        if not self.image.slide:
            write_atomic(self.path("mask"), png_bytes(resize_nearest(mosaic.codes(), self.image.file_px)))
            return
        assert self.image.mpp is not None, "slides are read at a known um/px"
        if self.config.pyramid == "ome-zarr":
            top, left = (
                px * self.image.mpp / scale for px, scale in zip(self.image.origin, self.image.scale, strict=True)
            )
            with atomic_path(self.path("mask")) as path:
                write_ome_zarr(
                    mosaic,
                    path,
                    name=self.image.id,
                    mpp=self.image.mpp,
                    classes=self.head.classes,
                    colours=self._colours(),
                    background=self.head.background,
                    origin_um=(top, left),
                )
            return
        names = [f"{code}: {name}" for code, name in enumerate(self.head.classes)]
        legend = ", ".join([*names, f"{NOT_COMPUTED}: not computed"] if mosaic.fill == NOT_COMPUTED else names)
        with atomic_path(self.path("mask")) as path:
            write_pyramid(mosaic, path, mpp=self.image.mpp, colours=self._colours(), legend=legend)

    def _write_overlay(self, mosaic: Mosaic) -> None:
        """Classes painted over the tissue, JPEG."""
        tissue = self.image.overview(OVERLAY_PX)  # (h, w, 3)
        level = max(0, mosaic.level_within(OVERLAY_PX) - 1)  # the next finer than the overview
        height, width = mosaic.size
        extent = height / 2**level, width / 2**level
        painted = overlay(
            tissue,
            resize_nearest(mosaic.codes(level), tissue.shape[:2], extent=extent),
            classes=self.head.classes,
            background=self.head.background,
            ignore=self.head.ignore,
            own=self.head.colours,
        )
        write_atomic(self.path("overlay"), jpeg_bytes(to_uint8(painted), quality=OVERLAY_QUALITY))

    def _write_geojson(self, mosaic: Mosaic) -> OutlinedObjects:
        """Objects as polygons, post-processed and outlined on the finest level no longer than `outline`."""
        head, mpp = self.head, self.image.mpp
        level = mosaic.level_within(self.config.outline)
        predicted = codes = mosaic.codes(level)
        shrunk = 2**level
        object_code = object_class(head.classes, background=head.background, ignore=head.ignore)
        if self.object_rule != ObjectRule() and object_code is not None and head.background is not None:
            codes = post_process(
                codes,
                self.object_rule,
                object_code=object_code,
                background=head.background,
                connectivity=int(head.settings.connectivity),
                scale=self._training_px / shrunk**2,
            )
        colours = self._colours()
        settings = OutlineSettings(
            classes={
                code: (head.classes[code], colours[code])
                for code in painted_classes(head.classes, background=head.background, ignore=head.ignore)
            },
            scale=(self.image.scale[0] * shrunk, self.image.scale[1] * shrunk),
            extent=self._extent(level),
            mpp=None if mpp is None else mpp * shrunk,
            assumed_mpp=self._assumed_mpp,
            simplify=self.config.simplify,
            smallest=self.config.smallest / shrunk**2,
            object_type=OBJECT_TYPES[self.config.objects_as],
            origin=self._outline_origin,
        )
        measured = None if mosaic.confidence is None else measured_maps(predicted, mosaic.confidence, level=level)
        source = f"{head.weights_digest}/{self.image.id}"
        with atomic_path(self.path("geojson")) as path:
            classes = write_geojson(path, codes, settings, source=source, measured=measured)
        tolerance_px = shrunk * (self.config.simplify + (level > 0))
        return OutlinedObjects(mask_level=level, tolerance_px=tolerance_px, classes=classes)

    def _write_review(self, mosaic: Mosaic) -> None:
        """The regions whose prediction is least certain, ranked."""
        assert mosaic.confidence is not None, "the mosaic was blended without confidence"
        regions = most_uncertain_regions(mosaic.confidence.uncertainty, self.config.regions)
        with atomic_path(self.path("review")) as path:
            write_review(
                path,
                regions,
                extent=self._extent(),
                scale=self.image.scale,
                measurement=uncertainty_name(mosaic.confidence),
                source=f"{self.head.weights_digest}/{self.image.id}",
                origin=self._outline_origin,
            )

    def _write_probabilities(self, mosaic: Mosaic) -> None:
        """Move the mosaic's Zarr group to its path, with attributes that say what it holds."""
        assert mosaic.probabilities is not None, "the mosaic was blended without probabilities"
        attributes = {
            **msgspec.to_builtins(self._complete_identity()),
            "classes": list(self.head.classes),
            "mpp": self.image.mpp,
            "file_px": list(self.image.file_px),
            "px_of_the_file_in_one": list(self.image.scale),
        }
        zarr.open_group(LocalStore(mosaic.probabilities), mode="r+", zarr_format=3).update_attributes(attributes)
        with atomic_path(self.path("probabilities")) as path:
            mosaic.probabilities.rename(path)

    def _colours(self) -> tuple[str, ...]:
        head = self.head
        return class_colours(head.classes, background=head.background, ignore=head.ignore, own=head.colours)
