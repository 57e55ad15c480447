"""What a release's config says about its networks, checked: what pathseg cannot rebuild exactly is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pathseg.store.blocks import BLOCKS
from pathseg.store.grid import PATCH_PX

UPSAMPLING_BLOCKS = len(BLOCKS) - 1

# Options of CompVis' UNetModel that change the network, with the only value that is rebuilt here.
UNET_RULES: dict[str, Any] = {
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "conv_resample": True,
    "num_classes": None,
    "n_embed": None,
    "dims": 2,
}
UNET_DEFAULTS = {**UNET_RULES, "use_spatial_transformer": False}  # what a config that is silent means in CompVis


@dataclass(frozen=True)
class UNetDesign:
    """The denoiser: a CompVis `UNetModel` with spatial transformers."""

    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]  # downsampling factors, not sides
    context_dim: int
    transformer_depth: int
    num_heads: int | None  # one of these two is given
    num_head_channels: int | None

    def __post_init__(self) -> None:
        blocks = len(self.channel_mult) * (self.num_res_blocks + 1)
        if blocks != UPSAMPLING_BLOCKS:
            raise ValueError(
                f"unet has {len(self.channel_mult)} levels of num_res_blocks + 1 = {self.num_res_blocks + 1} "
                f"upsampling blocks, {blocks} in all, but pathseg numbers {UPSAMPLING_BLOCKS}"
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
        if self.num_head_channels is not None:
            return tuple(c // self.num_head_channels for c in self.channels)
        assert self.num_heads is not None
        return (self.num_heads,) * len(self.channels)

    def blocks(self, latent_side: int) -> dict[int, tuple[int, int]]:
        """Block number -> (channels, side) of what it gives for latents of that side."""
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


@dataclass(frozen=True)
class ConditioningDesign:
    """SSLEmbedder (two tokens) or, without `region_embed_dim`, PatchEmbedder (one)."""

    patch_embed_dim: int
    region_embed_dim: int | None
    normalize: bool  # L2-normalise embeddings first


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
    """Read `model.params` of a config. Raises ValueError, naming the option, where the network is another one."""
    part = _part(params, "unet_config", ("UNetModel",))[1]
    for option, needed in UNET_RULES.items():
        value = part.get(option, UNET_DEFAULTS[option])
        if value != needed:
            raise ValueError(f"unet_config has {option}: {value}, but only {option}: {needed} is supported")
    key = params.get("conditioning_key", "crossattn")
    if key != "crossattn" or part.get("context_dim") is None:
        raise ValueError(
            f"the unet is conditioned by {key!r} with context_dim {part.get('context_dim')}, but only a unet with "
            "cross-attention (conditioning_key: crossattn and a context_dim) is supported"
        )
    if not isinstance(_need(part, "num_res_blocks", "unet_config"), int):
        raise ValueError(f"unet_config has num_res_blocks: {part['num_res_blocks']}, but one number is needed")
    heads, head_channels = (n if (n := part.get(o, -1)) != -1 else None for o in ("num_heads", "num_head_channels"))
    if heads is None and head_channels is None:
        raise ValueError("unet_config needs num_heads or num_head_channels, and has neither")
    names = ("in_channels", "out_channels", "model_channels", "num_res_blocks", "context_dim")
    return UNetDesign(
        **{name: _need(part, name, "unet_config") for name in names},
        channel_mult=tuple(_need(part, "channel_mult", "unet_config")),
        attention_resolutions=tuple(_need(part, "attention_resolutions", "unet_config")),
        transformer_depth=part.get("transformer_depth", 1),
        num_heads=heads,
        num_head_channels=head_channels,
    )


def first_stage_design(params: dict[str, Any]) -> FirstStageDesign:
    """Read `model.params` of a config. Raises ValueError, naming the option, where the encoder is another one."""
    kinds: dict[str, Literal["vq", "kl"]] = {"VQModelInterface": "vq", "VQModel": "vq", "AutoencoderKL": "kl"}
    target, part = _part(params, "first_stage_config", tuple(kinds))
    sizes = _need(part, "ddconfig", "first_stage_config")
    kind = kinds[target]
    needed = {"attn_resolutions": [], "double_z": kind == "kl", "in_channels": 3}
    for option, value in needed.items():
        if (found := _need(sizes, option, "ddconfig")) != value:
            raise ValueError(f"ddconfig has {option}: {found}, but only {option}: {value} is supported for {target}")
    return FirstStageDesign(
        kind,
        **{name: _need(sizes, name, "ddconfig") for name in ("ch", "num_res_blocks", "z_channels")},
        ch_mult=tuple(_need(sizes, "ch_mult", "ddconfig")),
        embed_dim=_need(part, "embed_dim", "first_stage_config"),
        n_embed=_need(part, "n_embed", "first_stage_config") if kind == "vq" else None,
    )


def conditioning_design(params: dict[str, Any]) -> ConditioningDesign:
    """Read `model.params` of a config; silent options have the defaults of the release's own classes."""
    target, part = _part(params, "cond_stage_config", ("SSLEmbedder", "PatchEmbedder"))
    two_tokens = target == "SSLEmbedder"
    return ConditioningDesign(
        patch_embed_dim=part.get("patch_embed_dim", 384 if two_tokens else 768),
        region_embed_dim=part.get("region_embed_dim", 768) if two_tokens else None,
        normalize=part.get("normalize_ssl", False),
    )


def schedule_of(params: dict[str, Any]) -> Schedule:
    """Read `model.params` of a config; silent options have CompVis' defaults."""
    if (kind := params.get("beta_schedule", "linear")) != "linear":
        raise ValueError(f"config has beta_schedule: {kind}, but only beta_schedule: linear is supported")
    start, end = params.get("linear_start", 1e-4), params.get("linear_end", 2e-2)
    return Schedule(float(start), float(end), int(params.get("timesteps", 1000)))  # YAML reads 1e-4 as a string


def _part(params: dict[str, Any], name: str, targets: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The class name and the parameters of a `{target, params}` entry."""
    entry = _need(params, name, "model.params")
    target = str(entry.get("target") if isinstance(entry, dict) else entry).rpartition(".")[2]
    if target not in targets:
        raise ValueError(f"config has the {name} target {target}, but only {' and '.join(targets)} are supported")
    return target, entry.get("params") or {}


def _need(options: dict[str, Any], name: str, where: str) -> Any:
    if name not in options:
        raise ValueError(f"config has no {name} in {where}; a CompVis *-project.yaml is needed")
    return options[name]
