"""Training of mini's image encoder: DINO (Caron et al. 2021) with two views of a field, and no labels."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mini_training import Log, Tensors, as_input, keep_now, rate, save, steps_from
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pathseg.extract.models.dino_vit import HEAD_DIM

VIEW_PX = 128  # 8x8 tokens; on 256 px patches the positions are resized to 16x16, as HIPT's are from 14x14
PROTOTYPES = 512
BATCH = 24
RATE = 1e-3
TEACHER_T, STUDENT_T = 0.05, 0.1  # temperatures


def new_vit(dim: int, depth: int) -> VisionTransformer:
    """DINO's ViT for views."""
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
    """A ViT and DINO's head on its class token."""

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
    """A view of each field: a random place, scale, turn and mirror, and slightly other colours. (N, 3, 128, 128)"""
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
    turns = torch.from_numpy(affine).permute(2, 0, 1).float().to(fields.device)
    grid = F.affine_grid(turns, [count, 3, VIEW_PX, VIEW_PX], align_corners=False)
    found = F.grid_sample(fields, grid, padding_mode="reflection", align_corners=False)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 3, 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(-0.1, 0.1, (count, 3, 1, 1))).float()
    return (found * gain.to(found.device) + offset.to(found.device)).clamp(-1, 1)


def train_vit(
    fields: np.ndarray, size: tuple[int, int], out: Path, *, steps: int, seed: int, device: torch.device
) -> Tensors:
    """Train, or go on from the checkpoint in `out`; the teacher's tensors under DINO's names."""
    torch.manual_seed(seed)
    student = Student(new_vit(*size)).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.04, betas=(0.9, 0.98))
    center = torch.zeros(PROTOTYPES, device=device)
    path, log = out / "vit.pt", Log(out / "vit.jsonl")

    def restore(content: dict) -> None:
        student.load_state_dict(content["student"])
        teacher.load_state_dict(content["teacher"])
        optimiser.load_state_dict(content["optimiser"])
        center.copy_(content["center"])

    for step in steps_from(path, steps, restore, log):
        rng = np.random.default_rng([seed, 2, step])
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, RATE)
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
        keep = min(0.996, 0.9 + 0.1 * step / steps)
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 1 - keep)
        entropy = -(soft * soft.clamp_min(1e-9).log()).sum(-1).mean()
        spread = -(soft.mean(0) * soft.mean(0).clamp_min(1e-9).log()).sum()  # falls to the entropy on a collapse
        log.add(step, {"loss": float(loss.detach()), "entropy": float(entropy), "spread": float(spread)})
        if keep_now(step, steps):
            save(
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
