"""Write a release folder and a HIPT checkpoint of the paper's full size, with random weights.

    python -m benchmarks.extract.full_size_release OUT

Writes `configs/*-project.yaml`, `checkpoints/last.ckpt` (a Lightning pickle that refers to classes which are not
installed; 1.8 GB, twice that with --ema) and `vit256_small_dino.pth` (a DINO training checkpoint; 0.1 GB) to OUT.
`pathseg extract --model OUT` then runs the paper's networks at their real cost. The weights are random: the features
are meaningless, only their size and speed are real.
"""

from __future__ import annotations

import argparse
import copy
import sys
import types
from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers.models.autoencoders.vae import Decoder

from pathseg.extract.models.dino_vit import vit_shapes
from pathseg.extract.models.ldm.conditioning import conditioning_shapes
from pathseg.extract.models.ldm.config import FirstStageDesign, conditioning_design, first_stage_design, unet_design
from pathseg.extract.models.ldm.first_stage import encoder_shapes
from pathseg.extract.models.ldm.release import CONDITIONING, EMA, FIRST_STAGE, UNET
from pathseg.extract.models.ldm.unet import unet_shapes
from pathseg.extract.models.mini import MINI_PARAMS, random_weights
from pathseg.extract.models.registry import HIPT_FILE
from pathseg.extract.models.weights import Shape, shapes_of

VIT = (384, 12)  # width and depth of ViT-S/16


def full_params(*, ema: bool) -> dict:
    """Return `model.params` of the public BRCA 20x model: those of mini with the real sizes."""
    params = copy.deepcopy(MINI_PARAMS)
    params["use_ema"] = ema
    params["unet_config"]["params"] |= {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 5],
        "attention_resolutions": [8, 4, 2],
        "context_dim": 512,
    }
    params["first_stage_config"]["params"]["n_embed"] = 8192
    params["first_stage_config"]["params"]["ddconfig"] |= {"ch": 128, "ch_mult": [1, 2, 4], "num_res_blocks": 2}
    params["cond_stage_config"]["params"] |= {"patch_embed_dim": VIT[0], "region_embed_dim": 768}
    return params


def decoder_shapes(design: FirstStageDesign) -> dict[str, Shape]:
    """Return the shapes of the first stage's decoder, which a checkpoint holds and pathseg does not read."""
    with torch.device("meta"):
        decoder = Decoder(
            in_channels=design.z_channels,
            up_block_types=("UpDecoderBlock2D",) * len(design.channels),
            block_out_channels=design.channels,
            layers_per_block=design.num_res_blocks,
        )
    return {f"decoder.{name}": shape for name, shape in shapes_of(decoder).items()}


def full_state(params: dict, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Draw the state dict of a training checkpoint: UNet, encoder, decoder, conditioning stage, EMA copy if wanted."""
    unet, first_stage = unet_design(params), first_stage_design(params)
    shapes_of = {
        UNET: unet_shapes(unet),
        FIRST_STAGE: encoder_shapes(first_stage) | decoder_shapes(first_stage),
        CONDITIONING: conditioning_shapes(conditioning_design(params), unet.context_dim),
    }
    state = {}
    for prefix, shapes in shapes_of.items():
        state |= {prefix + name: tensor for name, tensor in random_weights(shapes, rng).items()}
    if params["use_ema"]:
        averaged = random_weights(shapes_of[UNET], rng)
        state |= {EMA + f"diffusion_model.{name}".replace(".", ""): tensor for name, tensor in averaged.items()}
        state |= {EMA + "decay": torch.tensor(0.9999), EMA + "num_updates": torch.tensor(1, dtype=torch.int32)}
    return state


def lightning_callback() -> type:
    """Make a class under the module path that Lightning checkpoints refer to; it exists only while this script runs."""
    path = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": path})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", path):
        sys.modules.setdefault(name, types.ModuleType(name))
    vars(sys.modules[path])["ModelCheckpoint"] = callback
    return callback


def write_release(folder: Path, *, seed: int, ema: bool) -> None:
    """Write config, checkpoint and the ViT's checkpoint to `folder`."""
    rng, params = np.random.default_rng(seed), full_params(ema=ema)
    for name in ("configs", "checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    config = {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}
    (folder / "configs/2023-09-01T00-00-00-project.yaml").write_text(yaml.safe_dump(config))
    content = {"epoch": 1, "state_dict": full_state(params, rng), "callbacks": {lightning_callback(): {}}}
    torch.save(content, folder / "checkpoints/last.ckpt")
    teacher = {f"backbone.{name}": tensor for name, tensor in random_weights(vit_shapes(*VIT), rng).items()}
    student = {f"module.{name}": tensor for name, tensor in teacher.items()}
    torch.save({"student": student, "teacher": teacher, "args": argparse.Namespace(patch_size=16)}, folder / HIPT_FILE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the release folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--ema", action="store_true", help="with an EMA copy of the UNet, which pathseg then uses")
    arguments = parser.parse_args()
    write_release(arguments.out, seed=arguments.seed, ema=arguments.ema)
