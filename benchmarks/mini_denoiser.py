"""Training of mini's denoiser and of its conditioning stage, on latents and embeddings that are computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from mini_training import (
    Average,
    Log,
    Tensors,
    as_input,
    device_of,
    keep_now,
    rate,
    save,
    steps_from,
    under_compvis_names,
)
from torch import nn

from pathseg.extract.models.dino_vit import build_vit, vit_tokens
from pathseg.extract.models.ldm.conditioning import Conditioning
from pathseg.extract.models.ldm.config import ConditioningDesign, UNetDesign
from pathseg.extract.models.ldm.shapes import unet_shapes
from pathseg.extract.models.ldm.unet import empty_unet

WINDOW = 32  # cells of a latent that a step sees of a field's 64, four times as quick
BATCH = 16
RATE = 1e-3
DROPPED = 0.1  # share of samples without an embedding, as the paper's model was trained
DECAY = 0.998  # of the averaged weights
SEEDS_APART = 1_000_003  # between the noise of one seed and of the next
TOGETHER = 10  # steps after which replicas take the mean of their weights


@dataclass(frozen=True)
class Phase:
    """A part of the training: its file of checkpoints, of random numbers, how many steps, and how losses are weighed.

    A sample's loss is divided by abar_t, or by `floor` where that is more: by abar_t a white signal of unit variance
    would leave the same at every t; with a floor of 1 it is the plain loss.
    """

    name: str
    stream: int
    steps: int
    floor: float


@dataclass(frozen=True)
class Latents:
    """What the denoiser learns from: z0 (N, 3, 64, 64) and embeddings (N, D) of fields."""

    z0: torch.Tensor
    embeddings: torch.Tensor


@torch.inference_mode()
def encode(fields: np.ndarray, stage: nn.Module, vit: Mapping[str, torch.Tensor], path: Path) -> Latents:
    """Encode fields once; kept in `path`, latents in half precision."""
    if not path.exists():
        device, found = device_of(stage), []
        network = build_vit(vit).to(device)
        for start in range(0, len(fields), 8):
            images = as_input(fields[start : start + 8], device)
            found.append((stage(images).half().cpu(), vit_tokens(network, images)[1].clone().cpu()))
        z0, embeddings = map(torch.cat, zip(*found, strict=True))
        save(path, {"z0": z0, "embeddings": embeddings})
    return Latents(**torch.load(path, weights_only=True))


class Denoiser(nn.Module):
    """The UNet and the conditioning stage, as the training starts them."""

    def __init__(self, unet: UNetDesign, conditioning: ConditioningDesign, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.unet = empty_unet(unet)
        for name, parameter in self.unet.named_parameters():  # a new residual block changes nothing, as in CompVis
            if "conv2." in name or name.startswith("conv_out."):  # but attention does, or its context is found late
                nn.init.zeros_(parameter)
        self.conditioning = Conditioning(conditioning, unet.context_dim)
        spread_embeddings(self.conditioning, embeddings)

    def forward(self, zt: torch.Tensor, t: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """eps as predicted."""
        return self.unet(zt, t, self.conditioning(embeddings)).sample


@torch.no_grad()
def spread_embeddings(stage: Conditioning, embeddings: torch.Tensor) -> None:
    """Start patch_fc as the leading principal components of the embeddings at unit deviation.

    Unit vectors of which most is common to all patches would otherwise take thousands of steps to be told apart.
    """
    unit = F.normalize(embeddings.float(), dim=-1) if stage.design.normalize else embeddings.float()
    mean = unit.mean(0)
    _, values, axes = torch.linalg.svd(unit - mean, full_matrices=False)
    kept = min(32, stage.patch_fc.out_features)
    deviation = values[:kept] / len(unit) ** 0.5
    weight = torch.zeros_like(stage.patch_fc.weight)
    weight[:kept] = axes[:kept] / deviation[:, None].clamp_min(1e-3)
    stage.patch_fc.weight.copy_(weight)
    stage.patch_fc.bias.copy_(-weight @ mean)


def windows(latents: Latents, rng: np.random.Generator, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch: windows of z0 and the embeddings of their fields."""
    count = BATCH * WINDOW**2 // side**2
    rows = rng.integers(len(latents.z0), size=count)
    corners = rng.integers(latents.z0.shape[-1] - side + 1, size=(count, 2))
    z0 = [latents.z0[row, :, y : y + side, x : x + side] for row, (y, x) in zip(rows, corners, strict=True)]
    return torch.stack(z0).float(), latents.embeddings[torch.from_numpy(rows)].float()


def train_denoiser(
    latents: Latents,
    model: Denoiser,
    alpha_bars: np.ndarray,
    phase: Phase,
    out: Path,
    *,
    seed: int,
    device: torch.device,
) -> Denoiser:
    """Train a phase, or go on from its checkpoint in `out`; the averaged weights come back.

    Half of the timesteps lie below 250, because features are taken where there is little noise. Every eighth step
    sees whole fields, so that attention meets as many tokens as it will. In a process group every process trains a
    replica on its own batches (local SGD): on two cores quicker than two threads. Process 0 writes.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    model = model.to(device, memory_format=torch.channels_last).requires_grad_().train()
    agree(model, mean=False)  # the phase before gave every replica an average of its own
    average = Average(model, DECAY)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    bars = torch.from_numpy(alpha_bars).float()
    path, log = out / f"{phase.name}.pt", Log(out / f"{phase.name}.jsonl", every=20)

    def restore(content: dict) -> None:
        model.load_state_dict(content["model"])
        average.restore(content["average"], content["step"])
        optimiser.load_state_dict(content["optimisers"][rank])

    for step in steps_from(path, phase.steps, restore, log):
        rng = np.random.default_rng([seed, phase.stream, step, rank])
        generator = torch.Generator().manual_seed(SEEDS_APART * seed + 2 * step + rank)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, phase.steps, RATE)
        z0, embeddings = windows(latents, rng, WINDOW if step % 8 else 2 * WINDOW)
        t = torch.from_numpy((len(bars) * rng.random(len(z0)) ** 2).astype(np.int64))
        bar = bars[t][:, None, None, None]
        eps = torch.randn(z0.shape, generator=generator)
        embeddings = embeddings * torch.from_numpy(rng.random((len(z0), 1)) >= DROPPED)
        zt = (bar.sqrt() * z0 + (1 - bar).sqrt() * eps).contiguous(memory_format=torch.channels_last)
        found = model(zt.to(device), t.to(device), embeddings.to(device))
        losses = (found - eps.to(device)).square().mean((1, 2, 3))  # (N,)
        loss = (losses / bar.flatten().clamp_min(phase.floor).to(device)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % TOGETHER == 0:
            agree(model, mean=True)
        average.update(model)
        if not rank:
            log.add(step, {"loss": float(loss.detach()), "eps": float(losses.detach().mean())})
        if keep_now(step, phase.steps):
            states = of_all_replicas(optimiser.state_dict())
            content = {"model": model.state_dict(), "average": average.weights, "optimisers": states}
            if not rank:
                save(path, {**content, "step": step + 1})
    model.load_state_dict(average.weights)
    return model.cpu().eval().requires_grad_(False)


def of_all_replicas(state: dict) -> list[dict]:
    """The states of all replicas, in their order, on replica 0; a list of this one's without others."""
    if not dist.is_initialized():
        return [state]
    states = [None] * dist.get_world_size()
    dist.gather_object(state, states if dist.get_rank() == 0 else None)
    return states


@torch.no_grad()
def agree(model: nn.Module, *, mean: bool) -> None:
    """Every replica gets the mean of all replicas' weights, or those of replica 0."""
    if not dist.is_initialized():
        return
    parameters = list(model.parameters())
    together = torch.cat([parameter.flatten() for parameter in parameters])
    if mean:
        dist.all_reduce(together)
        together /= dist.get_world_size()
    else:
        dist.broadcast(together, src=0)
    parts = together.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view(parameter.shape))


def unet_state(unet: UNet2DConditionModel, design: UNetDesign) -> Tensors:
    """The UNet's tensors under CompVis' names, as below `model.diffusion_model.`."""

    def convert(tensors: Tensors) -> Tensors:
        prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
        return convert_ldm_unet_checkpoint(prefixed, {"layers_per_block": design.num_res_blocks})

    return under_compvis_names(unet.state_dict(), unet_shapes(design), convert)
