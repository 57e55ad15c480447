"""The run folder of one trained head: what is written there, whole or not at all, and read back."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pathseg.store.location.local import folder_lock


class RunFolder:
    """`<workspace>/heads/<run>/`: config.json, history.jsonl, metrics.json, head.safetensors, predictions/ and more.

    metrics.json is written last: a folder without it is an unfinished run. JSON values that are not finite (a loss
    that diverged) are written as null, so that any reader takes the files.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def weights(self) -> Path:
        """Where the trained head belongs."""
        return self.path / "head.safetensors"

    @property
    def last_weights(self) -> Path:
        """Where those after the last epoch belong, once the run is finished."""
        return self.path / "head-last.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end; what is there is then whole."""
        return (self.path / "metrics.json").is_file()

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the time of training it. Raises ValueError when another process is at it."""
        with folder_lock(self.path) as alone:
            if not alone:
                raise ValueError(f"{self.path} is being trained by another process; wait until that has ended")
            yield

    def begin(self, config: dict[str, Any]) -> None:
        """Make the folder, clear what an earlier attempt left of its course and scores, and write config.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "history.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        for picture in sorted([*self.path.glob("predictions/*.png"), *self.path.glob("uncertainty/*.png")]):
            picture.unlink()
        self.write_config(config)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json whole or not at all."""
        _write_whole(self.path / "config.json", _json_text(config).encode())

    def read_config(self) -> dict[str, Any]:
        """Raises FileNotFoundError where there is none, ValueError (naming the file) where it is damaged."""
        return _read_object(self.path / "config.json")

    def append_history(self, epoch: dict[str, Any]) -> None:
        """Add one epoch's line to history.jsonl; it is on its way to the disk when this returns."""
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(epoch), allow_nan=False) + "\n")
            file.flush()

    def cut_history(self, epochs: int) -> None:
        """Keep the first lines of history.jsonl, one an epoch: what came after the last saved epoch is done again."""
        lines = self.read_history()[:epochs]
        text = "".join(json.dumps(_finite(line), allow_nan=False) + "\n" for line in lines)
        _write_whole(self.path / "history.jsonl", text.encode())

    def read_history(self) -> tuple[dict[str, Any], ...]:
        """The epochs in order, none if there are none yet.

        A last line without its line end is what a kill leaves: it is not read. Any other line that cannot be read
        raises ValueError naming file and line.
        """
        path = self.path / "history.jsonl"
        if not path.is_file():
            return ()
        *lines, _ = path.read_bytes().split(b"\n")
        return tuple(_object(line, f"{path} line {number}") for number, line in enumerate(lines, 1))

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json whole or not at all: the last act of a run."""
        _write_whole(self.path / "metrics.json", _json_text(metrics).encode())

    def read_metrics(self) -> dict[str, Any]:
        """Raises FileNotFoundError for an unfinished run, ValueError (naming the file) where it is damaged."""
        return _read_object(self.path / "metrics.json")

    def prediction_path(self, image_id: str) -> Path:
        """The picture of an image's predicted classes; a `/` in an id does not make a folder."""
        name = image_id.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C")
        return self.path / "predictions" / f"{name}.png"

    def write_prediction(self, image_id: str, codes: np.ndarray) -> None:
        """Write (H, W) class codes 0..255 as an 8-bit grayscale PNG. Raises ValueError on anything else."""
        if codes.ndim != 2 or codes.size == 0 or codes.min() < 0 or codes.max() > 255:
            raise ValueError(
                f"prediction for {image_id} has shape {codes.shape} and type {codes.dtype}, "
                "but must be (H, W) with class codes 0-255"
            )
        _write_picture(self.prediction_path(image_id), codes)

    def write_uncertainty(self, image_id: str, share: np.ndarray) -> None:
        """Write (H, W) uncertainty, 0 to 1 of the most there can be, as `uncertainty/<id>.png`, 255 for 1."""
        path = self.path / "uncertainty" / self.prediction_path(image_id).name
        _write_picture(path, np.rint(share.clip(0, 1) * 255))

    def read_prediction(self, image_id: str) -> np.ndarray:
        """(H, W) uint8 class codes. Raises FileNotFoundError or, for a damaged picture, ValueError."""
        path = self.prediction_path(image_id)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: run {self.name} has no prediction for {image_id}")
        return _read_picture(path)

    def read_uncertainty(self, image_id: str) -> np.ndarray | None:
        """(H, W) uint8 as `write_uncertainty` made it; None where there is none. ValueError for a damaged picture."""
        path = self.path / "uncertainty" / self.prediction_path(image_id).name
        return _read_picture(path) if path.is_file() else None


def list_runs(workspace: Path | str) -> tuple[RunFolder, ...]:
    """All runs of a workspace, finished or not: the folders of `heads/` that hold a config.json.

    In the order of their names, numbers in them by value (`b2` before `b10`). Empty where there are none.
    """
    heads = Path(workspace) / "heads"
    if not heads.is_dir():
        return ()
    folders = (path for path in heads.iterdir() if (path / "config.json").is_file())
    return tuple(RunFolder(path) for path in sorted(folders, key=lambda path: natural_order(path.name)))


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key that takes the numbers in a name by value."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return (*((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts), (-1, 0, name))


def _write_picture(path: Path, values: np.ndarray) -> None:
    """8-bit grayscale, (H, W) values 0..255."""
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, buffer.getvalue())


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("L"))
    except (OSError, SyntaxError) as e:
        raise ValueError(f"{path} is damaged: {e}; delete the run folder and train it again") from e


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _json_text(value: dict[str, Any]) -> str:
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: {path.parent.name} is no finished run; train it again")
    return _object(path.read_bytes(), str(path))


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{where} is damaged: {e}; delete the run folder and train it again") from e
    if not isinstance(value, dict):
        raise ValueError(f"{where} is damaged: expected a JSON object, got {type(value).__name__}; "
                         "delete the run folder and train it again")  # fmt: skip
    return value
