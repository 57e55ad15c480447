"""The files of a timm model: a folder as on the Hugging Face hub, or an architecture's name and a file of weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from pathseg.extract.models.checkpoint import read_state_dict
from pathseg.extract.models.json_file import read_json_object

CONFIG, WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
HUB_LAYOUT = f"{CONFIG} and {' or '.join(WEIGHTS)}"
BESIDE = set(inspect.signature(VisionTransformer).parameters)  # arguments that old files have beside `architecture`
OWN = ("img_size", "num_classes")  # arguments that pathseg sets: the size is `input_px`, classifiers are left out


@dataclass(frozen=True)
class TimmFiles:
    """A timm model as read from files.

    source: path of the weights, for messages. architecture: a name that timm knows. arguments: of the architecture,
    JSON values. mean, std: of RGB in 0..1. tensors: as they are in the file, under its names. input_px: side of the
    images that the model was trained on, None where the file does not say.
    """

    name: str
    source: str
    architecture: str
    arguments: Mapping[str, Any]
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    tensors: Mapping[str, torch.Tensor]
    input_px: int | None = None


def is_hub_folder(folder: Path) -> bool:
    """Return whether a folder holds a timm or transformers model, not a release: by the names of its files."""
    return any((folder / name).is_file() for name in (CONFIG, *WEIGHTS))


def read_hub_folder(folder: Path) -> TimmFiles:
    """Read `config.json` and the weights of a folder without executing anything from it; safetensors come first.

    mean and std are None where the config has none. Raises FileNotFoundError where a file is missing; ValueError for
    the folder of a transformers model, a config that describes no architecture of timm, and unreadable weights.
    """
    path = folder / CONFIG
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if not path.is_file():
        raise FileNotFoundError(f"folder {folder} has no {CONFIG}; a timm model needs {HUB_LAYOUT}")
    config = read_json_object(path, "that names an architecture")
    if "architecture" not in config and "model_type" in config:
        raise ValueError(
            f"{folder} is a model of transformers ({CONFIG} has model_type {config['model_type']!s:.80}), which "
            f"pathseg does not read; take the model's timm folder, whose {CONFIG} names its architecture"
        )
    architecture = _known(config.get("architecture"), str(path))
    if weights is None:
        raise FileNotFoundError(f"folder {folder} has no {' and no '.join(WEIGHTS)}; a timm model needs {HUB_LAYOUT}")
    pretrained = config.get("pretrained_cfg", config)  # old files have all in one object
    arguments = config.get("model_args") or {}
    if not isinstance(pretrained, dict) or not isinstance(arguments, dict):
        raise ValueError(f"{path}: pretrained_cfg and model_args must be JSON objects; get the file again")
    beside = {name: value for name, value in config.items() if name in BESIDE and name not in arguments}
    return TimmFiles(
        name=folder.resolve().name,
        source=str(weights),
        architecture=architecture,
        arguments={name: value for name, value in {**beside, **arguments}.items() if name not in OWN},
        mean=_channels(pretrained.get("mean"), "mean", str(path)),
        std=_channels(pretrained.get("std"), "std", str(path)),
        tensors=read_state_dict(weights, "state_dict"),
        input_px=_side(pretrained.get("input_size")),
    )


def read_timm_weights(name: str, weights: Path) -> TimmFiles:
    """Read a file of weights for an architecture; mean and std are those of timm's own weights of that name.

    name: of timm, `vit_small_patch16_224` or with a tag, `vit_small_patch16_224.dino`. Raises FileNotFoundError;
    ValueError for a name that timm does not know and for unreadable weights.
    """
    architecture = _known(name.partition(".")[0], f"timm:{name}")
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return TimmFiles(
        name=name,
        source=str(weights),
        architecture=architecture,
        arguments={},
        mean=_channels(list(known.mean), "mean", name) if known else None,
        std=_channels(list(known.std), "std", name) if known else None,
        tensors=read_state_dict(weights, "state_dict"),
    )


def _known(architecture: Any, source: str) -> str:
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ValueError(
            f"{source} names no architecture that timm {timm.__version__} knows, but {str(architecture)[:80]!r}; "
            "timm.list_models() lists those, a newer timm may know it"
        )
    return architecture


def _side(input_size: Any) -> int | None:
    """Return the side of square images (3, side, side), None for anything else."""
    match input_size:
        case [3, int(height), int(width)] if height == width > 0:
            return height
    return None


def _channels(values: Any, name: str, source: str) -> tuple[float, float, float] | None:
    """Return three numbers, None for None. Raises ValueError for anything else, and for a std of 0 or less."""
    if values is None:
        return None
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
        above = " above 0" if name == "std" else ""
        raise ValueError(
            f"{source}: {name} must be three numbers{above}, one for each of R, G and B, got {str(values)[:80]}; "
            f"pass --{name} r,g,b"
        )
    red, green, blue = values
    return red, green, blue
