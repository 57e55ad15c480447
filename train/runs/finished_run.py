"""A finished run read back: its three files as typed records, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

from pathseg.train.config import Config
from pathseg.train.runs.folder import CONFIG, HISTORY, METRICS, RunFolder
from pathseg.train.runs.record import Epoch, Metrics, RunConfig, RunData, SplitScores

BEST_IS_LAST = "the best epoch is the last one, so more may improve it: raise --epochs"


def sources_text(count: int) -> str:
    """Return a number of shared sources in words, with the verb: `1 patient or slide is`."""
    return "1 patient or slide is" if count == 1 else f"{count} patients or slides are"


@dataclass(frozen=True)
class FinishedRun:
    """A run that was trained to its end and scored: folder, config.json, history.jsonl and metrics.json."""

    folder: RunFolder
    config: RunConfig
    history: tuple[Epoch, ...]
    metrics: Metrics

    @classmethod
    def read(cls, folder: RunFolder) -> FinishedRun:
        """Read all files of a run but its weights and predictions, and compare them with their checksums, if any.

        Raises FileNotFoundError where the run is unfinished, ValueError (naming the file and the field) where a file
        is damaged or the files do not fit each other.
        """
        config, metrics, history = folder.read_config(), folder.read_metrics(), folder.read_history()
        metrics.require_classes(config.data.classes, source=str(folder.path / METRICS))
        folder.require_unchanged(CONFIG, METRICS, HISTORY)
        return cls(folder, config, history, metrics)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def settings(self) -> Config:
        """The settings it was trained with."""
        return self.config.settings

    @property
    def data(self) -> RunData:
        """What it was trained on."""
        return self.config.data

    @property
    def is_baseline(self) -> bool:
        """Whether it learned from the images themselves, not from features."""
        return self.config.kind == "baseline"

    @property
    def scored(self) -> bool:
        """Whether there were images of the quoted test split to score it on."""
        return self.metrics.test_split in self.metrics.splits

    @property
    def constant_class(self) -> str:
        """The most frequent class in the training pixels, which the constant prediction gives everywhere."""
        return self.metrics.constant_class or self.test_scores.constant.class_name

    @property
    def test_scores(self) -> SplitScores:
        """The scores of the test split that results are quoted on; of a run that is `scored`."""
        return self.metrics.splits[self.metrics.test_split]

    @property
    def best_val_dice(self) -> float | None:
        """The validation Dice of the epoch that was kept, None where it is not known."""
        return next((epoch.val_dice for epoch in self.history if epoch.epoch == self.metrics.best_epoch), None)

    @property
    def still_improving(self) -> bool:
        """Whether the epoch with the best validation Dice is the last one, so that further ones may be better."""
        chosen = self.settings.keep == "best" and bool(self.data.images.get("val"))
        return chosen and self.metrics.best_epoch == self.metrics.epochs

    @property
    def steps(self) -> int | None:
        """Number of steps of Adam in all epochs, None where they were not recorded."""
        steps = [epoch.steps for epoch in self.history if epoch.steps is not None]
        return sum(steps) if len(steps) == self.metrics.epochs else None

    @property
    def why_objects_untuned(self) -> str | None:
        """Why no post-processing of objects was chosen on validation images; None where one was, or without objects."""
        if self.metrics.object_tuning is not None or not self.scored or self.test_scores.objects is None:
            return None
        if self.settings.min_object_px:
            return f"--min-object-px {self.settings.min_object_px} was passed"
        if not self.data.images.get("val"):
            return "there are no validation images"
        return "the validation images hold no objects, or the run is of a release that chose none"
