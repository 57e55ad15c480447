"""Helpers of the three trainings of `mini`: input range, learning rate, EMA, logs, checkpoints, CompVis' names."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pathseg.extract.models.weights import Shape

Tensors = dict[str, torch.Tensor]
CHECKPOINT_EVERY = 100  # steps between checkpoints


def as_input(fields: np.ndarray, device: torch.device) -> torch.Tensor:
    """Convert images (N, h, w, 3) uint8 to (N, 3, h, w) float32 in [-1, 1], channels last."""
    return torch.tensor(fields, device=device).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's weights."""
    return next(network.parameters()).device


def learning_rate(step: int, steps: int, peak: float, *, warmup: int = 40) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def compvis_names(shapes: Mapping[str, Shape], convert: Callable[[Tensors], Tensors]) -> dict[str, str]:
    """Return {diffusers' name: CompVis' name}, found by passing numbered tensors through diffusers' own converter."""
    names = list(shapes)
    numbered = {name: torch.full(shapes[name], float(number)) for number, name in enumerate(names)}
    return {name: names[int(tensor.flatten()[0])] for name, tensor in convert(numbered).items()}


def to_compvis_names(state: Tensors, shapes: Mapping[str, Shape], convert: Callable[[Tensors], Tensors]) -> Tensors:
    """Rename and reshape the tensors of a diffusers network to CompVis' names and shapes."""
    names = compvis_names(shapes, convert)
    return {names[name]: tensor.detach().reshape(shapes[names[name]]) for name, tensor in state.items()}


class WeightAverage:
    """Exponential moving average of a network's weights; the decay after n updates is at most (1 + n) / (10 + n)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    def restore(self, weights: Tensors, updates: int) -> None:
        """Load the average and its number of updates from a checkpoint."""
        self.updates = updates
        self.weights = {name: tensor.to(self.weights[name].device) for name, tensor in weights.items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average with the network's weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in network.state_dict().items():
            self.weights[name].lerp_(tensor, 1 - decay)


class LossLog:
    """Write mean losses as JSON lines and print them, every `every` steps."""

    def __init__(self, path: Path, every: int = 50) -> None:
        self._path, self._every, self._start = path, every, time.process_time()
        self._losses: list[dict[str, float]] = []

    def truncate(self, step: int) -> None:
        """Delete the lines of later steps, before training resumes at `step`."""
        if self._path.exists():
            lines = [line for line in self._path.read_text().splitlines() if json.loads(line)["step"] <= step]
            self._path.write_text("".join(line + "\n" for line in lines))

    def add(self, step: int, losses: Mapping[str, float]) -> None:
        """Add the losses of a step; every `every` steps a line with their means is written."""
        self._losses.append(dict(losses))
        if (step + 1) % self._every == 0:
            means = {name: float(np.mean([line[name] for line in self._losses])) for name in losses}
            line = {"step": step + 1, **means, "cpu_s": round(time.process_time() - self._start)}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(self._path.stem, {name: float(f"{value:.4g}") for name, value in line.items()}, flush=True)
            self._losses = []


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    torch.save(content, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


def checkpoint_due(step: int, steps: int) -> bool:
    """Return whether a checkpoint is due after a step."""
    return (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps


def remaining_steps(path: Path, steps: int, restore: Callable[[dict[str, Any]], None], log: LossLog) -> Iterator[int]:
    """Yield the steps that remain; pass an existing checkpoint to `restore` and truncate the log to it."""
    done = 0
    if path.exists():
        content = torch.load(path, map_location="cpu", weights_only=True)
        restore(content)
        done = content["step"]
    log.truncate(done)
    yield from range(done, steps)
