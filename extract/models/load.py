"""Load a frozen feature model by its name or from its files.

Modules that need diffusers, which takes seconds to import, are imported where a model needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from pathseg.extract.config import ViTConfig
from pathseg.extract.models.diffusers_files import DIFFUSERS_LAYOUT, is_diffusers_folder, read_diffusers_folder
from pathseg.extract.models.dino_vit import read_vit
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.models.registry import MODELS, TIMM, find_hipt, find_release, find_timm_folder, find_uni
from pathseg.extract.models.timm_features import TimmFeatures
from pathseg.extract.models.timm_files import HUB_LAYOUT, is_hub_folder, read_hub_folder, read_timm_weights
from pathseg.extract.models.vit_features import TokenFeatures
from pathseg.store.key import Magnification, ModelKind

KINDS: Mapping[ModelKind, str] = {
    "latent-diffusion": "a release of a latent diffusion model",
    "vit": "a ViT of HIPT's kind",
    "timm": "a timm model",
    "diffusers": "a pipeline of diffusers",
}
# options of each kind of model; those of others are refused. `weights` belongs to timm:NAME.
TAKES: Mapping[ModelKind, tuple[str, ...]] = {
    "latent-diffusion": ("condition", "hipt", "magnification"),
    "vit": ("hipt",),
    "timm": tuple(ViTConfig.__dataclass_fields__),
    "diffusers": ("context", "class_label"),
}


def load_model(
    path: str | Path,
    hipt: str | Path | None = None,
    condition: Literal["ssl", "none"] | None = None,
    device: str | torch.device = "cpu",
    *,
    weights: str | Path | None = None,
    vit: ViTConfig | None = None,
    context: str | Path | None = None,
    class_label: int | None = None,
    magnification: Magnification | None = None,
    mpp: float | None = None,
) -> FeatureModel:
    """Load a model: by its name in MODELS; from a release folder (`release.LAYOUTS`), a timm model's folder as on the
    Hugging Face hub (`timm_files.HUB_LAYOUT`) or a pipeline of diffusers (`diffusers_files.DIFFUSERS_LAYOUT`), told
    apart by their files; or `timm:NAME` with a file of `weights`.

    hipt: the DINO checkpoint of the ViT; by default a `vit256*.pth` in the folder, beside it or in the user's data
    folder (mini and mini-hipt have their own). Of ZoomLDM it is the folder of a timm ViT, by default `uni` in the same
    places, which gets images of the side that it was trained on. condition: of a latent diffusion model, by default
    `ssl`; `none` = unconditional: a zero patch embedding, of ZoomLDM a zero context. It needs no ViT and is the only
    choice for a release without a conditioning stage. magnification: of what ZoomLDM is shown, by default that of
    `mpp` (um/px). vit: what to replace of a timm model's file. context, class_label: of a pipeline of diffusers, see
    `DiffusersFeatures`.

    Raises FileNotFoundError, with the source of the missing file; ValueError for a file that cannot be used, and for
    an option that is given to a kind of model that does not take it (TAKES).
    """
    if condition not in ("ssl", "none", None):
        raise ValueError(f"condition must be ssl or none, got {condition!r}")
    name, vit = str(path), vit or ViTConfig()
    kind, record = _kind(name, weights), MODELS.get(name)
    _require_taken(
        name, kind, condition=condition, hipt=hipt, context=context, class_label=class_label,
        magnification=magnification, **dataclasses.asdict(vit),
    )  # fmt: skip
    if kind == "timm":
        if record is not None:
            own = dataclasses.replace(vit, model_args=(*record.arguments, *vit.model_args))
            return TimmFeatures(read_hub_folder(find_timm_folder(name)), own, name=name, device=device)
        files = (
            read_hub_folder(Path(path))
            if weights is None
            else read_timm_weights(name.removeprefix(TIMM), Path(weights))
        )
        return TimmFeatures(files, vit, name=files.name, device=device)
    if kind == "diffusers":
        from pathseg.extract.models.diffusers_features import DiffusersFeatures

        pipeline, tokens = read_diffusers_folder(Path(path)), None if context is None else Path(context)
        return DiffusersFeatures(pipeline, context=tokens, class_label=class_label, device=device)
    if condition == "none" and hipt is not None:
        raise ValueError("--hipt does not apply with --condition none, which needs no ViT; leave it out")
    from pathseg.extract.models.mini import mini_release, mini_vit

    if record is None or (kind == "latent-diffusion" and not record.files):
        folder = Path(path) if record is None else find_release(record.name)
        return _from_folder(folder, hipt, condition or "ssl", device, magnification=magnification, mpp=mpp)
    if kind == "vit":
        tensors = read_vit(hipt) if hipt else mini_vit() if record.files else read_vit(find_hipt())
        return TokenFeatures(tensors, name=record.name, trained=record.trained, device=device)
    _refuse_magnification(magnification, name)
    from pathseg.extract.models.ldm_features import DiffusionFeatures

    encoder = None if condition == "none" else read_vit(hipt) if hipt else mini_vit()
    return DiffusionFeatures(mini_release(), encoder, name=record.name, trained=record.trained, device=device)


def _kind(name: str, weights: str | Path | None) -> ModelKind:
    """Return the kind of a model by its name or its files. Raises FileNotFoundError where there is none."""
    if (weights is None) is name.startswith(TIMM):
        raise ValueError(f"--weights FILE and --model timm:NAME belong together, got the model {name}")
    if name in MODELS:
        return MODELS[name].kind
    if weights is None and is_diffusers_folder(Path(name)):
        return "diffusers"
    if weights is not None or is_hub_folder(Path(name)):
        return "timm"
    if not Path(name).is_dir():
        from pathseg.extract.models.ldm.release import LAYOUT

        raise FileNotFoundError(
            f"no model {name}; give {', '.join(MODELS)}, a release folder with {LAYOUT}, the folder of a timm model "
            f"with {HUB_LAYOUT}, or a pipeline of diffusers with {DIFFUSERS_LAYOUT}"
        )
    return "latent-diffusion"


def _require_taken(name: str, kind: ModelKind, **options: Any) -> None:
    """Raise ValueError for the first option that is set, but not taken by this kind of model."""
    for option, value in options.items():
        if value not in (None, ()) and option not in TAKES[kind]:
            flag, *taken = (f"--{one.replace('_', '-')}" for one in (option, *TAKES[kind]))
            raise ValueError(
                f"{flag} does not apply: {name} is {KINDS[kind]}, which takes {', '.join(taken)}; leave it out, or "
                "give a model that takes it"
            )


def _refuse_magnification(magnification: Magnification | None, name: str) -> None:
    if magnification is not None:
        raise ValueError(
            f"--magnification {magnification} does not apply: {name} asks for none, only ZoomLDM with --condition ssl "
            "does; leave it out"
        )


def _from_folder(
    folder: Path,
    hipt: str | Path | None,
    condition: Literal["ssl", "none"],
    device: str | torch.device,
    *,
    magnification: Magnification | None,
    mpp: float | None,
) -> FeatureModel:
    from pathseg.extract.models.ldm.config import ZoomDesign
    from pathseg.extract.models.ldm.release import read_release
    from pathseg.extract.models.ldm.zoom_embeddings import ZoomEmbeddings, magnification_of
    from pathseg.extract.models.ldm_features import DiffusionFeatures

    release = read_release(folder)
    if condition == "ssl" and release.conditioning_design is None:
        raise ValueError(
            f"model {release.name} has no conditioning stage and cannot take condition ssl; use --condition none"
        )
    if condition == "ssl" and isinstance(release.conditioning_design, ZoomDesign):
        embeddings = ZoomEmbeddings(
            _zoom_vit(Path(hipt) if hipt else find_uni(folder), device), magnification or magnification_of(mpp)
        )
        return DiffusionFeatures(release, embeddings, name=release.name, trained=True, device=device)
    _refuse_magnification(magnification, f"{release.name} with --condition {condition}")
    vit = None if condition == "none" else read_vit(hipt or find_hipt(folder))
    return DiffusionFeatures(release, vit, name=release.name, trained=True, device=device)


def _zoom_vit(folder: Path, device: str | torch.device) -> TimmFeatures:
    """Load the ViT whose embeddings condition ZoomLDM, for images of the side that it was trained on."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--hipt {folder} is no folder: the condition of ZoomLDM needs that of a timm ViT such as UNI, with "
            f"{HUB_LAYOUT}"
        )
    files = read_hub_folder(folder)
    return TimmFeatures(files, ViTConfig(input_px=files.input_px), name=files.name, device=device)
