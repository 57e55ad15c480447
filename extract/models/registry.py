"""The named models and where to get them. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pathseg.store.key import ModelKind
from pathseg.store.runtime.workspace import user_data_folder

TIMM = "timm:"  # before the name of an architecture
HIPT_FILE = "vit256_small_dino.pth"  # HIPT's own name
VIT_DIGEST = "d9d09b434c2c8179e1d6246470d9ef1067130e8e5084ea5f62eb7b0f79055f57"  # of mini's ViT, used by two models
BUNDLED = Path(__file__).parents[1] / "weights"  # shipped with pathseg, with a model card
GATED = "on Hugging Face, gated: ask there for access"
SWIGLU = ("mlp_layer=SwiGLUPacked", "act_layer=silu")  # classes, which JSON cannot hold
HIPT_SOURCE = f"HIPT_4K/Checkpoints/{HIPT_FILE} in the GitHub repository mahmoodlab/HIPT"


@dataclass(frozen=True)
class ModelRecord:
    """A named model.

    trained: False for random weights. files: of a bundled model, file name -> hex SHA-256. folder: of a latent
    diffusion model that the user brings, what its folder must hold. arguments: of a timm model, those of its
    architecture that its config.json cannot hold or has wrong (`name=value`, as --model-args).
    """

    name: str
    kind: ModelKind
    description: str
    licence: str
    source: str
    trained: bool = True
    files: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    arguments: tuple[str, ...] = ()


MODELS: dict[str, ModelRecord] = {
    "brca-hipt-20x": ModelRecord(
        name="brca-hipt-20x",
        kind="latent-diffusion",
        description="the paper's model: SSL-guided latent diffusion, TCGA-BRCA at 20x, conditioned on HIPT",
        licence="the release states none",
        source="the BRCA 20x folder that the README of the GitHub repository "
        "cvlab-stonybrook/Large-Image-Diffusion links under pretrained models",
        folder="configs/*-project.yaml and checkpoints/last.ckpt lie in there, and beside them " + HIPT_SOURCE,
    ),
    "zoomldm-brca": ModelRecord(
        name="zoomldm-brca",
        kind="latent-diffusion",
        description="ZoomLDM, by the authors of the paper's model (CVPR 2025): latent diffusion, TCGA-BRCA at 20x and "
        "coarser, conditioned on UNI",
        licence="of the weights not known (the code's is MIT)",
        source="config.yaml and weights.ckpt of the BRCA model that ZoomLDM's authors publish (CVPR 2025)",
        folder="config.yaml and weights.ckpt lie in there, and UNI in the folder uni beside it",
    ),
    "mini": ModelRecord(
        name="mini",
        kind="latent-diffusion",
        description="the same architecture with fewer channels, bundled, trained on a few free images",
        licence="Apache-2.0; learned from BreCaHAD (Aksac et al. 2019, figshare 7379186, CC BY 4.0) and CC0 images",
        source="bundled; made by benchmarks/mini/train.py",
        files={
            "mini.safetensors": "63546cd91790086b3c96101cba54ca83636c4ba467b817d7c3a6e5a7cf2d576f",
            "mini-vit.safetensors": VIT_DIGEST,
        },
    ),
    "hipt": ModelRecord(
        name="hipt",
        kind="vit",
        description="baseline: the patch tokens of HIPT's ViT-S/16 as the only block",
        licence="Apache-2.0 with Commons Clause",
        source=HIPT_SOURCE,
    ),
    "mini-hipt": ModelRecord(
        name="mini-hipt",
        kind="vit",
        description="that baseline for mini: the patch tokens of its ViT",
        licence="as mini",
        source="bundled; made by benchmarks/mini/train.py",
        files={"mini-vit.safetensors": VIT_DIGEST},
    ),
    "uni": ModelRecord(
        name="uni",
        kind="timm",
        description="UNI: ViT-L/16",
        licence="CC-BY-NC-ND",
        source=f"MahmoodLab/UNI {GATED}",
        arguments=("init_values=1e-5", "dynamic_img_size=true"),
    ),
    "uni2-h": ModelRecord(
        name="uni2-h",
        kind="timm",
        description="UNI2-h: ViT-giant/14, 24 layers, width 1536, 8 registers, SwiGLU",
        licence="CC-BY-NC-ND",
        source=f"MahmoodLab/UNI2-h {GATED}",
        arguments=(
            *("patch_size=14", "depth=24", "num_heads=24", "embed_dim=1536", "mlp_ratio=5.33334", "init_values=1e-5"),
            *("no_embed_class=true", "reg_tokens=8", "dynamic_img_size=true", *SWIGLU),
        ),
    ),
    "virchow": ModelRecord(
        name="virchow",
        kind="timm",
        description="Virchow: ViT-H/14, SwiGLU",
        licence="Apache-2.0",
        source="paige-ai/Virchow on Hugging Face",
        arguments=SWIGLU,
    ),
    "virchow2": ModelRecord(
        name="virchow2",
        kind="timm",
        description="Virchow2: ViT-H/14, SwiGLU, 4 registers",
        licence="CC-BY-NC-ND",
        source=f"paige-ai/Virchow2 {GATED}",
        arguments=SWIGLU,
    ),
    "h-optimus-0": ModelRecord(
        name="h-optimus-0",
        kind="timm",
        description="H-optimus-0: ViT-g/14, 4 registers",
        licence="Apache-2.0",
        source="bioptimus/H-optimus-0 on Hugging Face",
    ),
    "prov-gigapath": ModelRecord(
        name="prov-gigapath",
        kind="timm",
        description="the tile encoder of Prov-GigaPath: ViT-g/16",
        licence="Apache-2.0 with conditions",
        source="prov-gigapath/prov-gigapath on Hugging Face",
    ),
}

DEFAULT_MODEL = "brca-hipt-20x"  # the paper's


def name_of_model(model: str) -> str:
    """Return the name that a model gives its store: its own, that of its architecture, or that of its folder."""
    return (
        model if model in MODELS else model.removeprefix(TIMM) if model.startswith(TIMM) else Path(model).resolve().name
    )


def models_folder() -> Path:
    """Return the folder of named models: `<user data dir>/pathseg/models`."""
    return user_data_folder() / "models"


def find_release(name: str) -> Path:
    """Return the folder of a named latent diffusion model. Raises FileNotFoundError, with the source of the model."""
    record, folder = MODELS[name], models_folder() / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"model {name} is not at {folder}; get {record.source}, so that {record.folder}; to try things without it "
            "use --model mini (small, bundled)"
        )
    return folder


def find_timm_folder(name: str) -> Path:
    """Return the folder of a named timm model. Raises FileNotFoundError, with the source of the model."""
    record, folder = MODELS[name], models_folder() / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"model {name} is not at {folder}; get config.json and model.safetensors or pytorch_model.bin of "
            f"{record.source} (licence {record.licence}) and put both in there; pathseg downloads nothing"
        )
    return folder


def find_uni(release: Path) -> Path:
    """Find UNI's folder, named `uni`, in the folder of a ZoomLDM, beside it or in the models folder.

    Raises FileNotFoundError, with the source of the model.
    """
    for folder in (release / "uni", release.resolve().parent / "uni"):
        if folder.is_dir():
            return folder
    try:
        return find_timm_folder("uni")
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"ZoomLDM takes its condition from the embeddings of UNI: {e}; or pass --hipt DIR for another place, or "
            "--condition none"
        ) from e


def bundled_file(name: str, file: str) -> Path:
    """Return the path of a bundled model's file after comparing its SHA-256 with the record's.

    Raises FileNotFoundError where the installation lacks it, ValueError where it has another SHA-256.
    """
    path, way_out = BUNDLED / file, "install pathseg again"
    if not path.is_file():
        raise FileNotFoundError(f"model {name} is bundled, but its file {path} is missing; {way_out}")
    expected, found = MODELS[name].files[file], hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} has the SHA-256 {found}, but model {name} has {expected}; {way_out}")
    return path


def find_hipt(release: Path | None = None) -> Path:
    """Find HIPT's `vit256*.pth` in a release folder, its parent, the models folder or a model's folder in that.

    Raises FileNotFoundError, naming the folders and the source of the file.
    """
    beside = [] if release is None else [release, release.resolve().parent]
    folders = [*beside, models_folder(), models_folder() / "brca-hipt-20x", models_folder() / "hipt"]
    for folder in folders:
        if found := sorted(folder.glob("vit256*.pth")):
            return found[0]
    raise FileNotFoundError(
        f"no vit256*.pth in {', '.join(map(str, dict.fromkeys(folders)))}; get {HIPT_SOURCE}, or pass --hipt FILE"
    )
