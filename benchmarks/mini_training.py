"""What the three trainings of `mini` share: batches, rates, checkpoints, and CompVis' names for diffusers' networks."""

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

from pathseg.extract.models.ldm.shapes import Shape

Tensors = dict[str, torch.Tensor]
KEPT_EVERY = 100  # steps between checkpoints


def as_input(fields: np.ndarray, device: torch.device) -> torch.Tensor:
    """(N, h, w, 3) uint8 -> (N, 3, h, w) float32 in [-1, 1], channels last."""
    return torch.tensor(fields, device=device).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(network.parameters()).device


def rate(step: int, steps: int, peak: float, *, warm: int = 40) -> float:
    """The learning rate of a step: a straight rise, then half a cosine to a hundredth of the peak."""
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def compvis_names(shapes: Mapping[str, Shape], convert: Callable[[Tensors], Tensors]) -> dict[str, str]:
    """diffusers' name -> CompVis' name, from what diffusers' own converter does with numbered tensors."""
    names = list(shapes)
    numbered = {name: torch.full(shapes[name], float(number)) for number, name in enumerate(names)}
    return {theirs: names[int(tensor.flatten()[0])] for theirs, tensor in convert(numbered).items()}


def under_compvis_names(state: Tensors, shapes: Mapping[str, Shape], convert: Callable[[Tensors], Tensors]) -> Tensors:
    """A diffusers network's tensors under CompVis' names and in their shapes."""
    names = compvis_names(shapes, convert)
    return {names[theirs]: tensor.detach().reshape(shapes[names[theirs]]) for theirs, tensor in state.items()}


class Average:
    """A running average of a network's weights, which starts quickly: decay is at most (1 + n) / (10 + n)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.seen = decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    def restore(self, weights: Tensors, seen: int) -> None:
        """Go on from a checkpoint."""
        self.seen = seen
        self.weights = {name: tensor.to(self.weights[name].device) for name, tensor in weights.items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of another step."""
        self.seen += 1
        decay = min(self.decay, (1 + self.seen) / (10 + self.seen))
        for name, tensor in network.state_dict().items():
            self.weights[name].lerp_(tensor, 1 - decay)


class Log:
    """Losses as JSON lines, and a mean of the last steps on the screen."""

    def __init__(self, path: Path, every: int = 50) -> None:
        self._path, self._every, self._seen, self._start = path, every, [], time.process_time()

    def cut(self, step: int) -> None:
        """Drop what was logged after a step: the training goes on from there."""
        if self._path.exists():
            lines = [line for line in self._path.read_text().splitlines() if json.loads(line)["step"] <= step]
            self._path.write_text("".join(line + "\n" for line in lines))

    def add(self, step: int, losses: Mapping[str, float]) -> None:
        """The losses of a step; a line is written when enough have been seen."""
        self._seen.append(dict(losses))
        if (step + 1) % self._every == 0:
            means = {name: float(np.mean([line[name] for line in self._seen])) for name in losses}
            line = {"step": step + 1, **means, "cpu_s": round(time.process_time() - self._start)}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(self._path.stem, {name: float(f"{value:.4g}") for name, value in line.items()}, flush=True)
            self._seen = []


def save(path: Path, content: dict[str, Any]) -> None:
    """A checkpoint that is whole or not there."""
    torch.save(content, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


def keep_now(step: int, steps: int) -> bool:
    """Whether a checkpoint is due after a step."""
    return (step + 1) % KEPT_EVERY == 0 or step + 1 == steps


def steps_from(path: Path, steps: int, restore: Callable[[dict[str, Any]], None], log: Log) -> Iterator[int]:
    """The steps that are still to do; `restore` gets the checkpoint where there is one, the log ends where it ends."""
    done = 0
    if path.exists():
        content = torch.load(path, map_location="cpu", weights_only=True)
        restore(content)
        done = content["step"]
    log.cut(done)
    yield from range(done, steps)
