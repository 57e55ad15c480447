"""The files of a diffusers pipeline: a folder with `model_index.json`, a UNet, an image encoder and a scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pathseg.extract.models.checkpoint import read_state_dict
from pathseg.extract.models.json_file import read_json_object

INDEX, UNET, SCHEDULER = "model_index.json", "unet", "scheduler"
FIRST_STAGES = ("vae", "vqvae")  # folders of the image encoder, by the pipeline's name for it; none in pixel space
# parts that do not change the features of an image with a given context: text, its tokens, pictures as prompts, filters
UNREAD = {
    "text_encoder",
    "text_encoder_2",
    "bert",
    "tokenizer",
    "tokenizer_2",
    "image_encoder",
    "feature_extractor",
} | {"safety_checker"}
WEIGHTS = "diffusion_pytorch_model"
SUFFIXES = (".safetensors", ".bin")
DIFFUSERS_LAYOUT = f"{INDEX}, unet/, scheduler/ and, of a latent diffusion model, vae/ or vqvae/"


@dataclass(frozen=True)
class Network:
    """A network of a pipeline.

    source: path of its weights, for messages. class_name: of diffusers. options: of its config.json. tensors: as they
    are in the file, under its names.
    """

    source: str
    class_name: str
    options: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class DiffusersFiles:
    """A pipeline as read from files.

    source: path of its folder, for messages. first_stage: None for a model of pixels. scheduler: its class's name and
    options. notes: what a user should know about the choice of files.
    """

    name: str
    source: str
    unet: Network
    first_stage: Network | None
    scheduler: tuple[str, Mapping[str, Any]]
    notes: tuple[str, ...]


def is_diffusers_folder(folder: Path) -> bool:
    """Return whether a folder holds a pipeline of diffusers: by the names of its files."""
    return (folder / INDEX).is_file() or (folder / UNET / "config.json").is_file()


def read_diffusers_folder(folder: Path) -> DiffusersFiles:
    """Read configs and weights of a pipeline's folder without executing anything from it.

    Raises FileNotFoundError where a file is missing; ValueError for a pipeline without a UNet or with a part of an
    unknown name, which may be an image encoder, for a config that is none, and weights that are sharded or unreadable.
    """
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"folder {folder} has no {INDEX}; a pipeline of diffusers has {DIFFUSERS_LAYOUT}")
    index = read_json_object(folder / INDEX, "that names the parts of a pipeline")
    classes = {name: _class_of(part) for name, part in index.items()}
    if not classes.get(UNET):
        others = [f"{name} ({class_name})" for name, class_name in classes.items() if class_name][:4]
        raise ValueError(
            f"{folder} is a {index.get('_class_name')!s:.80} without a unet, but with {', '.join(others) or 'nothing'}"
            "; pathseg reads pipelines whose denoiser is a UNet2DModel or UNet2DConditionModel"
        )
    known = {UNET, SCHEDULER, *FIRST_STAGES, *UNREAD}
    if unknown := [name for name, class_name in classes.items() if class_name and name not in known]:
        raise ValueError(
            f"{folder} is a {index.get('_class_name')!s:.80} with the part {unknown[0]!s:.80} "
            f"({classes[unknown[0]]:.80}), which pathseg does not know; if it is the image encoder, name its folder "
            f"and its entry in {INDEX} {' or '.join(FIRST_STAGES)}"
        )
    config = _folder_of(folder, SCHEDULER) / "scheduler_config.json"
    if not config.is_file():
        raise FileNotFoundError(f"folder {folder} has no {SCHEDULER}/{config.name}; a pipeline has {DIFFUSERS_LAYOUT}")
    schedule = read_json_object(config, "that describes a scheduler")
    notes: list[str] = []
    encoder = next((name for name in FIRST_STAGES if classes.get(name)), None)
    if encoder is None:
        notes.append("no image encoder: a model of pixels")
    return DiffusersFiles(
        name=folder.resolve().name,
        source=str(folder),
        unet=_read_network(_folder_of(folder, UNET), UNET, classes[UNET], notes),
        first_stage=None if encoder is None else _read_network(folder / encoder, encoder, classes[encoder], notes),
        scheduler=(str(schedule.get("_class_name", classes.get(SCHEDULER))), schedule),
        notes=tuple(notes),
    )


def _folder_of(folder: Path, part: str) -> Path:
    """Return the folder of a part; the first releases of DDPM have it beside the index."""
    return folder / part if (folder / part).is_dir() else folder


def _class_of(part: Any) -> str:
    """Return the class of an entry of the index, `[library, class]`; empty for entries that name none."""
    named = isinstance(part, list) and len(part) == 2 and isinstance(part[1], str)
    return part[1] if named else ""


def _read_network(folder: Path, part: str, class_name: str, notes: list[str]) -> Network:
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(
            f"folder {folder} has no config.json of the part {part} ({class_name:.80}) that {INDEX} names; a pipeline "
            f"has {DIFFUSERS_LAYOUT}"
        )
    options = read_json_object(config, "that describes a network")
    weights = _find_weights(folder, notes)
    return Network(
        source=str(weights),
        class_name=str(options.get("_class_name", class_name)),
        options=options,
        tensors=read_state_dict(weights, "state_dict"),
    )


def _find_weights(folder: Path, notes: list[str]) -> Path:
    """Return the file of weights: safetensors first; one in half precision only where there is no other."""
    names = [f"{WEIGHTS}{suffix}" for suffix in SUFFIXES]
    halves = [f"{WEIGHTS}.fp16{suffix}" for suffix in SUFFIXES]
    found = [name for name in (*names, *halves) if (folder / name).is_file()]
    if not found:
        if shards := sorted(folder.glob(f"{WEIGHTS}*.index*.json")):
            raise ValueError(
                f"{folder} has its weights in several files ({shards[0].name}), which pathseg does not read; save "
                "the model again with save_pretrained(max_shard_size='100GB')"
            )
        raise FileNotFoundError(f"folder {folder} has no {' and no '.join(names)}; these are the weights")
    if found[0] in halves:
        notes.append(f"{folder.name}: the weights are in half precision ({found[0]}), there are no others")
    return folder / found[0]
