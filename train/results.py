"""What a run says of itself: its configuration and data, its scores on the test parts."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import torch

from pathseg.store.features import FeatureStore
from pathseg.train.batches import FeatureReader
from pathseg.train.config import HeadConfig
from pathseg.train.evaluate import evaluate
from pathseg.train.metrics import Scores, constant_answer
from pathseg.train.parts import Parts
from pathseg.train.runs import RunFolder


def score_part(
    head: torch.nn.Module,
    reader: FeatureReader,
    indices: tuple[int, ...],
    run: RunFolder,
    *,
    device: torch.device,
    answer: int,
) -> dict[str, Any]:
    """Predict a test part into the run folder and score it, beside the constant answer of one class."""
    store = reader.store
    _, matrices = evaluate(
        head, reader, indices, device=device, keep=lambda i, codes: run.write_prediction(store.ids[i], codes)
    )
    whole = sum(matrices.values())
    constant = Scores.of(constant_answer(whole, answer), store.ignore)
    return {
        "images": len(indices),
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
            "channels": {str(block): contents.blocks[block].channels for block in config.blocks},
            "test_split": contents.test_split,
            "images": {name: [store.ids[i] for i in indices] for name, indices in parts.named().items()},
        },
        "parameters": parameters,
        "versions": {name: importlib.metadata.version(name) for name in ("pathseg", "torch", "zarr", "numpy")},
        "device": device,
    }
