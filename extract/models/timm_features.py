"""Features of any vision transformer of timm: the outputs of its layers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import msgspec
import timm
import timm.layers
import torch
import torch.nn.functional as F
from timm.models._builder import build_model_with_cfg
from timm.models._registry import model_entrypoint
from torch import nn

from pathseg.extract.config import ViTConfig
from pathseg.extract.models.arithmetic import fixed_arithmetic
from pathseg.extract.models.patches import channels_first
from pathseg.extract.models.timm_files import OWN, TimmFiles
from pathseg.extract.models.weights import check_weights, load_frozen, shapes_of, weights_digest
from pathseg.store.blocks import MAX_BLOCK, format_blocks
from pathseg.store.grid import HEAD_CELLS, PATCH_PX
from pathseg.store.key import DiffusersSettings, ViTSettings, ZoomSettings

if TYPE_CHECKING:
    from pathseg.extract.models.feature_model import Images

MOST_RESIZED = 4  # weights for one of the file: position embeddings may be resized, all else is the file's
DEFAULT_BLOCKS = 4  # evenly spaced, the last layer among them
# Arguments of timm's factory, not of an architecture: among them are paths that it would load weights from.
FACTORY = {
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
    *("features_only", "out_indices", "feature_cls", "pruned", "device", "dtype"),
} - {"kwargs"}


class TimmFeatures:
    """A ViT of timm as a FeatureModel: block k is the map of patch tokens after layer k, counted from 0.

    timm's `forward_intermediates` computes them and drops class and register tokens. There are no latents, timesteps
    or noise.
    """

    first_stage = "none"
    condition: Literal["ssl", "none"] = "none"
    latent_shape = None
    timesteps = None
    diffusers: DiffusersSettings | None = None
    zoom: ZoomSettings | None = None
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        files: TimmFiles,
        config: ViTConfig,
        *,
        name: str,
        trained: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        """Build the network from its files, with what `config` replaces of them.

        Raises ValueError for an architecture without layers of one grid, arguments that it does not take, weights that
        are not its own, and an image size that its patches do not divide.
        """
        self.name, self.trained = name, trained
        self.device = torch.device(device)
        arguments = {**files.arguments, **config.arguments}
        depth, channels, patch_px = _layers(files, arguments)
        input_px = config.input_px or PATCH_PX // patch_px * patch_px
        if input_px % patch_px or not patch_px <= input_px <= HEAD_CELLS * patch_px:
            raise ValueError(
                f"model {name} has patches of {patch_px} px, so --input-px must be a multiple of that up to "
                f"{HEAD_CELLS * patch_px}, got {input_px}"
            )
        mean, std = config.mean or files.mean, config.std or files.std
        if mean is None or std is None:
            raise ValueError(f"the config of {files.source} has no mean and std of RGB; pass --mean r,g,b --std r,g,b")
        settings = ViTSettings(files.architecture, mean, std, input_px, config.norm or "final", arguments)
        self.vit: ViTSettings | None = settings
        self._settings = settings
        self.blocks = dict.fromkeys(range(depth), (channels, input_px // patch_px))
        shares = range(1, DEFAULT_BLOCKS + 1)
        self.default_blocks = tuple(sorted({-(-depth * share // DEFAULT_BLOCKS) - 1 for share in shares}))
        network = _build(files, arguments, img_size=input_px)
        tensors = _without_classifier(files.tensors, network)
        self.digest = weights_digest(tensors, msgspec.to_builtins(settings))
        self._network = load_frozen(network, _fitted(tensors, network, files)).to(self.device)
        self._mean, self._std = (torch.tensor(rgb, device=self.device)[:, None, None] for rgb in (mean, std))

    @torch.inference_mode()
    def embed(self, images: Images) -> torch.Tensor:
        """Return the embeddings that the model pools for a classifier: (N, D)."""
        with fixed_arithmetic(self.device):
            pooled: torch.Tensor = self._network.forward_head(
                self._network.forward_features(self._pixels(images)), pre_logits=True
            )
        return pooled

    def encode(self, images: Images) -> NoReturn:
        """Raise ValueError: a ViT has no latents."""
        raise ValueError(f"model {self.name} is a ViT and has no latents; use embed or features")

    @torch.inference_mode()
    def prepare(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the resized, normalised images (N, 3, H, W) and an empty context (N, 0, 0)."""
        with fixed_arithmetic(self.device):
            pixels = self._pixels(images)
        return pixels, pixels.new_zeros(len(pixels), 0, 0)

    @torch.inference_mode()
    def denoise(
        self, z0: torch.Tensor, context: torch.Tensor, t: int, blocks: Iterable[int], noise: Images | None
    ) -> dict[int, torch.Tensor]:
        """Run the layers up to the last wanted block on what `prepare` returned; t and noise are ignored."""
        wanted = sorted(set(blocks))
        if unknown := [block for block in wanted if block not in self.blocks]:
            raise ValueError(
                f"model {self.name} has no block {unknown[0]}; its layers are blocks {format_blocks(self.blocks)}"
            )
        if not wanted:
            raise ValueError(f"model {self.name} needs at least one block of {format_blocks(self.blocks)}")
        with fixed_arithmetic(self.device):
            maps = self._network.forward_intermediates(
                z0,
                indices=wanted,
                norm=self._settings.norm == "final",
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        return dict(zip(wanted, maps, strict=True))

    def features(
        self, images: Images, t: int = 50, blocks: Iterable[int] | None = None, noise: Images | None = None
    ) -> dict[int, torch.Tensor]:
        """Return the patch tokens after these layers, by default all: block -> (N, D, h, w)."""
        return self.denoise(*self.prepare(images), t, self.blocks if blocks is None else blocks, noise)

    def _pixels(self, images: Images) -> torch.Tensor:
        """Resize and normalise patches: uint8 (N, 256, 256, 3) -> (N, 3, input_px, input_px)."""
        rgb, side = channels_first(images, self.device) / 255, self._settings.input_px
        if side != PATCH_PX:
            rgb = F.interpolate(rgb, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return (rgb - self._mean) / self._std


def _layers(files: TimmFiles, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return depth, width and patch size in px of an architecture. Raises ValueError without one grid."""
    if refused := sorted((FACTORY | set(OWN)) & set(arguments)):
        way_out = "pass --input-px" if refused[0] == "img_size" else "leave it out"
        raise ValueError(f"{refused[0]} is no argument of {files.architecture} that can be set; {way_out}")
    if isinstance(depth := arguments.get("depth", 1), int) and depth > MAX_BLOCK + 1:  # before they are built
        raise ValueError(f"{files.architecture} with depth={depth} has more layers than the {MAX_BLOCK + 1} of a store")
    with torch.device("meta"):
        network = _build(files, arguments)
    info = getattr(network, "feature_info", None) or []
    layers = {(layer["num_chs"], layer["reduction"]) for layer in info} if isinstance(info, list) else set()
    if len(layers) != 1 or not str(info[0]["module"]).startswith("blocks."):
        raise ValueError(
            f"{files.architecture} is no ViT: its blocks must be transformer layers of one grid, as of the "
            "architectures vit_*; take another model"
        )
    if len(info) > MAX_BLOCK + 1:
        raise ValueError(f"{files.architecture} has {len(info)} layers, but at most {MAX_BLOCK + 1} can be stored")
    described, held = sum(p.numel() for p in network.parameters()), sum(t.numel() for t in files.tensors.values())
    if described > MOST_RESIZED * held:
        raise ValueError(
            f"{files.architecture} with these arguments has {described:,} weights, but {files.source} holds {held:,}; "
            "give the config or the --model-args that belong to it"
        )
    ((channels, patch_px),) = layers
    return len(info), channels, patch_px


def _build(files: TimmFiles, arguments: Mapping[str, Any], **sizes: Any) -> Any:
    """Build an architecture without classifier on the current default device. Raises ValueError where timm cannot."""
    named = dict(arguments)
    if isinstance(layer := named.get("mlp_layer"), str):  # a class, which JSON cannot hold
        named["mlp_layer"] = getattr(timm.layers, layer, layer)
    try:
        return timm.create_model(files.architecture, pretrained=False, num_classes=0, **sizes, **named)
    except Exception as e:  # whatever wrong arguments lead to inside timm
        given = ", ".join(f"{name}={value}" for name, value in arguments.items()) or "no arguments"
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(
            f"timm {timm.__version__} cannot build {files.architecture} with {given:.200}: {reason:.200}; "
            "correct them with --model-args name=value"
        ) from e


def _without_classifier(tensors: Mapping[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    names = network.pretrained_cfg.get("classifier") or ()
    classifiers = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(classifiers)}


def _fitted(tensors: dict[str, torch.Tensor], network: nn.Module, files: TimmFiles) -> dict[str, torch.Tensor]:
    """Return tensors under the network's names, position embeddings resized by timm. Raises ValueError for others.

    timm would resize the kernel of patches too, and so take the weights of another architecture.
    """
    convert = getattr(sys.modules[model_entrypoint(files.architecture).__module__], "checkpoint_filter_fn", None)
    try:
        fitted = dict(convert(dict(tensors), network)) if convert else tensors
    except Exception as e:  # whatever tensors of another architecture lead to inside timm
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(
            f"{files.source} does not hold the weights of {files.architecture}: {reason:.200}; give the file that "
            "belongs to it, or correct its --model-args"
        ) from e
    unchanged = {name: tensors[name] for name in fitted if name in tensors and "pos" not in name}
    try:
        check_weights({**fitted, **unchanged}, shapes_of(network), files.source)
    except ValueError as e:
        raise ValueError(f"{e} (as {files.architecture}; --model-args name=value changes its arguments)") from e
    return fitted
