"""Draw loss curves, reconstructions and samples of `mini`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.mini.denoiser import Denoiser
from benchmarks.mini.first_stage import Autoencoder
from benchmarks.mini.training_utils import as_input
from pathseg.extract.models.dino_vit import build_vit, vit_tokens
from pathseg.extract.models.ldm.config import schedule_of
from pathseg.extract.models.mini import MINI_PARAMS

FIELDS = (3, 40, 77, 114, 151, 188)  # held-out fields
SAMPLER_STEPS = 50
CURVES = {"first-stage": "psnr", "vit": "loss", "denoiser": "loss", "denoiser-plain": "loss"}


def draw_curves(out: Path, path: Path) -> None:
    """Draw the training curves from the logs in `out`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.8), layout="constrained")
    for axis, (name, value) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        lines = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        lines = lines[len(lines) // 20 :]  # the first steps would dominate the scale
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
    """Draw rows of held-out fields, reconstructions, z0 predicted at t = 300, samples with their embeddings."""
    images = as_input(np.stack([fields[number] for number in FIELDS]), torch.device("cpu"))
    matrix, mean = inverse
    z0 = first.encoder(images)
    embeddings = vit_tokens(build_vit(vit), images)[1]
    context = model.conditioning(embeddings)
    alpha_bars = torch.from_numpy(schedule_of(MINI_PARAMS).alpha_bars()).float()
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(z0.shape, generator=generator)
    bar = alpha_bars[300]
    zt = bar.sqrt() * z0 + (1 - bar).sqrt() * eps
    predicted = (zt - (1 - bar).sqrt() * model.unet(zt, 300, context).sample) / bar.sqrt()
    sample = torch.randn(z0.shape, generator=generator)
    times = np.linspace(len(alpha_bars) - 1, 0, SAMPLER_STEPS).round().astype(int)
    for t, next_t in zip(times, [*times[1:], None], strict=True):  # DDIM, eta 0
        bar, next_bar = alpha_bars[t], alpha_bars[next_t] if next_t is not None else torch.tensor(1.0)
        noise = model.unet(sample, int(t), context).sample
        sample = next_bar.sqrt() * (sample - (1 - bar).sqrt() * noise) / bar.sqrt() + (1 - next_bar).sqrt() * noise
    latents = (torch.einsum("ij,njhw->nihw", matrix, z) + mean[:, None, None] for z in (z0, predicted, sample))
    rows = [images, *map(first.decoder, latents)]
    tiles = [torch.cat(list(row), dim=2) for row in rows]
    picture = torch.cat(tiles, dim=1).clamp(-1, 1).add(1).mul(127.5).byte().permute(1, 2, 0).numpy()
    Image.fromarray(picture).resize((picture.shape[1] // 2, picture.shape[0] // 2), Image.Resampling.BOX).save(
        path, quality=85
    )
