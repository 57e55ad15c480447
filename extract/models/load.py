"""Frozen models by name or folder: `load_model` and what every model can do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

import torch

from pathseg.extract.models.dino_vit import read_vit
from pathseg.extract.models.ldm.release import LAYOUT, read_release
from pathseg.extract.models.ldm_features import DiffusionFeatures, Images
from pathseg.extract.models.mini import mini_release, mini_vit
from pathseg.extract.models.registry import MODELS, find_hipt, find_release
from pathseg.extract.models.vit_features import TokenFeatures


class FeatureModel(Protocol):
    """A frozen model that turns patches into feature blocks. Images are uint8 RGB (N, 256, 256, 3) throughout.

    name, trained: of the record, or the folder's name. digest: hex SHA-256 of all weights and settings that change
    numbers. first_stage: `vq-f4`, `kl-f8`, ... or `none`. condition: `ssl` or `none`. blocks: number -> (channels,
    side). latent_shape: (z, h, w), or None for a model without latents. timesteps: t runs below it, or None.

    Tensors come back float32 on `device`. Images of another type or shape raise ValueError.
    """

    name: str
    trained: bool
    digest: str
    first_stage: str
    condition: str
    blocks: dict[int, tuple[int, int]]
    device: torch.device

    @property
    def latent_shape(self) -> tuple[int, int, int] | None:
        """(z, h, w) of a patch, None without latents."""

    @property
    def timesteps(self) -> int | None:
        """t runs from 0 to one below it; None where there is no noise."""

    def embed(self, images: Images) -> torch.Tensor:
        """y = SSL(x), equation 1: (N, D). Raises ValueError when the model was loaded without its ViT."""

    def encode(self, images: Images) -> torch.Tensor:
        """z0 = E(x), equation 2: (N, z, h, w), scale factor applied. Raises ValueError without latents."""

    def prepare(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """What does not depend on t: z0 (N, z, h, w) and the context tokens (N, L, c), L = 0 without a conditioning
        stage; of a ViT its patch tokens (N, D, h, w) and embeddings (N, D)."""

    def denoise(
        self, z0: torch.Tensor, context: torch.Tensor, t: int, blocks: Iterable[int], noise: Images | None
    ) -> dict[int, torch.Tensor]:
        """The rest of `features`, on what `prepare` gave: block -> (N, C, h, w)."""

    def features(
        self, images: Images, t: int = 50, blocks: Iterable[int] = ..., noise: Images | None = None
    ) -> dict[int, torch.Tensor]:
        """One denoiser pass at timestep t (0-based): block -> (N, C, h, w), for every block of the model by default.

        noise: eps of equation 3, (N, z, h, w). Without it eps is that of `noise.patch_noise` for seed 0, image id
        `array` and the position in the batch, so the same call gives the same numbers. The pass ends at the last
        wanted block. Raises ValueError for a t or a block that the model does not have. A ViT has neither noise nor
        timesteps and ignores both.
        """


def load_model(
    path: str | Path,
    hipt: str | Path | None = None,
    condition: Literal["ssl", "none"] = "ssl",
    device: str | torch.device = "cpu",
) -> FeatureModel:
    """Load a model by its name in MODELS, or from a release folder (`release.LAYOUT`).

    hipt: the DINO checkpoint of the ViT; by default a `vit256*.pth` in the folder, beside it or in the user's data
    folder (mini and mini-hipt have their own). condition: `none` = a zero patch embedding, for which no ViT is needed;
    of a release without a conditioning stage the only one.

    Raises FileNotFoundError saying where to get what is missing; ValueError when a file is not what it should be.
    """
    if condition not in ("ssl", "none"):
        raise ValueError(f"condition must be ssl or none, got {condition!r}")
    record = MODELS.get(str(path))
    if record is None:
        return _from_folder(Path(path), hipt, condition, device)
    about = {"name": record.name, "trained": record.trained, "device": device}
    if record.kind == "vit":
        vit = read_vit(hipt) if hipt else mini_vit() if record.files else read_vit(find_hipt())
        return TokenFeatures(vit, **about)
    if not record.files:
        return _from_folder(find_release(record.name), hipt, condition, device)
    vit = None if condition == "none" else read_vit(hipt) if hipt else mini_vit()
    return DiffusionFeatures(mini_release(), vit, **about)


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
    vit = None if condition == "none" else read_vit(hipt or find_hipt(folder))
    return DiffusionFeatures(release, vit, name=release.name, trained=True, device=device)
