"""What a run says of itself: its configuration and data, its scores on the test parts."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pathseg.store.contents import Contents
from pathseg.store.features import FeatureStore
from pathseg.train.batches import FeatureReader
from pathseg.train.config import IMAGE, Config
from pathseg.train.evaluate import Matrices, evaluate
from pathseg.train.metrics import Scores, constant_answer
from pathseg.train.parts import Parts
from pathseg.train.pixels import image_uncertainty
from pathseg.train.trainee import LAST, Trainee, input_channels


def write_results(trainees: Sequence[Trainee], reader: FeatureReader, parts: Parts, *, answer: int) -> None:
    """Predict the test parts with each head, score them beside the constant answer, and finish the runs.

    metrics.json is written last; what only an unfinished run needs goes.
    """
    store = reader.store
    scored: list[dict[str, Any]] = [{} for _ in trainees]
    unsure: dict[tuple[Path, int], float] = {}

    def keep_uncertainty(trainee: Trainee, index: int, uncertainty: torch.Tensor) -> None:
        unsure[trainee.run.path, index] = image_uncertainty(uncertainty)
        share = uncertainty / math.log(max(2, len(store.classes)))  # of the most that K classes can disagree
        trainee.run.write_uncertainty(store.ids[index], share.cpu().numpy())

    for name, indices in parts.tests.items():
        judged = evaluate(
            trainees, reader, indices, keep=lambda t, i, c: t.run.write_prediction(store.ids[i], c),
            keep_uncertainty=keep_uncertainty,
        )  # fmt: skip
        for trainee, splits, (_, matrices) in zip(trainees, scored, judged, strict=True):
            splits[name] = _scores_of(store, matrices, answer)
            for index, image in zip(matrices, splits[name]["per_image"], strict=True):
                if (trainee.run.path, index) in unsure:
                    image["uncertainty"] = unsure[trainee.run.path, index]
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


def describe(store: FeatureStore, config: Config, parts: Parts, *, parameters: int, device: str) -> dict[str, Any]:
    """What config.json holds: the configuration, the data it saw, the versions that ran."""
    key, contents = store.contents.key, store.contents
    return {
        "head": dataclasses.asdict(config),
        "data": {
            "store": str(store.location),
            "key": key.digest,
            "digest": store.digest(),
            "dataset": key.dataset,
            **_models(contents, config),
            "classes": list(contents.classes),
            "ignore": contents.ignore,
            "mpp": key.mpp,
            "size": list(key.size),
            "layout": key.layout,
            "preprocessing": key.preprocessing,
            "channels": {str(block): count for block, count in input_channels(store, config).items() if block != IMAGE},
            "test_split": contents.test_split,
            "images": {name: [store.ids[i] for i in indices] for name, indices in parts.named().items()},
        },
        "parameters": parameters,
        "versions": versions(),
        "device": device,
    }


def versions() -> dict[str, str]:
    """What runs here, by name: pathseg and what its numbers come from."""
    return {name: importlib.metadata.version(name) for name in ("pathseg", "torch", "zarr", "numpy")}


def _models(contents: Contents, config: Config) -> dict[str, Any]:
    """The frozen model whose features a head reads; a baseline reads images, no features of the store's model."""
    key = contents.key
    frozen = {
        "name": key.model,
        "digest": key.model_digest,
        "trained": contents.model_trained,
        "condition": key.condition,
        "first_stage": key.first_stage,
    }
    if config.t is None:
        return {"model": {"name": "images", "trained": True, "condition": "none"}, "store_model": frozen}
    return {"model": frozen}
