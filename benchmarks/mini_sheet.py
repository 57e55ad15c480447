"""Pictures of the training of `mini`: loss curves, and what decoded latents and samples look like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mini_denoiser import Denoiser
from mini_first_stage import Autoencoder
from mini_training import as_input
from PIL import Image

from pathseg.extract.models.dino_vit import build_vit, vit_tokens
from pathseg.extract.models.ldm.config import schedule_of
from pathseg.extract.models.mini import MINI_PARAMS

SHOWN = (3, 40, 77, 114, 151, 188)  # held-out fields
SAMPLER_STEPS = 50
CURVES = {"first-stage": "psnr", "vit": "loss", "denoiser": "loss", "denoiser-plain": "loss"}


def draw_curves(out: Path, path: Path) -> None:
    """The curves of the trainings, from their logs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.8), layout="constrained")
    for axis, (name, value) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        lines = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        lines = lines[len(lines) // 20 :]  # the fall at the very start would hide all else
        axis.plot([line["step"] for line in lines], [line[value] for line in lines])
        axis.set(title=name, xlabel="step", ylabel={"psnr": "PSNR, dB"}.get(value, value))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


@torch.inference_mode()
def draw_sheet(
    first: Autoencoder,
    inverse: Sequence[torch.Tensor],
    model: Denoiser,
    vit: Mapping[str, torch.Tensor],
    fields: np.ndarray,
    path: Path,
) -> None:
    """Rows: held-out fields; their reconstructions; z0 as predicted from t = 300; samples with their embeddings."""
    images = as_input(np.stack([fields[number] for number in SHOWN]), torch.device("cpu"))
    matrix, mean = inverse
    z0 = first.encoder(images)
    embeddings = vit_tokens(build_vit(vit), images)[1]
    context = model.conditioning(embeddings)
    alpha_bars = torch.from_numpy(schedule_of(MINI_PARAMS).alpha_bars()).float()
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(z0.shape, generator=generator)
    bar = alpha_bars[300]
    zt = bar.sqrt() * z0 + (1 - bar).sqrt() * eps
    guess = (zt - (1 - bar).sqrt() * model.unet(zt, 300, context).sample) / bar.sqrt()
    sample = torch.randn(z0.shape, generator=generator)
    times = np.linspace(len(alpha_bars) - 1, 0, SAMPLER_STEPS).round().astype(int)
    for t, then in zip(times, [*times[1:], None], strict=True):  # DDIM, eta 0
        bar, next_bar = alpha_bars[t], alpha_bars[then] if then is not None else torch.tensor(1.0)
        noise = model.unet(sample, int(t), context).sample
        sample = next_bar.sqrt() * (sample - (1 - bar).sqrt() * noise) / bar.sqrt() + (1 - next_bar).sqrt() * noise
    latents = (torch.einsum("ij,njhw->nihw", matrix, z) + mean[:, None, None] for z in (z0, guess, sample))
    rows = [images, *map(first.decoder, latents)]
    tiles = [torch.cat(list(row), dim=2) for row in rows]
    sheet = torch.cat(tiles, dim=1).clamp(-1, 1).add(1).mul(127.5).byte().permute(1, 2, 0).numpy()
    Image.fromarray(sheet).resize((sheet.shape[1] // 2, sheet.shape[0] // 2), Image.Resampling.BOX).save(
        path, quality=85
    )
