"""A latent-diffusion release as its authors publish it: a folder with a config and a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pathseg.extract.architecture import (
    ConditioningDesign,
    FirstStageDesign,
    Schedule,
    UNetDesign,
    conditioning_design,
    first_stage_design,
    schedule_of,
    unet_design,
)
from pathseg.extract.pickles import read_checkpoint
from pathseg.extract.shapes import check_shapes, conditioning_shapes, encoder_shapes, unet_shapes

LAYOUT = "configs/*-project.yaml and checkpoints/last.ckpt (or checkpoints/last.safetensors)"
UNET, EMA, FIRST_STAGE, CONDITIONING = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Release:
    """A latent diffusion model: how its networks are made and their weights, under CompVis' names.

    unet: the weights to use, so the EMA copy where the config says so. first_stage: encoder and quant_conv alone.
    Every tensor has the shape that the designs ask for. source: where it was read from, for messages.
    """

    name: str
    source: str
    unet_design: UNetDesign
    first_stage_design: FirstStageDesign
    conditioning_design: ConditioningDesign
    schedule: Schedule
    scale_factor: float
    unet: Tensors
    first_stage: Tensors
    conditioning: Tensors


def read_release(folder: str | Path) -> Release:
    """Read a release folder; nothing in it is executed. Of several configs the last by name (the newest) counts.

    Raises FileNotFoundError where the folder or a file of it is missing; ValueError where config and checkpoint do
    not fit each other or ask for a network that is not supported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no release folder {folder}; a folder with {LAYOUT} is needed")
    configs = sorted(folder.glob("configs/*-project.yaml"))
    checkpoints = sorted(folder.glob("checkpoints/last.ckpt")) + sorted(folder.glob("checkpoints/last.safetensors"))
    for found, what in ((configs, "config"), (checkpoints, "checkpoint")):
        if not found:
            raise FileNotFoundError(f"release folder {folder} has no {what}; {LAYOUT} are needed")
    params = _read_config(configs[-1])
    content = read_checkpoint(checkpoints[0])
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise ValueError(f"{checkpoints[0]} holds no state_dict, so it is no checkpoint of a latent diffusion model")
    try:
        return release_from(params, state, name=folder.resolve().name, source=str(checkpoints[0]))
    except _ConfigError as e:
        raise ValueError(f"{configs[-1]}: {e}") from e


class _ConfigError(ValueError):
    """The config asks for what is not supported."""


def release_from(params: dict[str, Any], state: Mapping[str, Any], *, name: str, source: str) -> Release:
    """A release from the `model.params` of its config and the state dict of its checkpoint.

    Raises ValueError where the config is not supported, a tensor is missing, unexpected or of another shape, or two
    statements disagree.
    """
    try:
        unet, first_stage = unet_design(params), first_stage_design(params)
        conditioning, schedule = conditioning_design(params), schedule_of(params)
    except ValueError as e:
        raise _ConfigError(*e.args) from e
    if unet.in_channels != first_stage.embed_dim:
        raise _ConfigError(f"the unet takes {unet.in_channels} channels, the first stage gives {first_stage.embed_dim}")
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    release = Release(
        name=name,
        source=source,
        unet_design=unet,
        first_stage_design=first_stage,
        conditioning_design=conditioning,
        schedule=schedule,
        scale_factor=float(tensors.get("scale_factor", params.get("scale_factor", 1.0))),
        unet=_unet_tensors(tensors, unet, use_ema=params.get("use_ema", True)),  # CompVis' default
        first_stage=_below(tensors, FIRST_STAGE + "encoder.", FIRST_STAGE + "quant_conv."),
        conditioning=_below(tensors, CONDITIONING),
    )
    check_shapes(release.unet, unet_shapes(unet), f"{source} (unet)")
    check_shapes(release.first_stage, encoder_shapes(first_stage), f"{source} (first stage)")
    check_shapes(release.conditioning, conditioning_shapes(conditioning, unet.context_dim), f"{source} (conditioning)")
    _check_schedule(tensors, schedule, source)
    return release


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is no YAML: {str(e).splitlines()[0]}") from e
    try:
        params = config["model"]["params"]
    except (KeyError, TypeError) as e:
        raise ValueError(f"{path} has no model.params; a CompVis *-project.yaml is needed") from e
    return params


def _below(tensors: Tensors, *prefixes: str) -> Tensors:
    """The tensors whose names start so, named from after the part's own prefix."""
    part = len(prefixes[0].split(".")[0]) + 1
    return {name[part:]: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}


def _unet_tensors(tensors: Tensors, design: UNetDesign, *, use_ema: bool) -> Tensors:
    """The EMA copy when the config uses one; where the file has none it was pruned, and its live weights are it.

    CompVis names the copy's tensors by dropping the dots, so the names are recognised from the design.
    """
    averaged = _below(tensors, EMA)
    if use_ema and averaged:
        named = {f"diffusion_model.{name}".replace(".", ""): name for name in unet_shapes(design)}
        counters = ("decay", "num_updates")
        return {named.get(key, key): tensor for key, tensor in averaged.items() if key not in counters}
    prefix = len(UNET)
    return {name[prefix:]: tensor for name, tensor in tensors.items() if name.startswith(UNET)}


def _check_schedule(tensors: Tensors, schedule: Schedule, source: str) -> None:
    """The schedule is computed from the config; a checkpoint that carries another one is refused."""
    if "alphas_cumprod" not in tensors:
        return
    stored, computed = tensors["alphas_cumprod"].double().numpy(), schedule.alpha_bars()
    if stored.shape != computed.shape or not np.allclose(stored, computed, rtol=1e-4, atol=1e-7):
        raise ValueError(
            f"{source} has a noise schedule of {stored.size} steps that ends at alpha_bar {stored[-1]:.4g}, but its "
            f"config one of {computed.size} steps that ends at {computed[-1]:.4g}"
        )
