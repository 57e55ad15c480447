"""Train mini's denoiser and conditioning stage on latents and embeddings computed once."""

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
from torch import nn

from benchmarks.mini.training_utils import (
    LossLog,
    Tensors,
    WeightAverage,
    as_input,
    checkpoint_due,
    device_of,
    learning_rate,
    remaining_steps,
    save_checkpoint,
    to_compvis_names,
)
from pathseg.extract.models.dino_vit import build_vit, vit_tokens
from pathseg.extract.models.ldm.conditioning import Conditioning
from pathseg.extract.models.ldm.config import ConditioningDesign, UNetDesign
from pathseg.extract.models.ldm.unet import empty_unet, unet_shapes

CROP = 32  # side of the latent crops in cells, of 64: a step is four times as fast
BATCH = 16
RATE = 1e-3
DROP_RATE = 0.1  # share of samples without an embedding, as in the paper's model
EMA_DECAY = 0.998
SEED_STRIDE = 1_000_003  # between the noise seeds of two training seeds
AVERAGE_EVERY = 10  # steps after which the replicas average their weights


@dataclass(frozen=True)
class Phase:
    """A phase of the training: name of its checkpoint, random stream, steps, and the floor of the loss weights.

    A sample's loss is divided by max(abar_t, floor). Divided by abar_t, white latents of unit variance would have the
    same remaining loss at every t; a floor of 1 gives the unweighted loss.
    """

    name: str
    stream: int
    steps: int
    floor: float


@dataclass(frozen=True)
class Latents:
    """Training data of the denoiser: z0 (N, 3, 64, 64) and embeddings (N, D) of fields."""

    z0: torch.Tensor
    embeddings: torch.Tensor


@torch.inference_mode()
def encode(fields: np.ndarray, stage: nn.Module, vit: Mapping[str, torch.Tensor], path: Path) -> Latents:
    """Encode fields and save them to `path`, latents in half precision; read them from there if it exists."""
    if not path.exists():
        device, batches = device_of(stage), []
        network = build_vit(vit).to(device)
        for start in range(0, len(fields), 8):
            images = as_input(fields[start : start + 8], device)
            batches.append((stage(images).half().cpu(), vit_tokens(network, images)[1].clone().cpu()))
        z0, embeddings = map(torch.cat, zip(*batches, strict=True))
        save_checkpoint(path, {"z0": z0, "embeddings": embeddings})
    return Latents(**torch.load(path, weights_only=True))


class Denoiser(nn.Module):
    """UNet and conditioning stage with the initial weights of the training."""

    def __init__(self, unet: UNetDesign, conditioning: ConditioningDesign, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.unet = empty_unet(unet)
        for name, parameter in self.unet.named_parameters():
            # residual blocks start as identities, as in CompVis; attention does not, or it learns its context late
            if "conv2." in name or name.startswith("conv_out."):
                nn.init.zeros_(parameter)
        self.conditioning = Conditioning(conditioning, unet.context_dim)
        init_with_components(self.conditioning, embeddings)

    def forward(self, zt: torch.Tensor, t: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Predict eps."""
        return self.unet(zt, t, self.conditioning(embeddings)).sample


@torch.no_grad()
def init_with_components(stage: Conditioning, embeddings: torch.Tensor) -> None:
    """Initialise patch_fc with the leading principal components of the embeddings, scaled to unit deviation.

    Unit vectors are nearly the same for all patches; without this the model needs thousands of steps to separate them.
    """
    unit = F.normalize(embeddings.float(), dim=-1) if stage.design.normalize else embeddings.float()
    mean = unit.mean(0)
    _, values, axes = torch.linalg.svd(unit - mean, full_matrices=False)
    count = min(32, stage.patch_fc.out_features)
    deviation = values[:count] / len(unit) ** 0.5
    weight = torch.zeros_like(stage.patch_fc.weight)
    weight[:count] = axes[:count] / deviation[:, None].clamp_min(1e-3)
    stage.patch_fc.weight.copy_(weight)
    stage.patch_fc.bias.copy_(-weight @ mean)


def draw_batch(latents: Latents, rng: np.random.Generator, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a batch of z0 crops (N, 3, side, side) and the embeddings (N, D) of their fields, float32."""
    count = BATCH * CROP**2 // side**2
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
    """Train a phase, or resume it from its checkpoint in `out`; return the model with its averaged weights.

    Half of the timesteps are below 250, because features are taken where there is little noise. Every eighth step uses
    whole fields, so that attention sees as many tokens as at inference. In a process group every process trains a
    replica on its own batches (local SGD), which is faster on two cores than two threads. Process 0 writes.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    model = model.to(device, memory_format=torch.channels_last).requires_grad_().train()
    synchronise_weights(model, mean=False)  # after the previous phase every replica has its own average
    average = WeightAverage(model, EMA_DECAY)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    bars = torch.from_numpy(alpha_bars).float()
    path, log = out / f"{phase.name}.pt", LossLog(out / f"{phase.name}.jsonl", every=20)

    def restore(content: dict) -> None:
        model.load_state_dict(content["model"])
        average.restore(content["average"], content["step"])
        optimiser.load_state_dict(content["optimisers"][rank])

    for step in remaining_steps(path, phase.steps, restore, log):
        rng = np.random.default_rng([seed, phase.stream, step, rank])
        generator = torch.Generator().manual_seed(SEED_STRIDE * seed + 2 * step + rank)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, phase.steps, RATE)
        z0, embeddings = draw_batch(latents, rng, CROP if step % 8 else 2 * CROP)
        t = torch.from_numpy((len(bars) * rng.random(len(z0)) ** 2).astype(np.int64))
        bar = bars[t][:, None, None, None]
        eps = torch.randn(z0.shape, generator=generator)
        embeddings = embeddings * torch.from_numpy(rng.random((len(z0), 1)) >= DROP_RATE)
        zt = (bar.sqrt() * z0 + (1 - bar).sqrt() * eps).contiguous(memory_format=torch.channels_last)
        predicted = model(zt.to(device), t.to(device), embeddings.to(device))
        losses = (predicted - eps.to(device)).square().mean((1, 2, 3))  # (N,)
        loss = (losses / bar.flatten().clamp_min(phase.floor).to(device)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % AVERAGE_EVERY == 0:
            synchronise_weights(model, mean=True)
        average.update(model)
        if not rank:
            log.add(step, {"loss": float(loss.detach()), "eps": float(losses.detach().mean())})
        if checkpoint_due(step, phase.steps):
            states = gather_optimiser_states(optimiser.state_dict())
            content = {"model": model.state_dict(), "average": average.weights, "optimisers": states}
            if not rank:
                save_checkpoint(path, {**content, "step": step + 1})
    model.load_state_dict(average.weights)
    return model.cpu().eval().requires_grad_(False)


def gather_optimiser_states(state: dict) -> list[dict]:
    """Gather the optimiser states of all replicas, by rank, on replica 0; without a process group [state]."""
    if not dist.is_initialized():
        return [state]
    states = [None] * dist.get_world_size()
    dist.gather_object(state, states if dist.get_rank() == 0 else None)
    return states


@torch.no_grad()
def synchronise_weights(model: nn.Module, *, mean: bool) -> None:
    """Set the weights of every replica to the mean over replicas, or to those of replica 0."""
    if not dist.is_initialized():
        return
    parameters = list(model.parameters())
    flat = torch.cat([parameter.flatten() for parameter in parameters])
    if mean:
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    else:
        dist.broadcast(flat, src=0)
    values = flat.split([parameter.numel() for parameter in parameters])
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value.view(parameter.shape))


def unet_state(unet: UNet2DConditionModel, design: UNetDesign) -> Tensors:
    """Return the UNet's tensors under CompVis' names, without the prefix `model.diffusion_model.`."""

    def convert(tensors: Tensors) -> Tensors:
        prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
        return convert_ldm_unet_checkpoint(prefixed, {"layers_per_block": design.num_res_blocks})

    return to_compvis_names(unet.state_dict(), unet_shapes(design), convert)
