"""Train mini's image encoder with DINO (Caron et al. 2021) on two views of each field, without labels."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from benchmarks.mini.training_utils import (
    LossLog,
    Tensors,
    as_input,
    checkpoint_due,
    learning_rate,
    remaining_steps,
    save_checkpoint,
)
from pathseg.extract.models.dino_vit import HEAD_DIM

VIEW_PX = 128  # 8x8 tokens; for 256 px patches the position grid is resized to 16x16, as HIPT's is from 14x14
PROTOTYPES = 512
BATCH = 24
RATE = 1e-3
TEACHER_T, STUDENT_T = 0.05, 0.1  # temperatures


def new_vit(dim: int, depth: int) -> VisionTransformer:
    """Build DINO's ViT for views of VIEW_PX."""
    return VisionTransformer(
        img_size=VIEW_PX,
        patch_size=16,
        num_classes=0,
        embed_dim=dim,
        depth=depth,
        num_heads=dim // HEAD_DIM,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


class Student(nn.Module):
    """ViT with DINO's projection head on its class token."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.backbone = vit
        self.projection = nn.Sequential(
            nn.Linear(vit.embed_dim, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 64)
        )
        self.prototypes = nn.Linear(64, PROTOTYPES, bias=False)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        projected = F.normalize(self.projection(self.backbone.forward_features(views)[:, 0]), dim=-1)
        return F.linear(projected, F.normalize(self.prototypes.weight, dim=-1))


def views(fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Augment each field by random position, scale, rotation, mirroring and colour, (N, 3, 128, 128) in [-1, 1]."""
    count = len(fields)
    half = rng.uniform(0.38, 0.7, count)  # of the field's side, so 97 to 179 px
    angle = rng.uniform(0, 2 * np.pi, count)
    mirror = rng.choice([-1.0, 1.0], count)
    shift = rng.uniform(-1, 1, (2, count)) * (1 - half)
    affine = np.array(
        [
            [half * np.cos(angle) * mirror, -half * np.sin(angle), shift[0]],
            [half * np.sin(angle) * mirror, half * np.cos(angle), shift[1]],
        ]
    )
    theta = torch.from_numpy(affine).permute(2, 0, 1).float().to(fields.device)
    grid = F.affine_grid(theta, [count, 3, VIEW_PX, VIEW_PX], align_corners=False)
    sampled = F.grid_sample(fields, grid, padding_mode="reflection", align_corners=False)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 3, 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(-0.1, 0.1, (count, 3, 1, 1))).float()
    return (sampled * gain.to(sampled.device) + offset.to(sampled.device)).clamp(-1, 1)


def train_vit(
    fields: np.ndarray, size: tuple[int, int], out: Path, *, steps: int, seed: int, device: torch.device
) -> Tensors:
    """Train the ViT, or resume it from the checkpoint in `out`; return the teacher's state dict, DINO's names."""
    torch.manual_seed(seed)
    student = Student(new_vit(*size)).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.04, betas=(0.9, 0.98))
    center = torch.zeros(PROTOTYPES, device=device)
    path, log = out / "vit.pt", LossLog(out / "vit.jsonl")

    def restore(content: dict) -> None:
        student.load_state_dict(content["student"])
        teacher.load_state_dict(content["teacher"])
        optimiser.load_state_dict(content["optimiser"])
        center.copy_(content["center"])

    for step in remaining_steps(path, steps, restore, log):
        rng = np.random.default_rng([seed, 2, step])
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, RATE)
        batch = as_input(fields[np.sort(rng.choice(len(fields), BATCH, replace=False))], device)
        both = torch.cat([views(batch, rng), views(batch, rng)])
        with torch.no_grad():
            targets = teacher(both)
            soft = F.softmax((targets - center) / TEACHER_T, dim=-1).roll(BATCH, 0)  # of the other view
            center.lerp_(targets.mean(0), 0.1)
        logits = F.log_softmax(student(both) / STUDENT_T, dim=-1)
        loss = -(soft * logits).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        momentum = min(0.996, 0.9 + 0.1 * step / steps)
        with torch.no_grad():
            for average, parameter in zip(teacher.parameters(), student.parameters(), strict=True):
                average.lerp_(parameter, 1 - momentum)
        entropy = -(soft * soft.clamp_min(1e-9).log()).sum(-1).mean()
        spread = -(
            soft.mean(0) * soft.mean(0).clamp_min(1e-9).log()
        ).sum()  # equals the entropy when DINO has collapsed
        log.add(step, {"loss": float(loss.detach()), "entropy": float(entropy), "spread": float(spread)})
        if checkpoint_due(step, steps):
            save_checkpoint(
                path,
                {
                    "student": student.state_dict(),
                    "teacher": teacher.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "center": center,
                    "step": step + 1,
                },
            )
    return dict(teacher.backbone.cpu().state_dict())
