"""Load a frozen feature model by its name or from a release folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from pathseg.extract.models.dino_vit import read_vit
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.models.ldm.config import ZoomDesign
from pathseg.extract.models.ldm.release import LAYOUT, read_release
from pathseg.extract.models.ldm_features import DiffusionFeatures
from pathseg.extract.models.mini import mini_release, mini_vit
from pathseg.extract.models.registry import MODELS, find_hipt, find_release
from pathseg.extract.models.vit_features import TokenFeatures


def load_model(
    path: str | Path,
    hipt: str | Path | None = None,
    condition: Literal["ssl", "none"] = "ssl",
    device: str | torch.device = "cpu",
) -> FeatureModel:
    """Load a model by its name in MODELS, or from a release folder (`release.LAYOUTS`).

    hipt: the DINO checkpoint of the ViT; by default a `vit256*.pth` in the folder, beside it or in the user's data
    folder (mini and mini-hipt have their own). condition: `none` = unconditional: a zero patch embedding, of ZoomLDM a
    zero context. It needs no ViT and is the only choice for ZoomLDM and a release without a conditioning stage.

    Raises FileNotFoundError, with the source of the missing file; ValueError for a file that cannot be used.
    """
    if condition not in ("ssl", "none"):
        raise ValueError(f"condition must be ssl or none, got {condition!r}")
    record = MODELS.get(str(path))
    if record is None:
        return _from_folder(Path(path), hipt, condition, device)
    if record.kind == "vit":
        vit = read_vit(hipt) if hipt else mini_vit() if record.files else read_vit(find_hipt())
        return TokenFeatures(vit, name=record.name, trained=record.trained, device=device)
    if not record.files:
        return _from_folder(find_release(record.name), hipt, condition, device)
    encoder = None if condition == "none" else read_vit(hipt) if hipt else mini_vit()
    return DiffusionFeatures(mini_release(), encoder, name=record.name, trained=record.trained, device=device)


def _from_folder(
    folder: Path, hipt: str | Path | None, condition: Literal["ssl", "none"], device: str | torch.device
) -> DiffusionFeatures:
    if not folder.is_dir():
        raise FileNotFoundError(f"no model {folder}; give {', '.join(MODELS)} or a release folder with {LAYOUT}")
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
