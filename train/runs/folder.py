"""The folder of one run: its files are written whole or not at all, and read back as typed records."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from pathseg.store.location.local import folder_lock
from pathseg.store.runtime.atomic_files import PARTIAL, write_atomic
from pathseg.store.runtime.json_records import decode_json, encode_json
from pathseg.store.runtime.regular_files import read_file
from pathseg.train.runs.record import TRAIN_AGAIN, Epoch, Metrics, RunConfig

CONFIG, HISTORY, METRICS = "config.json", "history.jsonl", "metrics.json"
CHECKSUMS = "checksums.json"  # hex SHA-256 of every other file of a finished run, by its path in the folder
LAST = "last.safetensors"  # weights and optimizer after the last finished epoch, until the run is finished
NEW = "head-new.safetensors"  # weights of a new best epoch, until LAST lists them
MAX_NAME_BYTES = 200  # of a run or a file: file systems take 255, and reports and temporary files add to a name


class RunFolder:
    """`<workspace>/heads/<run>/`: config.json, history.jsonl, metrics.json, head.safetensors, predictions/ and more.

    metrics.json is written last: a folder without it is an unfinished run. checksums.json, written just before it,
    holds the SHA-256 of every other file; runs of earlier releases have none. Files of other names are left alone.
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
        """Path of the weights of the kept epoch."""
        return self.path / "head.safetensors"

    @property
    def new_weights(self) -> Path:
        """Path of the weights of a new best epoch, until the training state that lists them is written."""
        return self.path / NEW

    @property
    def last_weights(self) -> Path:
        """Path of the weights after the last epoch, written when the run is finished."""
        return self.path / "head-last.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run is finished: metrics.json is written last."""
        return (self.path / METRICS).is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder while it is trained. Raises ValueError when another process has locked it."""
        with folder_lock(self.path) as alone:
            if not alone:
                raise ValueError(f"{self.path} is being trained by another process; wait until that has ended")
            yield

    def weights_digests(self) -> dict[str, str]:
        """Return the hex SHA-256 of each file of weights that is there, by its name."""
        files = [path for path in (self.weights, self.last_weights) if path.is_file()]
        return {path.name: _sha256(read_file(path)) for path in files}

    def read_weights(self, metrics: Metrics) -> bytes:
        """Read head.safetensors of a finished run, and compare it with the SHA-256 in its metrics.json, if any.

        Raises ValueError, naming the file and the way out, where it is missing, empty or not as it was written.
        """
        content = read_file(self.weights) if self.weights.is_file() else b""
        expected = metrics.sha256.get(self.weights.name)
        if not content or expected not in (None, _sha256(content)):
            how = "damaged: its SHA-256 is not that in metrics.json" if content else "missing or empty"
            raise ValueError(f"{self.weights} is {how}; {TRAIN_AGAIN}")
        return content

    def has_intact_weights(self, metrics: Metrics) -> bool:
        """Whether every file of weights has the SHA-256 in metrics.json; True for a run of 0.1.0, which has none."""
        found = self.weights_digests()
        return all(found.get(name) == digest for name, digest in metrics.sha256.items())

    def remove_leftovers(self) -> None:
        """Remove what a killed process left: temporary files, and of a finished run the training state.

        Does nothing while another process trains the run.
        """
        with folder_lock(self.path) as alone:
            if not alone:
                return
            for path in self._own_files():
                path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
            if self.finished:
                (self.path / LAST).unlink(missing_ok=True)
                self.new_weights.unlink(missing_ok=True)

    def begin(self, config: RunConfig) -> None:
        """Create the folder, remove history, scores and predictions of an earlier attempt, and write config.json.

        Predictions are those of the images that the earlier config.json names.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for path in (self.path / METRICS, self.path / HISTORY, self.path / CHECKSUMS, *self._own_pictures()):
            path.unlink(missing_ok=True)
        write_atomic(self.path / CONFIG, config.to_json())

    def _own_pictures(self) -> list[Path]:
        """The predictions and uncertainties of the images that config.json names; none where it cannot be read."""
        try:
            images = self.read_config().data.images
        except (OSError, ValueError):
            return []
        predictions = [self.prediction_path(image_id) for ids in images.values() for image_id in ids]
        return [*predictions, *map(self._uncertainty_path, predictions)]

    def _own_files(self) -> list[Path]:
        """Every file that a run may write."""
        names = (CONFIG, HISTORY, self.weights.name, NEW, self.last_weights.name, METRICS, CHECKSUMS, LAST)
        return [*(self.path / name for name in names), *self._own_pictures()]

    def read_config(self) -> RunConfig:
        """Read config.json. Raises FileNotFoundError where there is none, ValueError naming file and field."""
        path = self.path / CONFIG
        return RunConfig.from_json(_read(path), source=str(path))

    def append_history(self, epoch: Epoch) -> None:
        """Append one line to history.jsonl and flush it to the operating system."""
        with (self.path / HISTORY).open("ab") as file:
            file.write(epoch.to_json())

    def cut_history(self, epochs: int) -> None:
        """Keep the first lines of history.jsonl, one per epoch; later epochs are trained again."""
        lines = self.read_history()[:epochs]
        write_atomic(self.path / HISTORY, b"".join(epoch.to_json() for epoch in lines))

    def read_history(self) -> tuple[Epoch, ...]:
        """Read the epochs in order, none if there are none yet.

        A last line without its line end is left by a kill and skipped. Any other line that cannot be read raises
        ValueError naming file, line and field.
        """
        path = self.path / HISTORY
        if not path.is_file():
            return ()
        *lines, _ = read_file(path).split(b"\n")
        return tuple(Epoch.from_json(line, source=f"{path} line {number}") for number, line in enumerate(lines, 1))

    def write_metrics(self, metrics: Metrics) -> None:
        """Write checksums.json, then metrics.json, which finishes the run."""
        others = (METRICS, CHECKSUMS, LAST, NEW)
        files = [path for path in self._own_files() if path.name not in others and path.is_file()]
        contents = {path.relative_to(self.path).as_posix(): _sha256(read_file(path)) for path in files}
        content = metrics.to_json()
        write_atomic(self.path / CHECKSUMS, encode_json(contents | {METRICS: _sha256(content)}))
        write_atomic(self.path / METRICS, content)

    def require_unchanged(self, *names: str) -> None:
        """Compare files of a finished run with checksums.json, if it has one and lists them.

        names: paths in the folder. Raises ValueError, naming the file and the way out, where one is changed or missing.
        """
        path = self.path / CHECKSUMS
        if not path.is_file():
            return
        try:
            expected = decode_json(read_file(path), dict[str, str], source=str(path))
        except ValueError as e:
            raise ValueError(
                f"{e}; delete this file, and the run's files are no longer compared, or {TRAIN_AGAIN}"
            ) from e
        for name in names:
            file = self.path / name
            if name in expected and not file.is_file():
                raise ValueError(f"{file} is missing, but {CHECKSUMS} lists it; {TRAIN_AGAIN}")
            if name in expected and _sha256(read_file(file)) != expected[name]:
                raise ValueError(f"{file} is damaged: its SHA-256 is not that in {CHECKSUMS}; {TRAIN_AGAIN}")

    def read_metrics(self) -> Metrics:
        """Read metrics.json. Raises FileNotFoundError for an unfinished run, ValueError naming file and field."""
        path = self.path / METRICS
        return Metrics.from_json(_read(path), source=str(path))

    def prediction_path(self, image_id: str) -> Path:
        """The picture of an image's predicted classes; a `/` in an id does not make a folder."""
        name = image_id.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C")
        return self.path / "predictions" / f"{short_name(name)}.png"

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
        path = self._uncertainty_path(self.prediction_path(image_id))
        _write_picture(path, np.rint(share.clip(0, 1) * 255))

    def read_prediction(self, image_id: str) -> np.ndarray:
        """(H, W) uint8 class codes. Raises FileNotFoundError or, for a damaged picture, ValueError."""
        picture = self._read_picture(self.prediction_path(image_id))
        if picture is None:
            path = self.prediction_path(image_id)
            raise FileNotFoundError(f"{path} is not there: run {self.name} has no prediction for {image_id}")
        return picture

    def read_uncertainty(self, image_id: str) -> np.ndarray | None:
        """(H, W) uint8 as `write_uncertainty` made it; None where there is none. ValueError for a damaged picture."""
        return self._read_picture(self._uncertainty_path(self.prediction_path(image_id)))

    def _uncertainty_path(self, prediction: Path) -> Path:
        return self.path / "uncertainty" / prediction.name

    def _read_picture(self, path: Path) -> np.ndarray | None:
        """(H, W) uint8; None where there never was one. Raises ValueError for one that is not as it was written."""
        self.require_unchanged(path.relative_to(self.path).as_posix())
        return _read_picture(path) if path.is_file() else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def short_name(name: str) -> str:
    """Return a name of at most `MAX_NAME_BYTES` bytes: of a longer one its beginning and a digest of the whole."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) <= MAX_NAME_BYTES:
        return name
    return f"{encoded[:120].decode('utf-8', 'ignore')}-{hashlib.sha256(encoded).hexdigest()[:32]}"


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
    write_atomic(path, buffer.getvalue())


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            picture.verify()  # compares the CRC-32 of each chunk, which decoding does not
        with Image.open(path, formats=("PNG",)) as picture:
            return np.array(picture.convert("L"))
    except (OSError, SyntaxError) as e:
        raise ValueError(f"{path} is damaged: {e}; {TRAIN_AGAIN}") from e


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: {path.parent.name} is no finished run; train it again")
    return read_file(path)
