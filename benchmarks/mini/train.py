"""Train `mini`, the bundled model, from free images: first stage, ViT, denoiser and conditioning stage.

    python -m benchmarks.mini.train --data ../shared/data --out DIR

Run it again to resume after an interruption: fields, latents and the last checkpoint of each network are in DIR. It
writes the two bundled weight files (`mini.safetensors`, `mini-vit.safetensors`, half precision), prints their SHA-256
for `extract/models/registry.py`, and draws loss curves, reconstructions and samples. `extract/weights/MODEL_CARD.md`
describes the training data and the results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.multiprocessing import spawn

from benchmarks.mini.denoiser import Denoiser, Latents, Phase, encode, train_denoiser, unet_state
from benchmarks.mini.fields import draw_fields
from benchmarks.mini.first_stage import Autoencoder, encoder_state, train_first_stage, whiten
from benchmarks.mini.pictures import draw_curves, draw_sheet
from benchmarks.mini.training_utils import Tensors
from benchmarks.mini.vit import train_vit
from pathseg.extract.models.ldm.config import conditioning_design, first_stage_design, schedule_of, unet_design
from pathseg.extract.models.ldm.release import CONDITIONING, FIRST_STAGE, UNET
from pathseg.extract.models.mini import MINI_PARAMS, MINI_VIT

TRAIN_FIELDS, HELD_OUT_FIELDS = 6144, 256  # of 256 px
ENCODED_FIELDS = 3072  # the first of the training fields, whose latents train the denoiser
RENDEZVOUS = "replicas"  # file by which the processes of torch.distributed find each other


def new_denoiser(latents: Latents, seed: int) -> Denoiser:
    """Build the untrained denoiser, with the same weights for the same seed."""
    torch.manual_seed(seed)
    return Denoiser(unet_design(MINI_PARAMS), conditioning_design(MINI_PARAMS), latents.embeddings)


def finish_first_stage(fields: np.ndarray, arguments: argparse.Namespace) -> Autoencoder:
    """Train the remaining steps of the first stage."""
    return train_first_stage(
        fields,
        first_stage_design(MINI_PARAMS),
        arguments.out,
        steps=arguments.first_stage_steps,
        seed=arguments.seed,
        device=torch.device(arguments.device),
    )


def finish_vit(fields: np.ndarray, arguments: argparse.Namespace) -> Tensors:
    """Train the remaining steps of the ViT; return its weights."""
    return train_vit(
        fields,
        MINI_VIT,
        arguments.out,
        steps=arguments.vit_steps,
        seed=arguments.seed,
        device=torch.device(arguments.device),
    )


def encoder_process(rank: int, arguments: argparse.Namespace) -> None:
    """Train the first stage (rank 0) or the ViT (rank 1), in one of two concurrent processes."""
    torch.set_num_threads(1)
    fields = draw_fields(arguments.data, arguments.out, seed=arguments.seed, split="train", count=TRAIN_FIELDS)
    (finish_first_stage, finish_vit)[rank](fields, arguments)


def replica_process(rank: int, arguments: argparse.Namespace) -> None:
    """Train one replica of the denoiser."""
    torch.set_num_threads(1)
    rendezvous = (arguments.out / RENDEZVOUS).absolute().as_uri()
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=arguments.replicas)
    latents = Latents(**torch.load(arguments.out / "latents.pt", weights_only=True))
    finish_denoiser(latents, arguments)
    dist.destroy_process_group()


def finish_denoiser(latents: Latents, arguments: argparse.Namespace) -> Denoiser:
    """Train the remaining steps of the denoiser and the conditioning stage, in two phases.

    The unweighted loss comes nearly all from small t, where most of it is irreducible, and hardly from large t, where
    the context helps. The first phase weights all timesteps alike, so that the model learns to use its context; the
    second uses the unweighted loss, which improves features at the small timesteps that are used.
    """
    model, bars = new_denoiser(latents, arguments.seed), schedule_of(MINI_PARAMS).alpha_bars()
    phases = (
        Phase("denoiser", 3, arguments.denoiser_steps, floor=0.01),
        Phase("denoiser-plain", 4, arguments.plain_steps, floor=1),
    )
    for phase in phases:
        device = torch.device(arguments.device)
        model = train_denoiser(latents, model, bars, phase, arguments.out, seed=arguments.seed, device=device)
    return model


def train(arguments: argparse.Namespace) -> dict[str, Tensors]:
    """Train all networks, or read the checkpoints of other processes; return {file name: tensors}."""
    out, seed = arguments.out, arguments.seed
    fields = draw_fields(arguments.data, out, seed=seed, split="train", count=TRAIN_FIELDS)
    held_out = draw_fields(arguments.data, out, seed=seed, split="held", count=HELD_OUT_FIELDS)
    if arguments.replicas > 1:
        spawn(encoder_process, (arguments,), nprocs=2)
    first, vit = finish_first_stage(fields, arguments), finish_vit(fields, arguments)
    inverse = whiten(first, fields[:64])
    latents = encode(fields[:ENCODED_FIELDS], first.encoder, vit, out / "latents.pt")
    if arguments.replicas > 1:
        (out / RENDEZVOUS).unlink(missing_ok=True)
        spawn(replica_process, (arguments,), nprocs=arguments.replicas)
    model = finish_denoiser(latents, arguments)
    draw_curves(out, arguments.pictures / "mini-curves.png")
    inverse = [tensor.cpu() for tensor in inverse]
    draw_sheet(first.cpu(), inverse, model, vit, held_out, arguments.pictures / "mini-sheet.jpg")
    states = {
        UNET: unet_state(model.unet, unet_design(MINI_PARAMS)),
        FIRST_STAGE: encoder_state(first.encoder, first_stage_design(MINI_PARAMS)),
        CONDITIONING: model.conditioning.state_dict(),
    }
    merged = {prefix + name: tensor for prefix, tensors in states.items() for name, tensor in tensors.items()}
    return {"mini.safetensors": merged, "mini-vit.safetensors": vit}


def require_same_settings(arguments: argparse.Namespace) -> None:
    """Save the settings in --out. Raises SystemExit where the folder holds a training with others."""
    names = ("seed", "replicas", "first_stage_steps", "vit_steps", "denoiser_steps", "plain_steps")
    settings, path = {name: getattr(arguments, name) for name in names}, arguments.out / "settings.json"
    if path.exists() and (existing := json.loads(path.read_text())) != settings:
        sys.exit(f"{arguments.out} holds a training with {existing}, not {settings}; give another --out")
    path.write_text(json.dumps(settings))


def main() -> None:
    """Train, and write the weight files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with brecahad/, slides/ and bcss/")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, logs and the trained weights")
    parser.add_argument("--pictures", type=Path, help="folder of curves and sheet, by default --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--replicas",
        type=int,
        help="processes of one thread each that train the denoiser together, after two for the other networks "
        "(default 2, on a GPU 1)",
    )
    parser.add_argument("--first-stage-steps", type=int, default=2400)
    parser.add_argument("--vit-steps", type=int, default=2000)
    parser.add_argument("--denoiser-steps", type=int, default=2600)
    parser.add_argument("--plain-steps", type=int, default=2400, help="of the denoiser's second phase")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.pictures = arguments.pictures or arguments.out
    arguments.replicas = arguments.replicas or (2 if arguments.device == "cpu" else 1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    require_same_settings(arguments)
    for name, tensors in train(arguments).items():
        path = arguments.out / name
        save_file({key: tensor.half().contiguous() for key, tensor in tensors.items()}, path)
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
