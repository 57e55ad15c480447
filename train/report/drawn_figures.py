"""The figures of the last report of a workspace, so that the next one draws only those that show something else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec
import numpy as np

from pathseg.store.runtime.json_records import decode_json, encode_json
from pathseg.train.report.staged_folder import file_name
from pathseg.train.runs.folder import RunFolder

P = ParamSpec("P")
Content = TypeVar("Content", bytes, bytes | None)
INDEX = "figures.json"
DRAWN_BY = ("matplotlib", "pillow", "numpy")  # another version of one may draw other bytes
SOURCES = (  # likewise
    "train/report/figures.py", "train/report/sheets.py", "train/report/sweeps.py", "train/report/table_formats.py",
    "train/colours.py", "train/config.py", "store/blocks.py", "store/runtime/printable.py",
)  # fmt: skip


class DrawnFigure(msgspec.Struct, frozen=True):
    """What figures.json holds of a figure: the SHA-256 of what it shows and that of its file, both hex."""

    shows: str
    file: str


class DrawnFigures:
    """The PNG and JPEG files of a report and digests of what they show; `file` takes one from there or draws it."""

    def __init__(self, report: Path | None = None) -> None:
        """report: the folder of the last report, which need not be there; None draws every figure."""
        self._folder = report
        self._last = {} if report is None else _read_index(report / INDEX)
        self._now: dict[str, DrawnFigure] = {}

    def file(self, name: str, draw: Callable[P, Content], *args: P.args, **kwargs: P.kwargs) -> Content:
        """Return what `draw` returns for these arguments: the last report's file of this name where it has the same.

        draw: a function of `figures` or `sheets`, whose bytes depend on its arguments alone.
        """
        shows = hashlib.sha256(
            msgspec.json.encode((_drawing_digest(), draw.__name__, args, kwargs), enc_hook=_plain)
        ).hexdigest()
        content = self._drawn(name, shows)
        if content is None:
            content = draw(*args, **kwargs)
        if content is not None:
            self._now[name] = DrawnFigure(shows, hashlib.sha256(content).hexdigest())
        return content

    def index(self) -> bytes:
        """The content of figures.json for the figures that `file` has returned."""
        return encode_json(self._now)

    def _drawn(self, name: str, shows: str) -> bytes | None:
        """The file of a figure in the last report; None where it shows something else, is missing or was changed."""
        last = self._last.get(name)
        if self._folder is None or last is None or last.shows != shows:
            return None
        try:
            content = (self._folder / file_name(name)).read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == last.file else None


def _read_index(path: Path) -> dict[str, DrawnFigure]:
    """The figures of the last report; none where there was no report or its figures.json cannot be read."""
    try:
        return decode_json(path.read_bytes(), dict[str, DrawnFigure], source=str(path))
    except (OSError, ValueError):
        return {}


@cache
def _drawing_digest() -> str:
    """A digest of the code that draws, so that another release draws every figure again."""
    digest = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in DRAWN_BY).encode())
    for source in SOURCES:
        digest.update(resources.files("pathseg").joinpath(source).read_bytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """What msgspec cannot encode, of what figures are drawn from."""
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, RunFolder):
        return value.name
    raise TypeError(f"a figure cannot show a {type(value).__name__}")
