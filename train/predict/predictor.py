"""A trained head on new images and slides: windows in, results out; a slide of any size in the same memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathseg.store.grid import PatchGrid
from pathseg.store.sampling import InputImage
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.ground_truth import Truth, digest_for, score
from pathseg.train.predict.outputs import Outputs
from pathseg.train.predict.sliding_window import Axis, Plan
from pathseg.train.predict.trained_head import TrainedHead
from pathseg.train.predict.window_cache import Answers

Features = Callable[[np.ndarray, Sequence[int], str], dict[int, torch.Tensor]]
OnWindow = Callable[[str, int, int], None]  # id of the picture, windows that are done, windows in all
SCORES = ("accuracy", "dice", "miou", "f1")
AHEAD = 2  # batches of windows that are read while one is computed


@dataclass(frozen=True)
class Predictor:
    """A head, the features it takes, and the folder its results go to.

    features: from patches (P, 256, 256, 3) uint8, their indices and an image's id to {block: (P, C, h, w)}. The noise
    of a patch depends on these, so they are part of the method: the id is the file's stem; the index is that of the
    patch in its window, plus the window's number in the whole plan (row by row, glass counted) times the patches of a
    window. An image of one window so gets the very features that the store holds for it.

    Raises ValueError for an overlap that does not fit the head's windows.
    """

    head: TrainedHead
    features: Features
    out: Path
    config: PredictConfig
    formats: tuple[str, ...]
    truth: Truth | None = None

    def __post_init__(self) -> None:
        for side in self.head.sampling.size:
            Axis(side, side, self.config.overlap)

    def predict(self, picture: InputImage, on_window: OnWindow = lambda id_, done, total: None) -> dict[str, Any]:
        """Predict one picture and write what was asked for; gives the record of it, which is written last.

        What is there of the same making is not made again. A slide that was cut off goes on after its last finished
        batch of windows, with the same result. Raises ValueError for a picture that cannot be read, for a truth that
        does not fit, and where the folder holds results of another making.
        """
        about = self._about(picture)
        truth = None if self.truth is None else self.truth.read(picture.id, self.head)
        scored_by = None if truth is None else digest_for(truth, picture)
        outputs = Outputs(self.out, picture, self.head, self.config, self.formats, about, truth=scored_by)
        if (record := outputs.record()) is not None:
            on_window(picture.id, record["windows"], record["windows"])
            return record
        scored_glass = truth is not None and outputs.empty >= len(self.head.classes)  # it has no class to be scored as
        glass_left_out = self.config.tissue == "otsu" and not scored_glass
        tissue = picture.tissue() if glass_left_out else None
        plan = Plan.of(picture.size, self.head.sampling.size, self.config.overlap, tissue)
        answers = Answers(
            outputs.work if picture.slide else None,
            windows=len(plan.kept),
            shape=(len(self.head.classes) + self.head.gives_uncertainty, *self.head.sampling.size),
            about={**about, "batch_size": self.config.batch_size, "windows": list(plan.kept)},
        )
        self._answer(picture, plan, answers, on_window)
        record = outputs.write(answers, plan, tissue, truth)
        answers.remove()
        return record

    def _answer(self, picture: InputImage, plan: Plan, answers: Answers, on_window: OnWindow) -> None:
        """Compute the windows that are lacking in batches, which are the same however often a run was cut off."""
        each = max(1, self.config.batch_size // PatchGrid.of(*self.head.sampling.size).patches)
        batches = [range(i, min(i + each, len(plan.kept))) for i in range(0, len(plan.kept), each)]
        waiting = [batch for batch in batches if answers.lacking(batch)]
        done = len(plan.kept) - sum(map(len, waiting))
        on_window(picture.id, done, len(plan.kept))
        with closing(_ahead(waiting, lambda batch: self._pixels(picture, plan, batch))) as pieces:
            # closed, so that an error here waits for the reader: the caller will close the slide under it
            for batch, pixels in pieces:
                answers.write(batch, self._ask(picture.id, [plan.kept[i] for i in batch], pixels))
                done += len(batch)
                on_window(picture.id, done, len(plan.kept))

    def _pixels(self, picture: InputImage, plan: Plan, batch: Sequence[int]) -> np.ndarray:
        height, width = self.head.sampling.size
        return np.stack([picture.read(*plan.corner(plan.kept[i]), height, width) for i in batch])  # (N, H, W, 3)

    def _ask(self, image_id: str, numbers: Sequence[int], pixels: np.ndarray) -> np.ndarray:
        """Windows (N, H, W, 3) by their numbers -> (N, M, H, W) float32."""
        grid = PatchGrid.of(*self.head.sampling.size)
        patches = np.concatenate([grid.cut(window) for window in pixels])
        indices = [number * grid.patches + patch for number in numbers for patch in range(grid.patches)]
        maps = self.features(patches, indices, image_id)
        unfolded = {block: values.unflatten(0, (len(numbers), grid.patches)) for block, values in maps.items()}
        return self.head.judge(unfolded, grid).cpu().numpy()

    def _about(self, picture: InputImage) -> dict[str, Any]:
        """All that the head's answers depend on."""
        return {
            "file": picture.path.name,
            "size_bytes": picture.path.stat().st_size,
            "content": picture.digest,
            "size": list(picture.size),
            "mpp": picture.mpp,
            "run": self.head.name,
            "head": self.head.digest,
            "model": self.head.key.model_digest,
            "overlap": self.config.overlap,
            "tissue": self.config.tissue,
        }


def _ahead(batches: Sequence[range], read: Callable[[range], np.ndarray]) -> Iterator[tuple[range, np.ndarray]]:
    """Each batch with its pixels; the next ones are being read meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        reading = [reader.submit(read, batch) for batch in batches[:AHEAD]]
        for number, batch in enumerate(batches):
            pixels = reading.pop(0).result()
            reading += [reader.submit(read, later) for later in batches[number + AHEAD : number + AHEAD + 1]]
            yield batch, pixels


def predict_all(
    predictor: Predictor, paths: Sequence[Path], opener: Callable[[Path], InputImage], on_window: OnWindow
) -> tuple[list[dict[str, Any]], list[str]]:
    """Predict file after file: the records of those that could be, and a line for each that could not.

    `on_window` is told of every window. With a truth, metrics.json is written beside the results. Raises ValueError
    when no image has a mask.
    """
    records, failures = [], []
    for path in paths:
        try:
            with closing(opener(path)) as picture:
                records.append(predictor.predict(picture, on_window))
        except (ValueError, FileNotFoundError, PermissionError) as e:
            failures.append(str(e) if str(path) in str(e) else f"{path}: {e}")
            on_window(path.stem, 1, 1)
    if predictor.truth is not None and records:
        predictor.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(score(records, predictor.head), indent=2) + "\n"
        (predictor.out / "metrics.json").write_text(text)
    return records, failures


def summary(records: Sequence[dict[str, Any]], out: Path) -> str:
    """Lines for a person: size, windows, share of each class and objects of each image; scores where there are."""
    lines = []
    for record in records:
        total = max(1, sum(record["pixels"].values()))
        shares = ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in record["pixels"].items())
        windows = f"{record['windows']} of {record['windows_in_all']} windows"
        found = record.get("objects", {"classes": {}})["classes"]
        objects = "".join(f"; {one['count']} x {name}" for name, one in found.items())
        none = "; no tissue was found, --tissue all computes everything" if not record["windows"] else ""
        height, width = record["file_px"]
        lines.append(f"{out}: {record['id']}, {width}x{height} px, {windows}: {shares}{objects}{none}")
    if (out / "metrics.json").is_file() and any(record.get("confusion") for record in records):
        metrics = json.loads((out / "metrics.json").read_text())
        figures = "  ".join(f"{name} {_figure(metrics['scores'][name])}" for name in SCORES)
        always = f"always {metrics['constant']['class']}: dice {_figure(metrics['constant']['scores']['dice'])}"
        lines.append(f"{metrics['images']} images with a mask: {figures}  ({always})")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
