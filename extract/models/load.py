"""Load a frozen feature model by its name or from its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch

from pathseg.extract.config import ViTConfig
from pathseg.extract.models.diffusers_features import DiffusersFeatures
from pathseg.extract.models.diffusers_files import DIFFUSERS_LAYOUT, is_diffusers_folder, read_diffusers_folder
from pathseg.extract.models.dino_vit import read_vit
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.models.ldm.config import ZoomDesign
from pathseg.extract.models.ldm.release import LAYOUT, read_release
from pathseg.extract.models.ldm_features import DiffusionFeatures
from pathseg.extract.models.mini import mini_release, mini_vit
from pathseg.extract.models.registry import MODELS, find_hipt, find_release, find_timm_folder
from pathseg.extract.models.timm_features import TimmFeatures
from pathseg.extract.models.timm_files import HUB_LAYOUT, is_hub_folder, read_hub_folder, read_timm_weights
from pathseg.extract.models.vit_features import TokenFeatures

TIMM = "timm:"  # before the name of an architecture


def load_model(
    path: str | Path,
    hipt: str | Path | None = None,
    condition: Literal["ssl", "none"] = "ssl",
    device: str | torch.device = "cpu",
    *,
    weights: str | Path | None = None,
    vit: ViTConfig | None = None,
    context: str | Path | None = None,
    class_label: int | None = None,
) -> FeatureModel:
    """Load a model: by its name in MODELS; from a release folder (`release.LAYOUTS`), a timm model's folder as on the
    Hugging Face hub (`timm_files.HUB_LAYOUT`) or a pipeline of diffusers (`diffusers_files.DIFFUSERS_LAYOUT`), told
    apart by their files; or `timm:NAME` with a file of `weights`.

    hipt: the DINO checkpoint of the ViT; by default a `vit256*.pth` in the folder, beside it or in the user's data
    folder (mini and mini-hipt have their own). condition: `none` = unconditional: a zero patch embedding, of ZoomLDM a
    zero context. It needs no ViT and is the only choice for ZoomLDM and a release without a conditioning stage. vit:
    what to replace of a timm model's file. context, class_label: of a pipeline of diffusers, see `DiffusersFeatures`;
    `condition` does not apply to it, nor to a ViT.

    Raises FileNotFoundError, with the source of the missing file; ValueError for a file that cannot be used, and for
    `weights`, `vit`, `context` or `class_label` of another kind of model.
    """
    if condition not in ("ssl", "none"):
        raise ValueError(f"condition must be ssl or none, got {condition!r}")
    vit, name = vit or ViTConfig(), str(path)
    record = MODELS.get(name)
    is_pipeline = record is None and weights is None and is_diffusers_folder(Path(path))
    if not is_pipeline and (context is not None or class_label is not None):
        raise ValueError(f"{path} is no pipeline of diffusers, so it takes no --context and no --class-label")
    if (weights is None) is name.startswith(TIMM):
        raise ValueError(f"--weights FILE and --model timm:NAME belong together, got the model {path}")
    if weights is not None:
        files = read_timm_weights(name.removeprefix(TIMM), Path(weights))
        return TimmFeatures(files, vit, name=files.name, device=device)
    if record is not None and record.kind == "timm":
        own = dataclasses.replace(vit, model_args=(*record.arguments, *vit.model_args))
        return TimmFeatures(read_hub_folder(find_timm_folder(name)), own, name=name, device=device)
    if is_pipeline and vit == ViTConfig():
        pipeline = read_diffusers_folder(Path(path))
        context = None if context is None else Path(context)
        return DiffusersFeatures(pipeline, context=context, class_label=class_label, device=device)
    if record is None and not is_pipeline and is_hub_folder(Path(path)):
        files = read_hub_folder(Path(path))
        return TimmFeatures(files, vit, name=files.name, device=device)
    if record is None and not Path(path).is_dir():
        raise FileNotFoundError(
            f"no model {path}; give {', '.join(MODELS)}, a release folder with {LAYOUT}, the folder of a timm model "
            f"with {HUB_LAYOUT}, or a pipeline of diffusers with {DIFFUSERS_LAYOUT}"
        )
    if vit != ViTConfig():
        raise ValueError(
            f"{path} is no timm model, so --mean, --std, --input-px, --norm and --model-args, or those of a store, "
            "cannot be set; take a timm model, or leave them out"
        )
    if record is None:
        return _from_folder(Path(path), hipt, condition, device)
    if record.kind == "vit":
        tensors = read_vit(hipt) if hipt else mini_vit() if record.files else read_vit(find_hipt())
        return TokenFeatures(tensors, name=record.name, trained=record.trained, device=device)
    if not record.files:
        return _from_folder(find_release(record.name), hipt, condition, device)
    encoder = None if condition == "none" else read_vit(hipt) if hipt else mini_vit()
    return DiffusionFeatures(mini_release(), encoder, name=record.name, trained=record.trained, device=device)


def _from_folder(
    folder: Path, hipt: str | Path | None, condition: Literal["ssl", "none"], device: str | torch.device
) -> DiffusionFeatures:
    release = read_release(folder)
    if condition == "ssl" and release.conditioning_design is None:
        raise ValueError(
            f"model {release.name} has no conditioning stage and cannot take condition ssl; use --condition none"
        )
    if condition == "ssl" and isinstance(release.conditioning_design, ZoomDesign):
        raise ValueError(
            f"model {release.name} takes condition ssl from the embeddings of UNI (a ViT-L/16) for the 20x patches of "
            "an image, which pathseg does not compute; use --condition none"
        )
    vit = None if condition == "none" else read_vit(hipt or find_hipt(folder))
    return DiffusionFeatures(release, vit, name=release.name, trained=True, device=device)
