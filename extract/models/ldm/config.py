"""Designs of the networks, read from a release's config. An option that pathseg cannot rebuild exactly is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from reprlib import Repr
from typing import Any, Literal

import numpy as np

from pathseg.store.blocks import BLOCKS
from pathseg.store.grid import PATCH_PX

UPSAMPLING_BLOCKS = len(BLOCKS) - 1

_REPR = Repr()  # for messages: with YAML's aliases a file of some bytes can hold a value of gigabytes
_REPR.maxlevel = 2
short = _REPR.repr

# Options of CompVis' UNetModel that change the network, with the only supported value.
UNET_RULES: dict[str, Any] = {
    "use_linear_in_transformer": False,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "conv_resample": True,
    "num_classes": None,
    "n_embed": None,
    "dims": 2,
}
# The same with and without a conditioning stage. The values without one are also CompVis' defaults.
WITH_STAGE: dict[str, Any] = {"use_spatial_transformer": True}
WITHOUT_STAGE: dict[str, Any] = {"use_spatial_transformer": False, "context_dim": None, "num_heads_upsample": -1}

MOST = 1_000_000  # above every width and length of an existing network
DEEPEST = 100  # above every number of consecutive layers
NORM_GROUPS = 32  # of every group norm in CompVis' networks

# Of ZoomLDM's EmbeddingViT2_5; its config does not hold them.
ZOOM_HEADS = 8  # attention heads
ZOOM_SIDE = 8  # cells of the largest map of embeddings a side; larger ones are averaged down to it
ZOOM_TOKENS = 1 + ZOOM_SIDE**2  # the magnification's and one for each cell
ZOOM_MAGNIFICATIONS = 8  # 20x, 10x, 5x, ..., each half of the one before

# The kinds of values of an option, as error messages name them.
OPTIONS, FLAG = "a mapping of options", "true or false"
WHOLE, DEPTH = f"a whole number from 1 to {MOST}", f"a whole number from 1 to {DEEPEST}"
WHOLES, SOME = f"a list of whole numbers from 1 to {MOST}", f"a list, empty or of whole numbers from 1 to {MOST}"
SHARE, POSITIVE = "a number above 0 and below 1", "a finite number above 0"


@dataclass(frozen=True)
class UNetDesign:
    """The denoiser: a CompVis `UNetModel`, with spatial transformers or, without a context, plain self-attention."""

    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]  # downsampling factors, not sides
    context_dim: int | None  # None: attends to itself alone, and transformer_depth has no meaning
    transformer_depth: int
    num_heads: int | None  # one of these two is given
    num_head_channels: int | None
    new_attention_order: bool = False  # of plain self-attention: all q, then k, then v; otherwise head by head

    def __post_init__(self) -> None:
        _check_groups("unet", self.channels)
        blocks = len(self.channel_mult) * (self.num_res_blocks + 1)
        if blocks != UPSAMPLING_BLOCKS:
            raise ValueError(
                f"unet has {len(self.channel_mult)} levels of num_res_blocks + 1 = {self.num_res_blocks + 1} "
                f"upsampling blocks, {blocks} in all, but pathseg numbers {UPSAMPLING_BLOCKS}"
            )
        last = len(self.channels) - 1  # the middle attends at this level, whatever attention_resolutions says
        width, name = self.num_head_channels, "num_heads" if self.num_head_channels is None else "num_head_channels"
        for level, channels in enumerate(self.channels):
            divisor = width if width is not None else self.num_heads
            if (self.attends(level) or level == last) and channels % (divisor or 1):
                raise ValueError(
                    f"{name} of the unet must divide the channels of every level with attention, got {divisor} for "
                    f"{channels} channels at level {level} (0 = finest); give the config that belongs to the checkpoint"
                )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    def attends(self, level: int) -> bool:
        """Whether the residual layers of a level (0 = finest) are followed by attention."""
        return 2**level in self.attention_resolutions

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level, finest first."""
        return tuple(self.heads_of(channels) for channels in self.channels)

    def heads_of(self, channels: int) -> int:
        """Attention heads over that many channels."""
        if self.num_head_channels is not None:
            return channels // self.num_head_channels
        assert self.num_heads is not None
        return self.num_heads

    def blocks(self, latent_side: int) -> dict[int, tuple[int, int]]:
        """Return block number -> (channels, side) of its output for latents of that side."""
        last = len(self.channels) - 1
        sizes = [(self.channels[last], latent_side >> last)]
        for level in range(last, -1, -1):
            sizes += [(self.channels[level], latent_side >> level)] * (self.num_res_blocks + 1)
            if level:  # the last block of a level ends with its upsampling layer
                sizes[-1] = (self.channels[level], latent_side >> (level - 1))
        return dict(enumerate(sizes))


@dataclass(frozen=True)
class FirstStageDesign:
    """The image encoder: CompVis' VQ or KL autoencoder without attention in its levels."""

    kind: Literal["vq", "kl"]
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    embed_dim: int
    n_embed: int | None = None  # codebook entries, VQ only

    def __post_init__(self) -> None:
        _check_groups("first stage", self.channels)

    @property
    def factor(self) -> int:
        """Image side / latent side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def name(self) -> str:
        """`vq-f4`, `kl-f8`, …"""
        return f"{self.kind}-f{self.factor}"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(z, h, w) of a patch."""
        side = PATCH_PX // self.factor
        return self.embed_dim, side, side

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.ch * mult for mult in self.ch_mult)


def _check_groups(network: str, channels: tuple[int, ...]) -> None:
    if wrong := [number for number in channels if number % NORM_GROUPS]:
        raise ValueError(
            f"the channels of every level of the {network} must be a multiple of {NORM_GROUPS}, the groups of its "
            f"norms, got {wrong[0]}; correct the config"
        )


@dataclass(frozen=True)
class ConditioningDesign:
    """SSLEmbedder (two tokens) or, without `region_embed_dim`, PatchEmbedder (one)."""

    patch_embed_dim: int
    region_embed_dim: int | None
    normalize: bool  # L2-normalise embeddings first


@dataclass(frozen=True)
class ZoomDesign:
    """ZoomLDM's EmbeddingViT2_5: a transformer over the embeddings of the 20x patches that an image covers."""

    num_layers: int
    input_channels: int  # width of the embeddings
    hidden_channels: int
    output_channels: int  # width of the context tokens
    vit_mlp_dim: int

    def __post_init__(self) -> None:
        if self.hidden_channels % ZOOM_HEADS:
            raise ValueError(
                f"hidden_channels of EmbeddingViT2_5 must be a multiple of its {ZOOM_HEADS} attention heads, got "
                f"{self.hidden_channels}; give the config that belongs to the checkpoint"
            )


@dataclass(frozen=True)
class Schedule:
    """CompVis' "linear" schedule, which is linear in sqrt(beta)."""

    linear_start: float
    linear_end: float
    timesteps: int

    def alpha_bars(self) -> np.ndarray:
        """The cumulative products of 1 - beta: (timesteps,) float64, index t counts from 0."""
        betas = np.linspace(self.linear_start**0.5, self.linear_end**0.5, self.timesteps) ** 2
        return np.cumprod(1 - betas)


def unet_design(params: dict[str, Any]) -> UNetDesign:
    """Read `model.params` of a config. Raises ValueError, naming the option, for a network that is not supported."""
    options, conditional = _network(params, "unet_config", ("UNetModel",))[1], _has_stage(params)
    for option, needed in (UNET_RULES | (WITH_STAGE if conditional else WITHOUT_STAGE)).items():
        if (value := options.get(option, (UNET_RULES | WITHOUT_STAGE)[option])) != needed:
            stage = "" if option in UNET_RULES else f" {'with' if conditional else 'without'} a cond_stage_config"
            raise ValueError(
                f"unet_config has {option}: {short(value)}, but only {option}: {needed} is supported{stage}"
            )
    key = params.get("conditioning_key", "crossattn")
    if conditional and (key != "crossattn" or options.get("context_dim") is None):
        raise ValueError(
            f"the unet is conditioned by {short(key)} with context_dim {short(options.get('context_dim'))}, but only a "
            "unet with cross-attention (conditioning_key: crossattn and a context_dim) is supported"
        )
    need = partial(_need, options, where="model.params.unet_config.params")
    given = [option for option in ("num_heads", "num_head_channels") if options.get(option) not in (None, -1)]
    if not given:
        raise ValueError("unet_config needs num_heads or num_head_channels, and has neither")
    return UNetDesign(
        **{name: need(name, WHOLE) for name in ("in_channels", "out_channels", "model_channels")},
        context_dim=need("context_dim", WHOLE) if conditional else None,
        channel_mult=tuple(need("channel_mult", WHOLES)),
        num_res_blocks=need("num_res_blocks", DEPTH),
        attention_resolutions=tuple(need("attention_resolutions", SOME)),
        transformer_depth=need("transformer_depth", DEPTH, default=1),
        num_heads=need("num_heads", WHOLE) if "num_heads" in given else None,
        num_head_channels=need("num_head_channels", WHOLE) if "num_head_channels" in given else None,
        new_attention_order=not conditional and need("use_new_attention_order", FLAG, default=False),
    )


def first_stage_design(params: dict[str, Any]) -> FirstStageDesign:
    """Read `model.params` of a config. Raises ValueError, naming the option, for an encoder that is not supported."""
    kinds: dict[str, Literal["vq", "kl"]] = {"VQModelInterface": "vq", "VQModel": "vq", "AutoencoderKL": "kl"}
    target, options = _network(params, "first_stage_config", tuple(kinds))
    need = partial(_need, options, where="model.params.first_stage_config.params")
    sizes = need("ddconfig", OPTIONS)
    need_size = partial(_need, sizes, where="model.params.first_stage_config.params.ddconfig")
    kind = kinds[target]
    needed = {"attn_resolutions": [], "double_z": kind == "kl", "in_channels": 3}
    for option, value in needed.items():
        if (found := need_size(option)) != value:
            raise ValueError(
                f"ddconfig has {option}: {short(found)}, but only {option}: {value} is supported for {target}"
            )
    return FirstStageDesign(
        kind,
        **{name: need_size(name, WHOLE) for name in ("ch", "z_channels")},
        num_res_blocks=need_size("num_res_blocks", DEPTH),
        ch_mult=tuple(need_size("ch_mult", WHOLES)),
        embed_dim=need("embed_dim", WHOLE),
        n_embed=need("n_embed", WHOLE) if kind == "vq" else None,
    )


def conditioning_design(params: dict[str, Any]) -> ConditioningDesign | ZoomDesign | None:
    """Read `model.params` of a config: None without a conditioning stage.

    Missing options of SSLEmbedder and PatchEmbedder have their class's defaults. Raises ValueError as `zoom_design`,
    and for another class.
    """
    if not _has_stage(params):
        return None
    target, options = _network(params, "cond_stage_config", ("SSLEmbedder", "PatchEmbedder", "EmbeddingViT2_5"))
    if target == "EmbeddingViT2_5":
        return zoom_design(options)
    need = partial(_need, options, where="model.params.cond_stage_config.params")
    two_tokens = target == "SSLEmbedder"
    return ConditioningDesign(
        patch_embed_dim=need("patch_embed_dim", WHOLE, default=384 if two_tokens else 768),
        region_embed_dim=need("region_embed_dim", WHOLE, default=768) if two_tokens else None,
        normalize=need("normalize_ssl", FLAG, default=False),
    )


def zoom_design(options: Mapping[str, Any]) -> ZoomDesign:
    """Read the `params` of an EmbeddingViT2_5. Raises ValueError for an option that is missing or of another kind."""
    need = partial(_need, options, where="model.params.cond_stage_config.params")
    sizes = ("input_channels", "hidden_channels", "output_channels", "vit_mlp_dim")
    return ZoomDesign(num_layers=need("num_layers", DEPTH), **{name: need(name, WHOLE) for name in sizes})


def schedule_of(params: dict[str, Any]) -> Schedule:
    """Read `model.params` of a config; missing options have CompVis' defaults."""
    if (kind := params.get("beta_schedule", "linear")) != "linear":
        raise ValueError(f"config has beta_schedule: {short(kind)}, but only beta_schedule: linear is supported")
    need = partial(_need, params, where="model.params")
    start, end = need("linear_start", SHARE, default=1e-4), need("linear_end", SHARE, default=2e-2)
    return Schedule(float(start), float(end), need("timesteps", WHOLE, default=1000))


def scale_factor_of(params: dict[str, Any]) -> float:
    """Read the factor that latents are multiplied by from `model.params` of a config, by default 1."""
    return float(_need(params, "scale_factor", POSITIVE, where="model.params", default=1.0))


def uses_ema(params: dict[str, Any]) -> bool:
    """Read from `model.params` of a config whether the EMA weights are used, which is CompVis' default."""
    return bool(_need(params, "use_ema", FLAG, where="model.params", default=True))


def _has_stage(params: dict[str, Any]) -> bool:
    return params.get("cond_stage_config") not in (None, "__is_unconditional__")  # CompVis' word for none


def _network(params: dict[str, Any], name: str, targets: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The class name and the parameters of a `{target, params}` entry."""
    entry = _need(params, name, where="model.params")
    path = entry.get("target") if isinstance(entry, dict) else entry
    target = path.rpartition(".")[2] if isinstance(path, str) else short(path)
    if target not in targets:
        raise ValueError(f"config has the {name} target {target}, but only {' and '.join(targets)} are supported")
    entry = _need(params, name, OPTIONS, where="model.params")
    if entry.get("params") is None:
        return target, {}
    return target, _need(entry, "params", OPTIONS, where=f"model.params.{name}")


def _need(options: Mapping[str, Any], name: str, kind: str | None = None, *, where: str, default: Any = ...) -> Any:
    """Return an option of the mapping at `where`. Raises ValueError if it is missing or of another kind."""
    value = options.get(name, default)
    if value is ...:
        raise ValueError(f"config has no {name} in {where}; a CompVis config is needed")
    if kind is not None and not _FITS[kind](value):
        raise ValueError(f"{where}.{name} must be {kind}, got {short(value)}; correct it in the config")
    return value


def _is_whole(value: Any, most: int = MOST) -> bool:
    return type(value) is int and 1 <= value <= most  # not a bool, which is an int in Python


def _number(value: Any) -> float:
    """Return a number, also from a string, since YAML reads 1e-4 as one; NaN for anything else."""
    try:
        return float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        return math.nan


_FITS: dict[str, Callable[[Any], bool]] = {
    OPTIONS: lambda value: isinstance(value, dict),
    FLAG: lambda value: isinstance(value, bool),
    WHOLE: _is_whole,
    DEPTH: lambda value: _is_whole(value, DEEPEST),
    WHOLES: lambda value: isinstance(value, list) and len(value) > 0 and all(map(_is_whole, value)),
    SOME: lambda value: isinstance(value, list) and all(map(_is_whole, value)),
    SHARE: lambda value: 0 < _number(value) < 1,
    POSITIVE: lambda value: 0 < _number(value) < math.inf,
}
