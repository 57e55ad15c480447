"""Train mini's first stage: a VQ autoencoder of factor 4, whose encoder is bundled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import nn

from benchmarks.mini.training_utils import (
    LossLog,
    Tensors,
    as_input,
    checkpoint_due,
    device_of,
    learning_rate,
    remaining_steps,
    save_checkpoint,
    to_compvis_names,
)
from pathseg.extract.models.ldm.config import FirstStageDesign
from pathseg.extract.models.ldm.first_stage import FirstStage, encoder_shapes

CODES = 1024
CROP_PX = 64
BATCH = 12
RATE = 2e-3
COMMIT = 0.25
RESET_EVERY = 100  # steps, in the first half, after which unused codes are moved
SPREAD = 0.02  # weight of `spread_loss`


class Block(nn.Module):
    """Residual block without normalisation, which would lose absolute colours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Decoder(nn.Module):
    """Decode latents to pixels; small, because only the training and pictures of samples need it."""

    def __init__(self, latent: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(latent, width, 3, padding=1),
            Block(width),
            Block(width),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.PixelShuffle(2),
            Block(width // 2),
            nn.Conv2d(width // 2, 64, 3, padding=1),
            nn.PixelShuffle(2),
            nn.SiLU(),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)


class Autoencoder(nn.Module):
    """Encoder, code book and decoder."""

    def __init__(self, design: FirstStageDesign) -> None:
        super().__init__()
        self.encoder = FirstStage(design)
        self.decoder = Decoder(design.embed_dim)
        self.codes = nn.Parameter(torch.randn(CODES, design.embed_dim))

    def quantise(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the nearest codes (N, C, h, w), their loss with commitment, and the count of each code."""
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.cdist(flat.detach(), self.codes.detach()).argmin(dim=1)
        nearest = self.codes[chosen]
        loss = F.mse_loss(nearest, flat.detach()) + COMMIT * F.mse_loss(flat, nearest.detach())
        counts = torch.bincount(chosen, minlength=len(self.codes))
        return nearest.view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2), loss, counts


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the absolute error of pixels and of their differences, at full, half and quarter resolution."""
    loss = output.new_zeros(())
    for level in range(3):
        loss = loss + F.l1_loss(output, target)
        for axis in (2, 3):
            loss = loss + F.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
        if level < 2:
            output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
    return loss


def spread_loss(z: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence of a normal with the latents' channel covariance from N(0, I).

    Without it, the third channel is a function of the other two.
    """
    covariance = torch.cov(z.permute(1, 0, 2, 3).flatten(1)) + 1e-4 * torch.eye(z.shape[1], device=z.device)
    return (covariance.trace() - torch.logdet(covariance) - len(covariance)) / 2


def draw_crops(fields: np.ndarray, rng: np.random.Generator, device: torch.device) -> torch.Tensor:
    """Draw a batch of random crops of random fields."""
    rows = rng.integers(len(fields), size=BATCH)
    corners = rng.integers(fields.shape[1] - CROP_PX + 1, size=(BATCH, 2))
    chosen = [fields[row, y : y + CROP_PX, x : x + CROP_PX] for row, (y, x) in zip(rows, corners, strict=True)]
    return as_input(np.stack(chosen), device)


@torch.no_grad()
def reset_unused(model: Autoencoder, z: torch.Tensor, used: torch.Tensor, rng: np.random.Generator) -> None:
    """Set the codes that were not chosen since the last reset to randomly drawn latents."""
    flat = z.permute(0, 2, 3, 1).flatten(0, 2)
    idle = (used == 0).nonzero().flatten()
    model.codes[idle] = flat[torch.from_numpy(rng.integers(len(flat), size=len(idle))).to(flat.device)]


def train_first_stage(
    fields: np.ndarray, design: FirstStageDesign, out: Path, *, steps: int, seed: int, device: torch.device
) -> Autoencoder:
    """Train the autoencoder, or resume it from the checkpoint in `out`."""
    torch.manual_seed(seed)
    model = Autoencoder(design).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.99))
    path, log = out / "first-stage.pt", LossLog(out / "first-stage.jsonl")

    def restore(content: dict) -> None:
        model.load_state_dict(content["model"])
        optimiser.load_state_dict(content["optimiser"])
        used.copy_(content["used"])

    used = torch.zeros(CODES, device=device)
    for step in remaining_steps(path, steps, restore, log):
        rng = np.random.default_rng([seed, 1, step])
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, RATE)
        images = draw_crops(fields, rng, device).contiguous(memory_format=torch.channels_last)
        z = model.encoder(images)
        if step % RESET_EVERY == 0 and step < steps // 2:
            reset_unused(model, z.detach(), used, rng)
            used.zero_()
        nearest, commitment, counts = model.quantise(z)
        used += counts
        # every other batch skips the code book, so that the decoder also learns latents that are not quantised, which
        # is what the denoiser sees
        output = model.decoder(z + (nearest - z).detach() if step % 2 else z)
        loss = reconstruction_loss(output, images)
        optimiser.zero_grad()
        spread = spread_loss(z)
        (loss + commitment + SPREAD * spread).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        psnr = -10 * F.mse_loss(output.detach().clamp(-1, 1), images).div(4).log10()
        losses = {"loss": loss, "commit": commitment, "psnr": psnr, "spread": spread}
        log.add(step, {name: float(value.detach()) for name, value in losses.items()})
        if checkpoint_due(step, steps):
            content = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "used": used}
            save_checkpoint(path, {**content, "step": step + 1})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def whiten(model: Autoencoder, fields: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold a whitening map into quant_conv: the latents' channels then have mean 0, deviation 1 and no correlation.

    Otherwise most of the latents' variance is brightness, and a little noise hides the colours. Returns the inverse
    map for the decoder, matrix (C, C) and mean (C,): z = matrix @ z' + mean.
    """
    device = device_of(model)
    batches = (as_input(fields[start : start + 8], device) for start in range(0, len(fields), 8))
    z = torch.cat([model.encoder(batch) for batch in batches])
    flat = z.permute(1, 0, 2, 3).flatten(1).double()
    mean = flat.mean(1)
    values, axes = torch.linalg.eigh(torch.cov(flat))
    deviations = values.clamp_min(0.02 * values.max()).sqrt()  # does not amplify a channel without information
    matrix = (axes / deviations) @ axes.T  # ZCA: of all whitening maps the one closest to the identity
    layer = model.encoder.quant_conv
    layer.weight.copy_((matrix @ layer.weight.flatten(1).double()).view_as(layer.weight))
    layer.bias.copy_(matrix @ (layer.bias.double() - mean))
    return matrix.inverse().float(), mean.float()


def encoder_state(stage: FirstStage, design: FirstStageDesign) -> Tensors:
    """Return the encoder's tensors under CompVis' names."""
    levels = [""] * len(design.channels)

    def convert(tensors: Tensors) -> Tensors:
        return convert_ldm_vae_checkpoint(tensors, {"down_block_types": levels, "up_block_types": levels})

    return to_compvis_names(stage.state_dict(), encoder_shapes(design), convert)
