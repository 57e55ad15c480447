"""Train `mini`, the bundled model, from free images: first stage, ViT, denoiser and conditioning stage.

    python benchmarks/mini.py --data ../shared/data --out DIR

Run it again after an interruption: fields, latents and the last checkpoint of each part are in DIR. It ends with the
two files of weights that are shipped (`mini.safetensors`, `mini-vit.safetensors`, half precision), their SHA-256 for
`extract/catalogue.py`, the loss curves and a sheet of reconstructions and samples. See `extract/weights/MODEL_CARD.md`
for what it was trained on and what it is worth.
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
from mini_denoiser import Denoiser, Latents, Phase, encode, train_denoiser, unet_state
from mini_fields import draw_fields
from mini_first_stage import Autoencoder, encoder_state, train_first_stage, whiten
from mini_sheet import draw_curves, draw_sheet
from mini_training import Tensors
from mini_vit import train_vit
from safetensors.torch import save_file
from torch.multiprocessing import spawn

from pathseg.extract.models.ldm.config import conditioning_design, first_stage_design, schedule_of, unet_design
from pathseg.extract.models.ldm.release import CONDITIONING, FIRST_STAGE, UNET
from pathseg.extract.models.mini import MINI_PARAMS, MINI_VIT

FIELDS, HELD = 6144, 256  # of 256 px, to train on and held out
ENCODED = 3072  # of the fields, as latents for the denoiser
MEETING = "replicas"  # the file through which replicas find each other


def new_denoiser(latents: Latents, seed: int) -> Denoiser:
    """Before training, the same each time."""
    torch.manual_seed(seed)
    return Denoiser(unet_design(MINI_PARAMS), conditioning_design(MINI_PARAMS), latents.embeddings)


def finish_first_stage(fields: np.ndarray, arguments: argparse.Namespace) -> Autoencoder:
    """Train what is left of the steps, as the next two do."""
    return train_first_stage(
        fields,
        first_stage_design(MINI_PARAMS),
        arguments.out,
        steps=arguments.first_stage_steps,
        seed=arguments.seed,
        device=torch.device(arguments.device),
    )


def finish_vit(fields: np.ndarray, arguments: argparse.Namespace) -> Tensors:
    """The ViT's weights."""
    place = {"seed": arguments.seed, "device": torch.device(arguments.device)}
    return train_vit(fields, MINI_VIT, arguments.out, steps=arguments.vit_steps, **place)


def encoder_alone(rank: int, arguments: argparse.Namespace) -> None:
    """One of two processes that train the first stage and the ViT side by side."""
    torch.set_num_threads(1)
    fields = draw_fields(arguments.data, arguments.out, seed=arguments.seed, part="train", count=FIELDS)
    (finish_first_stage, finish_vit)[rank](fields, arguments)


def replica(rank: int, arguments: argparse.Namespace) -> None:
    """One of the processes that train the denoiser together."""
    torch.set_num_threads(1)
    meeting = (arguments.out / MEETING).absolute().as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=arguments.replicas)
    latents = Latents(**torch.load(arguments.out / "latents.pt", weights_only=True))
    finish_denoiser(latents, arguments)
    dist.destroy_process_group()


def finish_denoiser(latents: Latents, arguments: argparse.Namespace) -> Denoiser:
    """The denoiser and the conditioning stage.

    By itself the loss is nearly all from small t, where most of it cannot be learned, and nearly none from large t,
    where the context helps. So at first all timesteps count alike, and the context is found; then each for what it is,
    and features at the small timesteps, where they are taken, become better.
    """
    model, bars = new_denoiser(latents, arguments.seed), schedule_of(MINI_PARAMS).alpha_bars()
    phases = (
        Phase("denoiser", 3, arguments.denoiser_steps, floor=0.01),
        Phase("denoiser-plain", 4, arguments.plain_steps, floor=1),
    )
    for phase in phases:
        place = {"seed": arguments.seed, "device": torch.device(arguments.device)}
        model = train_denoiser(latents, model, bars, phase, arguments.out, **place)
    return model


def train(arguments: argparse.Namespace) -> dict[str, Tensors]:
    """All parts in turn: file name -> tensors. What other processes trained is read from their checkpoints."""
    out, seed = arguments.out, arguments.seed
    fields = draw_fields(arguments.data, out, seed=seed, part="train", count=FIELDS)
    held = draw_fields(arguments.data, out, seed=seed, part="held", count=HELD)
    if arguments.replicas > 1:
        spawn(encoder_alone, (arguments,), nprocs=2)
    first, vit = finish_first_stage(fields, arguments), finish_vit(fields, arguments)
    inverse = whiten(first, fields[:64])
    latents = encode(fields[:ENCODED], first.encoder, vit, out / "latents.pt")
    if arguments.replicas > 1:
        (out / MEETING).unlink(missing_ok=True)
        spawn(replica, (arguments,), nprocs=arguments.replicas)
    model = finish_denoiser(latents, arguments)
    draw_curves(out, arguments.pictures / "mini-curves.png")
    draw_sheet(first.cpu(), [part.cpu() for part in inverse], model, vit, held, arguments.pictures / "mini-sheet.jpg")
    parts = {
        UNET: unet_state(model.unet, unet_design(MINI_PARAMS)),
        FIRST_STAGE: encoder_state(first.encoder, first_stage_design(MINI_PARAMS)),
        CONDITIONING: model.conditioning.state_dict(),
    }
    named = {part + name: tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    return {"mini.safetensors": named, "mini-vit.safetensors": vit}


def require_same(arguments: argparse.Namespace) -> None:
    """Keep the settings in the folder. Raises SystemExit when what lies there was trained with others."""
    names = ("seed", "replicas", "first_stage_steps", "vit_steps", "denoiser_steps", "plain_steps")
    settings, path = {name: getattr(arguments, name) for name in names}, arguments.out / "settings.json"
    if path.exists() and (there := json.loads(path.read_text())) != settings:
        sys.exit(f"{arguments.out} holds a training with {there}, not {settings}; give another --out")
    path.write_text(json.dumps(settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with brecahad/, slides/ and bcss/")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, logs and the trained weights")
    parser.add_argument("--pictures", type=Path, help="where curves and sheet go, by default --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--replicas",
        type=int,
        help="processes of one thread each that train the denoiser together, after two for the other parts "
        "(default 2, on a GPU 1)",
    )
    parser.add_argument("--first-stage-steps", type=int, default=2400)
    parser.add_argument("--vit-steps", type=int, default=2000)
    parser.add_argument("--denoiser-steps", type=int, default=2600)
    parser.add_argument("--plain-steps", type=int, default=2400, help="of the denoiser, after those")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.pictures = arguments.pictures or arguments.out
    arguments.replicas = arguments.replicas or (2 if arguments.device == "cpu" else 1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    require_same(arguments)
    for name, tensors in train(arguments).items():
        path = arguments.out / name
        save_file({key: tensor.half().contiguous() for key, tensor in tensors.items()}, path)
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
