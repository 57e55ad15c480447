"""Features of a diffusers pipeline: its own UNet, image encoder and noise schedule, one denoiser pass."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, cast

import diffusers
import numpy as np
import torch
from torch import nn

from pathseg.extract.models.arithmetic import fixed_arithmetic, skip_divisions_by_one
from pathseg.extract.models.checkpoint import read_state_dict
from pathseg.extract.models.denoiser_features import DenoiserFeatures
from pathseg.extract.models.diffusers_files import DiffusersFiles, Network
from pathseg.extract.models.hooks import block_modules, captured
from pathseg.extract.models.ldm.config import DEEPEST, MOST, short
from pathseg.extract.models.patches import network_input
from pathseg.extract.models.weights import check_weights, load_frozen, shapes_of, weights_digest
from pathseg.store.blocks import MAX_BLOCK
from pathseg.store.grid import HEAD_CELLS, PATCH_PX
from pathseg.store.key import DiffusersSettings

if TYPE_CHECKING:
    from pathseg.extract.models.feature_model import Images

Built = TypeVar("Built")

UNETS: dict[str, Any] = {"UNet2DModel": diffusers.UNet2DModel, "UNet2DConditionModel": diffusers.UNet2DConditionModel}
ENCODERS: dict[str, Any] = {"AutoencoderKL": diffusers.AutoencoderKL, "VQModel": diffusers.VQModel}
# Blocks whose layers run one after another, so that their outputs are numbered as in CompVis' UNet, and whose attention
# gives the same for any number of zero tokens. In other blocks layers are skipped, or tokens are added to the cells.
BLOCK_TYPES = (
    *("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
    *("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    *("UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
)
# Options of a UNet that ask for more inputs than latents, a timestep, context tokens and a class: the supported value.
UNET_RULES = {
    "addition_embed_type": None,  # SDXL: pooled text, sizes
    "encoder_hid_dim_type": None,  # Kandinsky, DeepFloyd: other embeddings than context tokens
    "encoder_hid_dim": None,
    "class_embed_type": None,  # not the number of a class
    "dual_cross_attention": False,
    "time_embedding_type": "positional",
}
WITHOUT_EFFECT = ("sample_size", "dropout")  # options of a UNet that change no feature
ENCODER_OPTIONS = (  # those of an image encoder that its decoder alone does not have
    *("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "act_fn", "latent_channels"),
    *("norm_num_groups", "mid_block_add_attention", "use_quant_conv", "vq_embed_dim"),
)
DECODER = ("decoder", "post_quant_conv", "quantize")  # modules of an autoencoder that encoding does not run
SCHEDULE = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
PREDICTIONS = ("epsilon", "v_prediction", "sample")  # of models trained on equation 3
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.15


class DiffusersFeatures(DenoiserFeatures):
    """A diffusers pipeline as a FeatureModel: a denoiser of latents or, without an image encoder, of pixels.

    Blocks are numbered as `hooks.block_modules` says; those finer than the head's grid are left out.
    """

    condition: Literal["ssl", "none"] = "none"

    def __init__(
        self,
        files: DiffusersFiles,
        *,
        context: Path | None = None,
        class_label: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """Build the networks with diffusers' own classes and the schedule with its scheduler.

        context: a file that holds the context tokens (L, c) for all images; by default they are zero. class_label: of
        all images, by default the class embedding is zero.

        Raises ValueError for networks and schedulers that are not supported, weights that are not theirs, and a
        context or class that the denoiser does not take; FileNotFoundError.
        """
        self.name, self.trained = files.name, True
        self.device = torch.device(device)
        unet = _unet(files.unet)
        vae = None if files.first_stage is None else _encoder(files.first_stage)
        scale, shift = (1.0, 0.0) if files.first_stage is None else _scaling(files.first_stage, vae)
        alpha_bars = _alpha_bars(*files.scheduler)
        self.timesteps = len(alpha_bars)
        self.latent_shape = (3, PATCH_PX, PATCH_PX) if vae is None else _latent_shape(vae, files)
        if unet.config.in_channels != self.latent_shape[0]:
            raise ValueError(
                f"{files.unet.source}: the unet takes {unet.config.in_channels} channels, but "
                f"{'an image' if vae is None else 'the image encoder'} gives {self.latent_shape[0]}; pathseg does not "
                "compute the other inputs of inpainting, upscaling, depth or editing models"
            )
        self.blocks = _block_sizes(unet, self.latent_shape, files)
        self.default_blocks = tuple(self.blocks)
        tokens = _context_tokens(unet, context, files)
        self._class_label = _class_label(unet, class_label, files)
        kind: Literal["none", "zero", "file"] = "none" if tokens is None else "file" if context else "zero"
        self.diffusers = DiffusersSettings(kind, class_label)
        zero = [
            f"the {name} is zero; pass {flag} for another"
            for name, flag, is_zero in (
                ("context", "--context FILE", kind == "zero"),
                ("class embedding", "--class-label", _takes_class(unet) and class_label is None),
            )
            if is_zero
        ]
        self.notes = (*files.notes, *zero)
        networks = {"unet": _fitted(files.unet, unet)}
        if vae is not None and files.first_stage is not None:
            networks["first_stage"] = _fitted(files.first_stage, vae)
        self.first_stage = "none" if vae is None else _name_of(files.first_stage, self.latent_shape)
        self.digest = _digest(files, networks, alpha_bars, tokens if context else None, class_label, (scale, shift))
        self._unet = skip_divisions_by_one(load_frozen(unet, networks["unet"]))
        cast(nn.Module, self._unet).to(self.device)
        if _takes_class(unet) and class_label is None:
            unet.class_embedding.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
        self._vae = None
        if vae is not None:
            self._vae = skip_divisions_by_one(load_frozen(vae, networks["first_stage"])).to(self.device)
        self._scale, self._shift = scale, shift
        self._alpha_bars = alpha_bars
        self._tokens = None if tokens is None else tokens.to(self.device)

    def embed(self, images: Images) -> NoReturn:
        """Raise ValueError: there is no ViT."""
        raise ValueError(f"model {self.name} is a diffusers pipeline and has no ViT; use features")

    @torch.inference_mode()
    def encode(self, images: Images) -> torch.Tensor:
        """Compute the latents (N, z, h, w) as the pipeline scales them; of a model of pixels the images in [-1, 1].

        Of a KL encoder they are the posterior's mean, of a VQ encoder they are not quantised.
        """
        pixels = network_input(images, self.device).contiguous()
        if self._vae is None:
            return pixels
        with fixed_arithmetic(self.device):
            encoded = self._vae.encode(pixels)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        return (latents - self._shift) * self._scale

    @torch.inference_mode()
    def prepare(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute z0 (N, z, h, w) and the context tokens (N, L, c), L = 0 of an unconditional UNet."""
        z0 = self.encode(images)
        if self._tokens is None:
            return z0, z0.new_zeros(len(z0), 0, 0)
        return z0, self._tokens.expand(len(z0), -1, -1)

    def _run(self, zt: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> None:
        labels = None
        if self._class_label is not None:
            labels = torch.full((len(zt),), self._class_label, device=self.device)
        self._unet(zt, t, *([context] if context.shape[1] else []), class_labels=labels)


def _unet(network: Network) -> Any:
    """Build the denoiser of a pipeline on the meta device. Raises ValueError for one that is not supported."""
    _require_class(network, UNETS)
    options = network.options
    for option, needed in UNET_RULES.items():
        if (value := options.get(option, needed)) != needed:
            raise ValueError(
                f"{network.source}: the unet has {option}: {short(value)}, so it asks for inputs that pathseg does not "
                f"give; only {option}: {needed} is supported"
            )
    unet = _built(network, UNETS[network.class_name])
    if unet.mid_block is None:
        raise ValueError(f"{network.source}: the unet has no middle block, which is block 0; take another model")
    types = [type(block).__name__ for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)]
    if others := [name for name in types if name not in BLOCK_TYPES]:
        raise ValueError(
            f"{network.source}: the unet has a {others[0]}, which is not supported, but only {', '.join(BLOCK_TYPES)}"
        )
    return unet


def _encoder(network: Network) -> Any:
    """Build the image encoder of a pipeline on the meta device, without its decoder. Raises ValueError as `_unet`."""
    _require_class(network, ENCODERS)
    vae = _built(network, ENCODERS[network.class_name])
    if vae.config.in_channels != 3:
        raise ValueError(f"{network.source}: the image encoder takes {vae.config.in_channels} channels, not RGB")
    for module in DECODER:
        setattr(vae, module, None)
    return vae


def _require_class(network: Network, classes: Mapping[str, Any]) -> None:
    if network.class_name not in classes:
        raise ValueError(
            f"{network.source} holds a {network.class_name:.80}; supported are {' and '.join(classes)} of diffusers"
        )


def _built(network: Network, build: Callable[..., Any]) -> Any:
    """Build a network of its options on the meta device. Raises ValueError where diffusers cannot."""
    known = inspect.signature(build).parameters
    options = {name: value for name, value in network.options.items() if name in known}
    _require_layers(network, options)
    try:
        with torch.device("meta"):
            return build(**options)
    except Exception as e:  # whatever wrong options lead to inside diffusers
        raise ValueError(
            f"diffusers {diffusers.__version__} cannot build the {network.class_name} of {network.source}: "
            f"{_first_line(e)}; get its config.json again"
        ) from e


def _require_layers(network: Network, options: Mapping[str, Any]) -> None:
    """Raise ValueError for more layers than tensors are in the file, before time is spent on building them."""
    levels = options.get("block_out_channels", [])
    layers = len(levels) if isinstance(levels, list) else 1
    for name in ("layers_per_block", "transformer_layers_per_block"):
        value = options.get(name, 1)
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(type(number) is int and 1 <= number <= DEEPEST for number in numbers):
            raise ValueError(f"{network.source}: {name} must be whole numbers from 1 to {DEEPEST}, got {short(value)}")
        layers *= max(numbers)
    if layers > len(network.tensors):
        raise ValueError(
            f"{network.source} has {len(network.tensors)} tensors, but its config.json describes {layers} layers; "
            "give the config that belongs to it"
        )


def _latent_shape(vae: Any, files: DiffusersFiles) -> tuple[int, int, int]:
    """Return (z, h, w) of the latents of a patch."""
    pixels = torch.empty(1, 3, PATCH_PX, PATCH_PX, device="meta")
    encoded = _tried(lambda: vae.encode(pixels), files, "image encoder")
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    _, channels, side, _ = latents.shape
    return channels, side, side


def _block_sizes(unet: Any, latent_shape: tuple[int, int, int], files: DiffusersFiles) -> dict[int, tuple[int, int]]:
    """Return block -> (channels, side) of those that are not finer than the head's grid. Raises ValueError without one.

    The UNet runs once on the meta device, where nothing is computed.
    """
    count = len(block_modules(unet))
    if count > MAX_BLOCK + 1:
        raise ValueError(f"{files.unet.source}: the unet has {count} blocks, but at most {MAX_BLOCK + 1} can be stored")
    zt = torch.empty(1, *latent_shape, device="meta")
    inputs: list[torch.Tensor] = []
    if width := _context_width(unet):
        inputs.append(torch.empty(1, 1, width, device="meta"))
    labels = torch.zeros(1, dtype=torch.long, device="meta") if _takes_class(unet) else None

    def run() -> dict[int, torch.Tensor]:
        with captured(unet, range(count)) as maps:
            unet(zt, torch.zeros(1, dtype=torch.long, device="meta"), *inputs, class_labels=labels)
        return maps

    shapes = {block: tuple(maps.shape) for block, maps in _tried(run, files, "unet").items()}
    fitting = {block: (channels, h) for block, (_, channels, h, w) in shapes.items() if h == w <= HEAD_CELLS}
    if 0 not in fitting:
        raise ValueError(
            f"{files.unet.source}: the unet's middle block has {shapes[0][2]} x {shapes[0][3]} cells a patch, but the "
            f"heads take at most {HEAD_CELLS} x {HEAD_CELLS}; take a model with more levels"
        )
    return fitting


def _tried(run: Callable[[], Built], files: DiffusersFiles, network: str) -> Built:
    """Return what a network gives on the meta device. Raises ValueError for options that do not fit each other."""
    try:
        return run()
    except Exception as e:  # whatever wrong options lead to inside diffusers
        raise ValueError(
            f"the {network} of {files.source} does not run on patches of {PATCH_PX} px: {_first_line(e)}; get its "
            "config.json again, or take another model"
        ) from e


def _takes_class(unet: Any) -> bool:
    return unet.class_embedding is not None


def _context_width(unet: Any) -> int | None:
    """Return the width of the context tokens of a UNet, None for one that takes none."""
    width = unet.config.get("cross_attention_dim")
    return max(width) if isinstance(width, list | tuple) else width


def _context_tokens(unet: Any, path: Path | None, files: DiffusersFiles) -> torch.Tensor | None:
    """Return the context (1, L, c): the tensor of a file or one zero token, which stands for any number of them.

    Attention gives zero for zero tokens, whatever their number. None for a UNet that takes no context. Raises
    ValueError for a file that does not hold one, FileNotFoundError.
    """
    width = _context_width(unet)
    if path is None:
        return None if width is None else torch.zeros(1, 1, width)
    if width is None:
        raise ValueError(f"the unet of {files.source} takes no context (UNet2DModel); leave --context out")
    tensors = read_state_dict(path, "state_dict")
    if len(tensors) != 1:
        raise ValueError(f"{path} must hold one tensor, the context tokens (L, {width}), got {len(tensors)} tensors")
    ((name, tokens),) = tensors.items()
    shape = tuple(tokens.shape)
    if shape[:-2] not in ((), (1,)) or len(shape) < 2 or shape[-1] != width or not 1 <= shape[-2] <= MOST:
        raise ValueError(
            f"{path}: context tokens of {files.name} must be (L, {width}), got {shape}; make them with the text "
            "encoder of this pipeline"
        )
    check_weights({name: tokens}, {name: shape}, str(path))
    return tokens.float().reshape(1, -1, width)


def _class_label(unet: Any, label: int | None, files: DiffusersFiles) -> int | None:
    """Return the class that the denoiser is called with: any where its embedding is zero, None if it takes none."""
    if not _takes_class(unet):
        if label is not None:
            raise ValueError(f"the unet of {files.source} takes no class; leave --class-label out")
        return None
    if label is not None and not 0 <= label < unet.config.num_class_embeds:
        raise ValueError(
            f"the unet of {files.source} has classes 0-{unet.config.num_class_embeds - 1}, got --class-label {label}"
        )
    return label or 0


def _alpha_bars(class_name: str, options: Mapping[str, Any]) -> np.ndarray:
    """Return the cumulative products of 1 - beta of a pipeline's scheduler, (timesteps,).

    Raises ValueError for a scheduler that has none, as those of flow matching, and for wrong options.
    """
    scheduler = getattr(diffusers.schedulers, class_name, None) if class_name.isidentifier() else None
    if not isinstance(scheduler, type) or not issubclass(scheduler, diffusers.SchedulerMixin):
        raise ValueError(
            f"scheduler_config.json names the scheduler {class_name:.80}, which diffusers {diffusers.__version__} does "
            "not know; a newer diffusers may"
        )
    prediction, timesteps = options.get("prediction_type", PREDICTIONS[0]), options.get("num_train_timesteps", 1000)
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"scheduler_config.json has prediction_type: {short(prediction)}, but only models that predict one of "
            f"{', '.join(PREDICTIONS)} see noise as equation 3 adds it"
        )
    if type(timesteps) is not int or not 1 <= timesteps <= MOST:
        raise ValueError(
            f"scheduler_config.json: num_train_timesteps must be a whole number from 1 to {MOST}, got "
            f"{short(timesteps)}"
        )
    known = inspect.signature(scheduler).parameters
    own = {name: options[name] for name in SCHEDULE if name in options and name in known}
    try:
        found = getattr(scheduler(num_train_timesteps=timesteps, **own), "alphas_cumprod", None)
    except Exception as e:  # whatever wrong options lead to inside diffusers
        raise ValueError(f"{class_name} cannot be built of scheduler_config.json: {_first_line(e)}") from e
    if found is None:
        raise ValueError(
            f"{class_name} has no alphas_cumprod, by which equation 3 adds noise; models of flow matching, score "
            "matching or consistency are not supported"
        )
    bars = torch.as_tensor(found).double().cpu().numpy()
    if bars.shape != (timesteps,) or not ((bars >= 0) & (bars <= 1)).all():
        raise ValueError(
            f"scheduler_config.json gives alphas_cumprod of shape {bars.shape} from {bars.min(initial=np.inf):.3g} to "
            f"{bars.max(initial=-np.inf):.3g}, but {timesteps} numbers from 0 to 1 are needed"
        )
    return bars


def _scaling(network: Network, vae: Any) -> tuple[float, float]:
    """Return the factor and the shift of latents: z0 = (z - shift) * factor, as the pipelines of diffusers have it."""
    for name in ("latents_mean", "latents_std"):
        if network.options.get(name) is not None:
            raise ValueError(f"{network.source}: the image encoder has {name}, which is not supported; leave it out")
    factor, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
    if not all(type(value) in (int, float) and np.isfinite(value) for value in (factor, shift)) or factor <= 0:
        raise ValueError(
            f"{network.source}: scaling_factor must be a number above 0 and shift_factor a number, got {short(factor)} "
            f"and {short(shift)}"
        )
    return float(factor), float(shift)


def _name_of(network: Network | None, latent_shape: tuple[int, int, int]) -> str:
    """Return `vq-f4`, `kl-f8`, ..."""
    kind = "kl" if network is not None and network.class_name == "AutoencoderKL" else "vq"
    return f"{kind}-f{PATCH_PX // latent_shape[1]}"


def _fitted(network: Network, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a network under the names of its module, strictly. Raises ValueError for others.

    Tensors of a decoder that the module lacks are left out. Old files have other names for attention.
    """
    shapes = shapes_of(module)
    tensors = {}
    for name, tensor in network.tensors.items():
        renamed = re.sub(
            r"\.(query|key|value|proj_attn)\.(\w+)$", lambda found: f".{OLD_ATTENTION[found[1]]}.{found[2]}", name
        )
        tensors[renamed if name not in shapes and renamed in shapes else name] = tensor
    if isinstance(module, tuple(ENCODERS.values())):
        unused = tuple(f"{part}." for part in DECODER)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    check_weights(tensors, shapes, network.source)
    return tensors


def _digest(
    files: DiffusersFiles,
    networks: Mapping[str, Mapping[str, torch.Tensor]],
    alpha_bars: np.ndarray,
    tokens: torch.Tensor | None,
    class_label: int | None,
    scaling: tuple[float, float],
) -> str:
    tensors = {f"{network}.{name}": tensor for network, named in networks.items() for name, tensor in named.items()}
    tensors["alpha_bars"] = torch.from_numpy(alpha_bars)
    if tokens is not None:
        tensors["context"] = tokens
    settings: dict[str, Any] = {"class_label": class_label, "scaling": scaling, "unet": _chosen(files.unet, UNETS)}
    settings["unet"] = {name: value for name, value in settings["unet"].items() if name not in WITHOUT_EFFECT}
    if files.first_stage is not None:
        options = _chosen(files.first_stage, ENCODERS)
        settings["first_stage"] = {name: value for name, value in options.items() if name in ENCODER_OPTIONS}
    return weights_digest(tensors, settings)


def _chosen(network: Network, classes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not the defaults of their class, so that later releases may have more options."""
    known = inspect.signature(classes[network.class_name]).parameters
    defaults = {name: list(p.default) if isinstance(p.default, tuple) else p.default for name, p in known.items()}
    return {name: value for name, value in network.options.items() if name in known and value != defaults[name]}


def _first_line(error: Exception) -> str:
    return f"{(str(error).splitlines() or [type(error).__name__])[0]:.200}"
