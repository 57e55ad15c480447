"""What the files of a run must hold: tables of path -> kind of value, so that whoever reads them can rely on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of JSON value: what it is called, and whether a value is of it."""

    words: str
    holds: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """The same, or null."""
        return Kind(f"{self.words} or null", lambda value: value is None or self.holds(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(holds(one) for one in value)


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and all(WHOLES.holds(row) and len(row) == len(value) for row in value)


OBJECT = Kind("an object", lambda value: isinstance(value, dict))
OBJECTS = Kind("a list of objects", _list_of(OBJECT.holds))
TEXT = Kind("text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", _list_of(TEXT.holds))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number", _is_whole)
WHOLES = Kind("a list of whole numbers", _list_of(_is_whole))
NUMBER = Kind("a number", _is_number)
SCORE = NUMBER.or_null()
MATRIX = Kind("a square matrix of whole numbers", _is_matrix)
SIZE = Kind("height and width in px", lambda value: WHOLES.holds(value) and len(value) == 2 and min(value) > 0)

# `*` stands for every entry of an object or a list; what ends with `?` may be missing
CONFIG: dict[str, Kind] = {
    "head": OBJECT,
    **{f"head.{name}?": WHOLE for name in ("t", "epochs", "patience", "batch_size", "pixels", "seed", "split_seed")},
    "head.min_object_px?": WHOLE,
    **{f"head.{name}?": NUMBER for name in ("lr", "val_fraction")},
    **{f"head.{name}?": TEXT for name in ("head", "weights", "augment", "class_weights", "precision", "connectivity")},
    "head.blocks?": WHOLES,
    "data": OBJECT,
    **{f"data.{name}": TEXT for name in ("store", "dataset", "layout", "preprocessing", "test_split")},
    "data.key?": TEXT,
    "data.features?": OBJECT,
    "data.sampling?": OBJECT,
    "data.model": OBJECT,
    "data.model.name": TEXT,
    "data.model.trained": FLAG,
    "data.model.condition": TEXT,
    "data.classes": TEXTS,
    "data.ignore": WHOLE.or_null(),
    "data.mpp": NUMBER.or_null(),
    "data.size": SIZE,
    "data.images": OBJECT,
    "data.images.*": TEXTS,
    "parameters": WHOLE,
    "device?": TEXT,
}

HISTORY: dict[str, Kind] = {
    "epoch": WHOLE,
    **{f"{name}_loss?": SCORE for name in ("train", "val")},
    **{f"val_{name}?": SCORE for name in ("accuracy", "dice", "miou", "f1")},
}

SCORES: dict[str, Kind] = {
    "pixels": WHOLE,
    **dict.fromkeys(("accuracy", "dice", "miou", "precision", "recall", "f1"), SCORE),
    "classes": OBJECTS,
    "classes.*.pixels": WHOLE,
    **{f"classes.*.{name}": SCORE for name in ("dice", "iou", "precision", "recall", "f1")},
}

RULES: dict[str, Kind] = {"connectivity": TEXT, "min_object_px": WHOLE, "resized": TEXT, "hausdorff_left_out": WHOLE}

OBJECTS_OF_IMAGE: dict[str, Kind] = {
    **dict.fromkeys(("tp", "fp", "fn", "predicted_px", "true_px", "images", "left_out"), WHOLE),
    **{f"{side}_{name}": NUMBER for side in ("predicted", "true") for name in ("dice", "hausdorff")},
    **{f"measured_{side}_px": WHOLE for side in ("predicted", "true")},
}

METRICS: dict[str, Kind] = {
    "best_epoch": WHOLE,
    "epochs": WHOLE,
    "seconds": NUMBER,
    "test_split": TEXT,
    "bytes_read?": WHOLE.or_null(),
    "heads_from_one_read?": WHOLE.or_null(),
    "splits": OBJECT,
    "splits.*": OBJECT,
    "splits.*.images": WHOLE,
    "splits.*.constant": OBJECT,
    "splits.*.constant.class": TEXT,
    "splits.*.per_image": OBJECTS,
    "splits.*.per_image.*.id": TEXT,
    "splits.*.per_image.*.source?": TEXT,
    "splits.*.per_image.*.uncertainty?": SCORE,
    "splits.*.confusion?": MATRIX,
    "splits.*.per_image.*.confusion?": MATRIX,
    "splits.*.objects?": OBJECT,
    **{f"splits.*.objects.{name}": kind for name, kind in RULES.items()},
    "splits.*.per_image.*.objects?": OBJECT,
    "splits.*.per_image.*.objects.sums": OBJECT,
    **{f"splits.*.per_image.*.objects.sums.{name}": kind for name, kind in OBJECTS_OF_IMAGE.items()},
    **{
        f"splits.*.{where}{below}": kind
        for where in ("scores", "constant.scores", "per_image.*.scores")
        for below, kind in {"": OBJECT, **{f".{name}": kind for name, kind in SCORES.items()}}.items()
    },
}


def check(value: dict[str, Any], table: Mapping[str, Kind], *, where: Path | str) -> None:
    """Raise ValueError naming the file and the key unless `value` has all that `table` lists, of the right kind.

    A table lists an object before what is in it. where: the file, or the line in it.
    """
    lacking = []
    for path, kind in table.items():
        for name, found in _at(value, path.removesuffix("?").split("."), ""):
            if found is _MISSING:
                lacking += [] if path.endswith("?") else [name]
            elif not kind.holds(found):
                raise ValueError(_damaged(where, f"{name} must be {kind.words}, got {_short(found)}"))
    if lacking:
        raise ValueError(f"{where} lacks {', '.join(lacking)}; delete the run folder, train it again")


_MISSING = object()


def _at(value: Any, names: list[str], said: str) -> Iterator[tuple[str, Any]]:
    """Every value at a path with its full name, `_MISSING` where the last name is not there."""
    if not names:
        yield said, value
        return
    first, *rest = names
    dot = said and f"{said}."
    if first == "*":
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, one in entries:
            yield from _at(one, rest, f"{dot}{name}")
    elif first in value:
        yield from _at(value[first], rest, f"{dot}{first}")
    elif not rest:
        yield f"{dot}{first}", _MISSING


def _damaged(where: Path | str, what: str) -> str:
    return f"{where} is damaged: {what}; delete the run folder, train it again"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
