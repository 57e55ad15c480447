"""Finished runs as typed records, made without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from pathseg.store.blocks import BLOCKS
from pathseg.store.key import StoreKey
from pathseg.store.sampling import Sampling
from pathseg.train.config import BaselineConfig, HeadConfig
from pathseg.train.metrics.object import ObjectRule, ObjectSums, mean_scores
from pathseg.train.metrics.pixel import Scores, constant_prediction
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.record import (
    Constant,
    Epoch,
    ImageObjects,
    ImageScores,
    Metrics,
    ObjectSplitScores,
    RunConfig,
    RunData,
    Source,
    SplitScores,
)

GOOD = np.array([[50, 10], [20, 20]])


def split_of(
    matrices: Mapping[str, np.ndarray], *, classes: Sequence[str] = ("background", "gland"), ignore: int | None = None,
    objects: Mapping[str, ObjectSums] | None = None, connectivity: str = "8", min_object_px: int = 0,
    sources: Mapping[str, str] | None = None, uncertainty: Mapping[str, float] | None = None,
    tuned: Mapping[str, ObjectSums] | None = None, tuned_rule: ObjectRule | None = None,
    losses: Mapping[str, float] | None = None,
) -> SplitScores:  # fmt: skip
    """The scores of images with these confusion matrices; the constant prediction is the first class."""
    objects, sources, uncertainty = objects or {}, sources or {}, uncertainty or {}
    whole = np.sum(list(matrices.values()), axis=0)
    tuned, tuned_rule = tuned or {}, tuned_rule or ObjectRule()

    def of_objects(sums: Mapping[str, ObjectSums], rule: ObjectRule) -> ObjectSplitScores | None:
        total = ObjectSums.total(sums.values())
        return ObjectSplitScores(
            connectivity, rule.min_px, "nearest", total.scores()._asdict(),
            mean_scores(list(sums.values()))._asdict(), total.left_out, rule.fill_holes,
        ) if sums else None  # fmt: skip

    images = tuple(
        ImageScores(
            id=name, scores=Scores.of(matrix, ignore), confusion=tuple(map(tuple, matrix.tolist())),
            source=sources.get(name), uncertainty=uncertainty.get(name),
            objects=ImageObjects.of(objects[name]) if name in objects else None,
            tuned_objects=ImageObjects.of(tuned[name]) if name in tuned else None, loss=(losses or {}).get(name),
        )
        for name, matrix in matrices.items()
    )  # fmt: skip
    return SplitScores(
        images=len(images), scores=Scores.of(whole, ignore), confusion=tuple(map(tuple, whole.tolist())),
        constant=Constant(classes[0], Scores.of(constant_prediction(whole, 0), ignore)), per_image=images,
        objects=of_objects(objects, ObjectRule(min_object_px)), tuned_objects=of_objects(tuned, tuned_rule),
    )  # fmt: skip


def run_of(
    name: str = "", *, splits: Mapping[str, SplitScores] | None = None, matrix: np.ndarray = GOOD,
    ids: Sequence[str] = ("d", "e"), classes: Sequence[str] = ("background", "gland"), ignore: int | None = None,
    trained: bool = True, val: float | None = 0.5, history: Sequence[Epoch] | None = None,
    key: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None, folder: RunFolder | None = None, **settings: Any,
) -> FinishedRun:  # fmt: skip
    """A run of thirty epochs of which the seventh was kept; what is not named is the same in all."""
    values = {
        "dataset": "glas", "preprocessing": {}, "size": (256, 512), "mpp": 0.62, "model": "mini",
        "model_digest": "ab" * 32, "first_stage": "vq-f4", "condition": "ssl", "seed": 0, "layout": "native",
        "dtype": "float16", **(key or {}),
    }  # fmt: skip
    store_key = StoreKey.from_json(values)
    of_source = {
        "store": "/data/my stores/glas.zarr", "digest": "cd" * 32, "key": store_key, "model_trained": trained,
        "channels": dict.fromkeys(settings.get("blocks", BLOCKS), 8),
    }  # fmt: skip
    of_run = dict(data or {})
    of_source |= {name: of_run.pop(name) for name in of_source if name in of_run}
    run_data = {
        "sources": (Source(**of_source),),
        "classes": tuple(classes), "background": classes.index("background") if "background" in classes else None,
        "ignore": ignore, "sampling": Sampling(tuple(store_key.size), store_key.mpp, False, (512, 512)),
        "test_split": "testB", "images": {"train": ("a", "b"), "val": ("c",), "testB": tuple(ids)}, **of_run,
    }  # fmt: skip
    config = BaselineConfig(**settings) if "network" in settings else HeadConfig(**settings)
    made = splits or {"testB": split_of(dict.fromkeys(ids, matrix), classes=classes, ignore=ignore)}
    if history is None:
        history = (Epoch(6), Epoch(7, 0.4, 0.5, None if val is None else val + 0.2, val,
                                   None if val is None else val - 0.1, None))  # fmt: skip
    name = name or "-".join([*(f"{k}{v}" for k, v in {**(key or {}), **settings}.items())]) or "default"
    return FinishedRun(
        folder=folder or RunFolder(f"heads/{name}"),
        config=RunConfig(config, RunData(**run_data), 2654274, {"pathseg": "0.1.0"}, "cpu"),
        history=tuple(history),
        metrics=Metrics(**{"best_epoch": 7, "epochs": 30, "seconds": 83.0, "test_split": "testB", "splits": made,
                           **(metrics or {})}),
    )  # fmt: skip


def joined_run_of(*parts: Mapping[str, Any], **settings: Any) -> FinishedRun:
    """A run on joined stores: of each part its t, blocks and key."""
    sources = []
    for part in parts:
        (source,) = run_of(key=part.get("key"), blocks=part["blocks"]).data.sources
        sources.append(dataclasses.replace(source, store=f"/data/{source.key.model}.zarr"))
    t, blocks = tuple(part.get("t", 50) for part in parts), tuple(part["blocks"] for part in parts)
    return run_of("joined", t=t, blocks=blocks, data={"sources": tuple(sources), "channels": {}}, **settings)


@pytest.fixture(scope="session")
def make_joined_run():
    return joined_run_of


@pytest.fixture(scope="session")
def make_split():
    return split_of


@pytest.fixture(scope="session")
def make_run():
    return run_of
