"""What a prediction leaves behind: masks, overlays, polygons, probabilities, and a record written last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pathseg.store.sampling import InputImage
from pathseg.train.predict.config import NOT_COMPUTED, PredictConfig
from pathseg.train.predict.geojson import Outlining, write_geojson
from pathseg.train.predict.ground_truth import count
from pathseg.train.predict.mosaic import Canvas, assemble, nearest, probability_arrays
from pathseg.train.predict.pyramid_tiff import write_pyramid
from pathseg.train.predict.sliding_window import Plan
from pathseg.train.predict.trained_head import TrainedHead
from pathseg.train.predict.window_cache import Answers
from pathseg.train.report.figures import class_colours, is_background, overlay
from pathseg.train.report.image_encoding import jpeg

DONE, WORK = "_done", "_work"
SUFFIXES = {"mask": ".png", "overlay": ".jpg", "geojson": ".geojson", "probabilities": ".zarr"}
OVERLAY_PX = 2048  # longest side of an overlay: a screen's worth
OVERLAY_QUALITY = 90


class Outputs:
    """The results of one picture below a folder: `<format>/<id>.<suffix>`, and `_done/<id>.json` once all are there.

    Each is written under another name first, so what has its final name is whole. about: what the head's answers
    depend on. truth: digest of the mask that it is scored by, None for no scores.
    """

    def __init__(
        self,
        out: Path,
        picture: InputImage,
        head: TrainedHead,
        config: PredictConfig,
        formats: tuple[str, ...],
        about: dict[str, Any],
        truth: str | None = None,
    ) -> None:
        self._out, self._picture, self._head, self._config = out, picture, head, config
        self._formats, self._truth, self._earlier = formats, truth, {}
        drawn = {name: getattr(config, name) for name in ("smallest", "simplify", "outline")}
        self._about = about | (drawn if "geojson" in formats else {})
        self._colours = class_colours(head.classes, head.ignore)
        self.work = out / WORK / picture.id
        background = [code for code, name in enumerate(head.classes) if is_background(name)]
        self.empty = background[0] if background else NOT_COMPUTED

    @property
    def record_path(self) -> Path:
        """The file that is written last."""
        return self._out / DONE / f"{self._picture.id}.json"

    def record(self) -> dict[str, Any] | None:
        """What an earlier run wrote last, if all these formats are there and so are the scores that are asked for.

        Raises ValueError when it was made in another way.
        """
        if not self.record_path.is_file():
            return None
        record = json.loads(self.record_path.read_text())
        for name, value in self._about.items():
            if (found := record["about"].get(name, value)) != value:
                raise ValueError(
                    f"{self._out} holds a prediction of {self._picture.id} made in another way: {name} is {found} "
                    f"there, {value} asked for; pass another --out"
                )
        self._earlier = record
        made = set(self._formats) <= set(record["formats"]) and all(self._final(f).exists() for f in self._formats)
        if not made or self._truth not in (None, record["truth"]):
            return None
        return record if self._truth else record | {"confusion": None}

    def write(
        self, answers: Answers, plan: Plan, tissue: np.ndarray | None, truth: np.ndarray | None
    ) -> dict[str, Any]:
        """Put the answers together and write all formats, then the record.

        tissue: (h, w) bool, where answers count, None for everywhere. truth: (h, w) class codes to score by.
        """
        head, picture = self._head, self._picture
        canvas = Canvas(self.work if picture.slide else None, picture.size, empty=self.empty)
        with self._probabilities() as group:
            counts = assemble(answers, plan, canvas, classes=len(head.classes), tissue=tissue, probabilities=group)
        record = {
            "id": picture.id,
            "about": self._earlier.get("about", {}) | self._about,
            "formats": sorted({*self._earlier.get("formats", ()), *self._formats}),
            "truth": self._truth,
            "file_px": list(picture.file_px),
            "size_px": list(picture.size),
            "mpp": picture.mpp,
            "windows": len(plan.kept),
            "windows_in_all": len(plan.rows.starts) * len(plan.cols.starts),
            "pixels": dict(zip(head.classes, counts.tolist(), strict=True)),
            "confusion": None if truth is None else count(canvas, truth, head).tolist(),
        }
        if "mask" in self._formats:
            self._write_mask(canvas)
        if "overlay" in self._formats:
            self._write_overlay(canvas)
        if "geojson" in self._formats:
            record["objects"] = self._write_geojson(canvas)
        elif "objects" in self._earlier:
            record["objects"] = self._earlier["objects"]
        with _whole(self.record_path) as path:
            path.write_text(json.dumps(record, indent=2) + "\n")
        return record

    @contextmanager
    def _probabilities(self) -> Iterator[Any]:
        """The Zarr group that takes the probabilities, None where they were not asked for."""
        if "probabilities" not in self._formats:
            yield None
            return
        head, picture = self._head, self._picture
        about = {
            **self._about,
            "classes": list(head.classes),
            "mpp": picture.mpp,
            "file_px": list(picture.file_px),
            "px_of_the_file_in_one": list(picture.scale),
        }
        with _whole(self._final("probabilities")) as path:
            uncertain = head.gives_uncertainty
            yield probability_arrays(path, picture.size, classes=len(head.classes), uncertain=uncertain, about=about)

    def _write_mask(self, canvas: Canvas) -> None:
        if self._picture.slide:
            names = [f"{code}: {name}" for code, name in enumerate(self._head.classes)]
            legend = ", ".join(names + [f"{NOT_COMPUTED}: not computed"] * (self.empty == NOT_COMPUTED))
            with _whole(self._final("mask")) as path:
                write_pyramid(canvas, path, mpp=self._picture.mpp, colours=self._colours, legend=legend)
            return
        with _whole(self._final("mask")) as path:
            codes = nearest(np.asarray(canvas.codes[0][:]), self._picture.file_px)
            Image.fromarray(codes).save(path, "PNG")

    def _write_overlay(self, canvas: Canvas) -> None:
        picture = self._picture.overview(OVERLAY_PX)
        codes = canvas.codes[max(0, canvas.within(OVERLAY_PX) - 1)]  # the next finer than the picture
        painted = overlay(
            picture,
            nearest(np.asarray(codes[:]), picture.shape[:2]),
            classes=self._head.classes,
            ignore=self._head.ignore,
        )
        with _whole(self._final("overlay")) as path:
            path.write_bytes(jpeg(painted, OVERLAY_QUALITY))

    def _write_geojson(self, canvas: Canvas) -> dict[str, Any]:
        """Outlines from the finest level that memory is sure to hold; what was given up for it goes into the record."""
        level = canvas.within(self._config.outline)
        codes = np.asarray(canvas.codes[level][:])
        scale = tuple(whole / part for whole, part in zip(self._picture.file_px, codes.shape, strict=True))
        times = max(whole / part for whole, part in zip(canvas.size, codes.shape, strict=True))
        head, mpp = self._head, self._picture.mpp
        how = Outlining(
            classes={
                code: (name, self._colours[code])
                for code, name in enumerate(head.classes)
                if code != head.ignore and not is_background(name)
            },
            scale=scale,
            mpp=None if mpp is None else mpp * times,
            simplify=self._config.simplify,
            smallest=self._config.smallest / times**2,
        )
        with _whole(self._final("geojson")) as path:
            totals = write_geojson(path, codes, how, source=f"{head.digest}/{self._picture.id}")
        return {
            "of_mask_level": level,
            "tolerance_px": times * (self._config.simplify + (level > 0)),
            "classes": totals,
        }

    def _final(self, name: str) -> Path:
        """Where a format of this picture belongs."""
        suffix = ".tif" if name == "mask" and self._picture.slide else SUFFIXES[name]
        return self._out / name / f"{self._picture.id}{suffix}"


@contextmanager
def _whole(final: Path) -> Iterator[Path]:
    """A path to write to, which takes its final name when the block ends without an error."""
    partial = final.with_name(f"{final.name}.partial")
    final.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_dir():
        shutil.rmtree(partial)
    yield partial
    if final.is_dir():
        shutil.rmtree(final)
    partial.replace(final)
