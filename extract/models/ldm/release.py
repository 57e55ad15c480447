"""A latent-diffusion release as its authors publish it: a folder with a config and a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pathseg.extract.models.checkpoint import read_state_dict
from pathseg.extract.models.ldm.conditioning import conditioning_shapes
from pathseg.extract.models.ldm.config import (
    ConditioningDesign,
    FirstStageDesign,
    Schedule,
    UNetDesign,
    ZoomDesign,
    conditioning_design,
    first_stage_design,
    scale_factor_of,
    schedule_of,
    short,
    unet_design,
    uses_ema,
)
from pathseg.extract.models.ldm.first_stage import encoder_shapes
from pathseg.extract.models.ldm.unet import unet_shapes
from pathseg.extract.models.weights import check_weights, named_instead
from pathseg.store.runtime.regular_files import read_file

# The layouts of release folders: patterns of the config and of the checkpoint. The second is ZoomLDM's.
LAYOUTS = (("configs/*-project.yaml", "checkpoints/last.ckpt"), ("config.yaml", "weights.ckpt"))
LAYOUT = ", or ".join(f"{config} and {checkpoint}" for config, checkpoint in LAYOUTS)
LAYOUT += " (or .safetensors in place of .ckpt)"
UNET, EMA, FIRST_STAGE, CONDITIONING = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Release:
    """A latent diffusion model: the designs of its networks and their weights under CompVis' names.

    unet: the weights to use, so the EMA copy where the config says so. first_stage: encoder and quant_conv, without
    the decoder. conditioning_design: None for a model without a conditioning stage; `conditioning` is then empty.
    Every tensor has the shape that its design asks for. source: path of the checkpoint, for messages.
    """

    name: str
    source: str
    unet_design: UNetDesign
    first_stage_design: FirstStageDesign
    conditioning_design: ConditioningDesign | ZoomDesign | None
    schedule: Schedule
    scale_factor: float
    unet: Tensors
    first_stage: Tensors
    conditioning: Tensors


def read_release(folder: str | Path) -> Release:
    """Read a release folder in one of LAYOUTS without executing anything from it.

    Of several configs the last by name (newest) is used. The checkpoint may also be a `.safetensors` file.

    Raises FileNotFoundError where the folder or a file of it is missing; ValueError where config and checkpoint do
    not fit each other or describe a network that is not supported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no release folder {folder}; a folder with {LAYOUT} is needed")
    config, checkpoint = _find_files(folder)
    params = _read_config(config)
    tensors = read_state_dict(checkpoint, "state_dict")
    try:
        return release_from(params, tensors, name=folder.resolve().name, source=str(checkpoint))
    except _ConfigError as e:
        raise ValueError(f"{config}: {e}") from e


def _find_files(folder: Path) -> tuple[Path, Path]:
    """Return config and checkpoint of a folder: those of the first layout of which it has any."""
    for layout in LAYOUTS:
        config, checkpoint = layout
        configs = sorted(folder.glob(config))
        checkpoints = [path for suffix in (".ckpt", ".safetensors")
                       if (path := (folder / checkpoint).with_suffix(suffix)).is_file()]  # fmt: skip
        if configs and checkpoints:
            return configs[-1], checkpoints[0]
        if configs or checkpoints:
            lost = "checkpoint" if configs else "config"
            raise FileNotFoundError(f"release folder {folder} has no {lost}; {' and '.join(layout)} are needed")
    raise FileNotFoundError(f"release folder {folder} has no config and no checkpoint; {LAYOUT} are needed")


class _ConfigError(ValueError):
    """The config describes a network that is not supported."""


def release_from(params: dict[str, Any], tensors: Tensors, *, name: str, source: str) -> Release:
    """Make a release of the `model.params` of its config and the state dict of its checkpoint.

    Raises ValueError where the config is not supported, a tensor is missing, unexpected, of another shape or not
    finite, or config and checkpoint contradict each other.
    """
    try:
        unet, first_stage = unet_design(params), first_stage_design(params)
        conditioning, schedule = conditioning_design(params), schedule_of(params)
        scale_factor, use_ema = scale_factor_of(params), uses_ema(params)
    except ValueError as e:
        raise _ConfigError(*e.args) from e
    if unet.in_channels != first_stage.embed_dim:
        raise _ConfigError(f"the unet takes {unet.in_channels} channels, the first stage gives {first_stage.embed_dim}")
    if isinstance(conditioning, ZoomDesign) and conditioning.output_channels != unet.context_dim:
        raise _ConfigError(
            f"the unet takes context tokens of {unet.context_dim}, the conditioning stage gives "
            f"{conditioning.output_channels}"
        )
    if not any(name.startswith(UNET) for name in tensors):
        found = next((f"{UNET}{name.partition(UNET)[2]}" for name in tensors if UNET in name), UNET)
        raise ValueError(f"{source} has no tensor below {UNET}, {named_instead(tensors, found)}")
    release = Release(
        name=name,
        source=source,
        unet_design=unet,
        first_stage_design=first_stage,
        conditioning_design=conditioning,
        schedule=schedule,
        scale_factor=_stored_scale(tensors["scale_factor"], source) if "scale_factor" in tensors else scale_factor,
        unet=_unet_tensors(tensors, use_ema=use_ema),
        first_stage=_below(tensors, FIRST_STAGE, "encoder.", "quant_conv."),
        conditioning=_below(tensors, CONDITIONING),
    )
    context = {}
    if conditioning is not None and unet.context_dim is not None:
        context = conditioning_shapes(conditioning, unet.context_dim)
    check_weights(release.unet, unet_shapes(unet), f"{source} (unet)")
    check_weights(release.first_stage, encoder_shapes(first_stage), f"{source} (first stage)")
    check_weights(release.conditioning, context, f"{source} (conditioning)")
    _check_schedule(tensors, schedule, source)
    return release


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(read_file(path).decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: no UTF-8, or a date that does not exist
        raise ValueError(f"{path} is no YAML: {str(e).splitlines()[0]}") from e
    model = config.get("model") if isinstance(config, dict) else config
    params = model.get("params") if isinstance(model, dict) else model
    if not isinstance(params, dict):
        raise ValueError(f"{path} has no model.params with options, got {short(params)}; a CompVis config is needed")
    return params


def _below(tensors: Tensors, prefix: str, *modules: str) -> Tensors:
    """Return the tensors of a network, named without its prefix; only of `modules`, where some are given."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and name.removeprefix(prefix).startswith(modules or "")
    }


def _unet_tensors(tensors: Tensors, *, use_ema: bool) -> Tensors:
    """Return the EMA copy where the config uses one and the checkpoint holds it, otherwise the live weights.

    A pruned checkpoint has the EMA weights in the place of the live ones and no copy. CompVis names the tensors of
    the copy by those of the live weights without their dots.
    """
    live, averaged = _below(tensors, UNET), _below(tensors, EMA)
    if not (use_ema and averaged):
        return live
    named = {f"{UNET}{name}".removeprefix("model.").replace(".", ""): name for name in live}
    return {named.get(key, key): tensor for key, tensor in averaged.items() if key not in ("decay", "num_updates")}


def _stored_scale(tensor: torch.Tensor, source: str) -> float:
    value = float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else math.nan
    if not 0 < value < math.inf:
        found = f"shape {tuple(tensor.shape)}" if tensor.numel() != 1 else f"{tensor.item()}"
        raise ValueError(f"{source}: scale_factor must be one finite number above 0, got {found}; save it as a scalar")
    return value


def _check_schedule(tensors: Tensors, schedule: Schedule, source: str) -> None:
    """Raise ValueError where the checkpoint holds another noise schedule than the config describes."""
    if "alphas_cumprod" not in tensors:
        return
    buffer, computed = tensors["alphas_cumprod"], schedule.alpha_bars()
    if tuple(buffer.shape) != computed.shape or not buffer.is_floating_point():
        raise ValueError(
            f"{source}: alphas_cumprod must hold the {computed.size} floating-point numbers of its config's timesteps, "
            f"got {buffer.dtype} of shape {tuple(buffer.shape)}; give the config that belongs to the checkpoint"
        )
    stored = buffer.double().numpy()
    rounding = torch.finfo(buffer.dtype).eps  # coarser than the usual tolerance in a buffer saved in half precision
    if not np.allclose(stored, computed, rtol=max(1e-4, rounding), atol=1e-7):
        raise ValueError(
            f"{source} has a noise schedule of {stored.size} steps that ends at alpha_bar {stored[-1]:.4g}, but its "
            f"config one of {computed.size} steps that ends at {computed[-1]:.4g}; give the config that belongs to it"
        )
