"""A run that came to its end, read back and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pathseg.train.runs.expected import CONFIG, HISTORY, METRICS, check
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.split_scores import PartScores


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end, as its files say. `config` is config.json, epochs are those that were trained."""

    folder: RunFolder
    config: dict[str, Any]
    history: tuple[dict[str, Any], ...]
    best_epoch: int
    epochs: int
    seconds: float
    test_split: str
    parts: dict[str, PartScores]
    bytes_read: int | None = None  # of the pass over the store, shared by the heads that were trained from it
    heads_from_one_read: int | None = None

    @classmethod
    def read(cls, folder: RunFolder) -> FinishedRun:
        """Read and check all files of a run but its weights and predictions.

        Raises FileNotFoundError where the run is unfinished, ValueError (naming the file and the key) where a file
        is damaged or lacks what `expected` lists.
        """
        config, metrics, history = folder.read_config(), folder.read_metrics(), folder.read_history()
        check(config, CONFIG, where=folder.path / "config.json")
        check(metrics, METRICS, where=folder.path / "metrics.json")
        for number, line in enumerate(history, 1):
            check(line, HISTORY, where=f"{folder.path / 'history.jsonl'} line {number}")
        try:
            parts = {split: PartScores.from_dict(part) for split, part in metrics["splits"].items()}
        except ValueError as e:
            raise ValueError(
                f"{folder.path / 'metrics.json'} is damaged: {e}; delete the run folder, train it again"
            ) from e
        run = cls(
            folder=folder, config=config, history=history, test_split=metrics["test_split"], parts=parts,
            best_epoch=metrics["best_epoch"], epochs=metrics["epochs"], seconds=metrics["seconds"],
            bytes_read=metrics.get("bytes_read"), heads_from_one_read=metrics.get("heads_from_one_read"),
        )  # fmt: skip
        run._check_agreement()
        return run

    def _check_agreement(self) -> None:
        """Raise ValueError unless there are scores of the quoted split, and everywhere as many classes as named."""
        metrics, classes = self.folder.path / "metrics.json", self.data["classes"]
        if self.test_split not in self.parts:
            raise ValueError(
                f"{metrics} has scores of {', '.join(self.parts) or 'no split'} but none of its "
                f"test split {self.test_split!r}; delete the run folder, train it again"
            )
        for split, part in self.parts.items():
            if len(part.scores.classes) != len(classes):
                raise ValueError(
                    f"{metrics} is damaged: splits.{split} has scores of {len(part.scores.classes)} classes, "
                    f"config.json names {len(classes)}; delete the run folder, train it again"
                )

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.folder.name

    @property
    def quoted(self) -> PartScores:
        """The scores of the test split that results are quoted on."""
        return self.parts[self.test_split]

    @property
    def is_baseline(self) -> bool:
        """Whether it learned from the images themselves, not from features."""
        return "weights" in self.head

    @property
    def head(self) -> dict[str, Any]:
        """The settings it was trained with."""
        return self.config["head"]

    @property
    def data(self) -> dict[str, Any]:
        """What it was trained on: store, data set, model, classes, images of each split."""
        return self.config["data"]

    @property
    def size(self) -> str:
        """Width and height of its images, `512x256 px`."""
        height, width = self.data["size"]
        return f"{width}x{height} px"
