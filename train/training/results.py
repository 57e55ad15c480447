"""What a run says of itself: its configuration and data, its scores on the test parts."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathseg.store.contents import Contents
from pathseg.store.features import FeatureStore
from pathseg.store.sampling import Sampling
from pathseg.train.config import IMAGE, Config
from pathseg.train.data.reader import FeatureReader
from pathseg.train.data.splits import Parts
from pathseg.train.heads.pixel_ensemble import image_uncertainty
from pathseg.train.metrics.instances import add_objects, image_sums, scored_class
from pathseg.train.metrics.object import ObjectSums
from pathseg.train.metrics.pixel import Scores, constant_answer
from pathseg.train.training.checkpoint import LAST, Trainee, input_channels
from pathseg.train.training.evaluation import Matrices, evaluate


class Beside:
    """What predicting the test images gives beside confusion matrices: pictures, objects, uncertainty."""

    def __init__(self, store: FeatureStore) -> None:
        self._store, self._countable = store, scored_class(store) is not None
        self._objects: dict[tuple[Path, int], ObjectSums] = {}
        self._unsure: dict[tuple[Path, int], float] = {}

    def keep(self, trainee: Trainee, index: int, codes: np.ndarray) -> None:
        """Write the predicted class codes (H, W) of an image, and count its objects where that is to be done."""
        trainee.run.write_prediction(self._store.ids[index], codes)
        if self._countable:
            self._objects[trainee.run.path, index] = image_sums(self._store, index, codes, trainee.config)

    def keep_uncertainty(self, trainee: Trainee, index: int, uncertainty: torch.Tensor) -> None:
        """Write the uncertainty (H, W) of an image, in nats, as a picture, and keep its score."""
        self._unsure[trainee.run.path, index] = image_uncertainty(uncertainty)
        share = uncertainty / math.log(max(2, len(self._store.classes)))  # of the most that K classes can disagree
        trainee.run.write_uncertainty(self._store.ids[index], share.cpu().numpy())

    def add_to(self, part: dict[str, Any], trainee: Trainee, indices: Sequence[int]) -> None:
        """Put what was kept of these images into the scores of a test part."""
        if self._countable:
            add_objects(part, [self._objects[trainee.run.path, index] for index in indices], trainee.config)
        for index, image in zip(indices, part["per_image"], strict=True):
            if (trainee.run.path, index) in self._unsure:
                image["uncertainty"] = self._unsure[trainee.run.path, index]


def write_results(trainees: Sequence[Trainee], reader: FeatureReader, parts: Parts, *, answer: int) -> None:
    """Predict the test parts with each head, score them beside the constant answer, and finish the runs.

    Objects are scored too where `scored_class` says so. metrics.json is written last; what only an unfinished run
    needs goes.
    """
    store, beside = reader.store, Beside(reader.store)
    scored: list[dict[str, Any]] = [{} for _ in trainees]
    for name, indices in parts.tests.items():
        judged = evaluate(trainees, reader, indices, keep=beside.keep, keep_uncertainty=beside.keep_uncertainty)
        for trainee, splits, (_, matrices) in zip(trainees, scored, judged, strict=True):
            splits[name] = _scores_of(store, matrices, answer)
            beside.add_to(splits[name], trainee, list(matrices))
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
            {
                "id": store.ids[i],
                **({} if (source := store.contents.images[i].source) is None else {"source": source}),
                "scores": Scores.of(matrix, store.ignore).to_dict(),
                "confusion": matrix.tolist(),
            }
            for i, matrix in matrices.items()
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
            "features": key.to_dict(),
            "sampling": Sampling.of(contents).to_dict(),
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
