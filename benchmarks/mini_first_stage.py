"""Training of mini's first stage: a VQ autoencoder of factor 4; its encoder is what is shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from mini_training import Log, Tensors, as_input, device_of, keep_now, rate, save, steps_from, under_compvis_names
from torch import nn

from pathseg.extract.models.ldm.config import FirstStageDesign
from pathseg.extract.models.ldm.first_stage import FirstStage
from pathseg.extract.models.ldm.shapes import encoder_shapes

CODES = 1024
CUT_PX = 64
BATCH = 12
RATE = 2e-3
COMMIT = 0.25
RESET_EVERY = 100  # steps, in the first half, after which codes that nothing chose are moved
SPREAD = 0.02  # weight of `spread_loss`


class Block(nn.Module):
    """A residual block without norms: absolute colours pass."""

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
    """Latents to pixels; small, because it is only needed to train the encoder and to look at samples."""

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
        """The nearest codes as a map, the loss that draws codes and latents together, and how often each was chosen."""
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.cdist(flat.detach(), self.codes.detach()).argmin(dim=1)
        nearest = self.codes[chosen]
        loss = F.mse_loss(nearest, flat.detach()) + COMMIT * F.mse_loss(flat, nearest.detach())
        counts = torch.bincount(chosen, minlength=len(self.codes))
        return nearest.view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2), loss, counts


def reconstruction_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Absolute error of pixels, of the halved and quartered images, and of their edges."""
    loss = found.new_zeros(())
    for level in range(3):
        loss = loss + F.l1_loss(found, wanted)
        for axis in (2, 3):
            loss = loss + F.l1_loss(found.diff(dim=axis), wanted.diff(dim=axis))
        if level < 2:
            found, wanted = F.avg_pool2d(found, 2), F.avg_pool2d(wanted, 2)
    return loss


def spread_loss(z: torch.Tensor) -> torch.Tensor:
    """How far the latents' channels are from unit deviation and no correlation: a normal's divergence from N(0, I).

    Without it two channels carried everything and the third followed them.
    """
    covariance = torch.cov(z.permute(1, 0, 2, 3).flatten(1)) + 1e-4 * torch.eye(z.shape[1], device=z.device)
    return (covariance.trace() - torch.logdet(covariance) - len(covariance)) / 2


def cuts(fields: np.ndarray, rng: np.random.Generator, device: torch.device) -> torch.Tensor:
    """A batch of random cuts of random fields."""
    rows = rng.integers(len(fields), size=BATCH)
    corners = rng.integers(fields.shape[1] - CUT_PX + 1, size=(BATCH, 2))
    chosen = [fields[row, y : y + CUT_PX, x : x + CUT_PX] for row, (y, x) in zip(rows, corners, strict=True)]
    return as_input(np.stack(chosen), device)


@torch.no_grad()
def reset_unused(model: Autoencoder, z: torch.Tensor, used: torch.Tensor, rng: np.random.Generator) -> None:
    """Codes that nothing chose for a while move to where latents are."""
    flat = z.permute(0, 2, 3, 1).flatten(0, 2)
    idle = (used == 0).nonzero().flatten()
    model.codes[idle] = flat[torch.from_numpy(rng.integers(len(flat), size=len(idle))).to(flat.device)]


def train_first_stage(
    fields: np.ndarray, design: FirstStageDesign, out: Path, *, steps: int, seed: int, device: torch.device
) -> Autoencoder:
    """Train, or go on from the checkpoint in `out`."""
    torch.manual_seed(seed)
    model = Autoencoder(design).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.99))
    path, log = out / "first-stage.pt", Log(out / "first-stage.jsonl")

    def restore(content: dict) -> None:
        model.load_state_dict(content["model"])
        optimiser.load_state_dict(content["optimiser"])
        used.copy_(content["used"])

    used = torch.zeros(CODES, device=device)
    for step in steps_from(path, steps, restore, log):
        rng = np.random.default_rng([seed, 1, step])
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, RATE)
        images = cuts(fields, rng, device).contiguous(memory_format=torch.channels_last)
        z = model.encoder(images)
        if step % RESET_EVERY == 0 and step < steps // 2:
            reset_unused(model, z.detach(), used, rng)
            used.zero_()
        nearest, commitment, counts = model.quantise(z)
        used += counts
        # Every other batch goes round the code book, so that the decoder also reads latents as they are, which is
        # what the denoiser sees.
        found = model.decoder(z + (nearest - z).detach() if step % 2 else z)
        loss = reconstruction_loss(found, images)
        optimiser.zero_grad()
        spread = spread_loss(z)
        (loss + commitment + SPREAD * spread).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        psnr = -10 * F.mse_loss(found.detach().clamp(-1, 1), images).div(4).log10()
        shown = {"loss": loss, "commit": commitment, "psnr": psnr, "spread": spread}
        log.add(step, {name: float(value.detach()) for name, value in shown.items()})
        if keep_now(step, steps):
            content = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "used": used}
            save(path, {**content, "step": step + 1})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def whiten(model: Autoencoder, fields: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold a map into quant_conv after which the latents' channels have mean 0, deviation 1 and no correlation.

    Left alone, most of the latents' variance is brightness, and a little noise drowns the colours. Returns the
    inverse map, for the decoder's side: z = matrix @ z' + mean.
    """
    device = device_of(model)
    batches = (as_input(fields[start : start + 8], device) for start in range(0, len(fields), 8))
    z = torch.cat([model.encoder(batch) for batch in batches])
    flat = z.permute(1, 0, 2, 3).flatten(1).double()
    mean = flat.mean(1)
    values, axes = torch.linalg.eigh(torch.cov(flat))
    deviations = values.clamp_min(0.02 * values.max()).sqrt()  # a channel that says nothing is not blown up
    matrix = (axes / deviations) @ axes.T  # of all such maps the one that turns the channels least
    layer = model.encoder.quant_conv
    layer.weight.copy_((matrix @ layer.weight.flatten(1).double()).view_as(layer.weight))
    layer.bias.copy_(matrix @ (layer.bias.double() - mean))
    return matrix.inverse().float(), mean.float()


def encoder_state(stage: FirstStage, design: FirstStageDesign) -> Tensors:
    """The encoder's tensors under CompVis' names."""
    levels = [""] * len(design.channels)

    def convert(tensors: Tensors) -> Tensors:
        return convert_ldm_vae_checkpoint(tensors, {"down_block_types": levels, "up_block_types": levels})

    return under_compvis_names(stage.state_dict(), encoder_shapes(design), convert)
