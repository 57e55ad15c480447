"""What a run says of itself: its configuration and data, its scores on the test parts."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from pathseg.store.features import FeatureStore
from pathseg.store.sampling import Sampling
from pathseg.train.batches import FeatureReader
from pathseg.train.config import HeadConfig
from pathseg.train.evaluate import Matrices, evaluate
from pathseg.train.metrics import Scores, constant_answer
from pathseg.train.parts import Parts
from pathseg.train.trainee import LAST, Trainee


def write_results(trainees: Sequence[Trainee], reader: FeatureReader, parts: Parts, *, answer: int) -> None:
    """Predict the test parts with each head, score them beside the constant answer, and finish the runs.

    metrics.json is written last; what only an unfinished run needs goes.
    """
    store = reader.store
    scored: list[dict[str, Any]] = [{} for _ in trainees]
    for name, indices in parts.tests.items():
        judged = evaluate(trainees, reader, indices, keep=lambda t, i, c: t.run.write_prediction(store.ids[i], c))
        for splits, (_, matrices) in zip(scored, judged, strict=True):
            splits[name] = _scores_of(store, matrices, answer)
    for trainee, splits in zip(trainees, scored, strict=True):
        trainee.run.write_metrics(
            {
                "best_epoch": trainee.best_epoch,
                "epochs": trainee.epoch,
                "seconds": trainee.seconds,
                "bytes_read": reader.bytes_read,
                "heads_from_one_read": len(trainees),
                "test_split": store.contents.test_split,
                "splits": splits,
            }
        )
        (trainee.run.path / LAST).unlink(missing_ok=True)


def _scores_of(store: FeatureStore, matrices: Matrices, answer: int) -> dict[str, Any]:
    whole = sum(matrices.values())
    constant = Scores.of(constant_answer(whole, answer), store.ignore)
    return {
        "images": len(matrices),
        "scores": Scores.of(whole, store.ignore).to_dict(),
        "confusion": whole.tolist(),
        "constant": {"class": store.classes[answer], "scores": constant.to_dict()},
        "per_image": [
            {"id": store.ids[i], "scores": Scores.of(matrix, store.ignore).to_dict()} for i, matrix in matrices.items()
        ],
    }


def describe(store: FeatureStore, config: HeadConfig, parts: Parts, *, parameters: int, device: str) -> dict[str, Any]:
    """What config.json holds: the configuration, the data it saw, the versions that ran."""
    key, contents = store.contents.key, store.contents
    return {
        "head": dataclasses.asdict(config),
        "data": {
            "store": str(store.location),
            "key": key.digest,
            "digest": store.digest(),
            "dataset": key.dataset,
            "model": {
                "name": key.model,
                "digest": key.model_digest,
                "trained": contents.model_trained,
                "condition": key.condition,
                "first_stage": key.first_stage,
            },
            "classes": list(contents.classes),
            "ignore": contents.ignore,
            "mpp": key.mpp,
            "size": list(key.size),
            "layout": key.layout,
            "preprocessing": key.preprocessing,
            "features": key.to_dict(),
            "sampling": Sampling.of(contents).to_dict(),
            "channels": {str(block): contents.blocks[block].channels for block in config.blocks},
            "test_split": contents.test_split,
            "images": {name: [store.ids[i] for i in indices] for name, indices in parts.named().items()},
        },
        "parameters": parameters,
        "versions": {name: importlib.metadata.version(name) for name in ("pathseg", "torch", "zarr", "numpy")},
        "device": device,
    }
