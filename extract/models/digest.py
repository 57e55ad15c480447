"""The identity of a set of weights: equal exactly when the numbers that a model computes with are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch


def weights_digest(tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> str:
    """SHA-256, in hex, over names, shapes and float32 values of tensors, sorted by name, and over settings.

    Settings are the numbers outside the tensors that change results; they must be JSON. Paths, file formats and
    the order in a file do not enter.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].to("cpu", torch.float32).contiguous()
        digest.update(f"\n{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().astype("<f4", copy=False).data if values.numel() else b"")
    return digest.hexdigest()
