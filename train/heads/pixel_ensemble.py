"""The pixel ensemble of DDPMSeg (Baranchuk et al. 2022): ten small networks on the stacked features of one pixel.

The features of a pixel are those of the other heads' stack, upsampled bilinearly to pixels. They are interpolated for
the pixels that are drawn for training, or patch by patch for prediction, and never held for a whole image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pathseg.store.format.layout import resample
from pathseg.store.grid import PATCH_PX, PatchGrid
from pathseg.train.config import BATCH_PX
from pathseg.train.heads.stack import Channels, Features, require_fitting

if TYPE_CHECKING:
    from pathseg.train.training.adam import Adam

# numbers of DDPMSeg
MODELS = 10
MANY_CLASSES = 30  # from this number of classes on its networks are wider
FREE_EPOCHS = 4  # its epochs 0 to 3, in which no network stops
STALE_STEPS = 50  # a network stops after more than this many batches in a row without a better loss
TOP_SHARE = 0.1  # of an image's pixels, the most uncertain ones: their mean is the image's uncertainty

POOL_PX = 512 * BATCH_PX  # pixels that are shuffled together: 0.5 GB of all 7,296 channels in float16


class Votes(NamedTuple):
    """The votes of M networks on n pixels, or on the pixels of N images (shapes in brackets).

    labels: the class that most networks predict, the smallest of them in a tie, (n, 1) or (N, H, W) uint8.
    log_probabilities: log of the mean probability, (n, K) or (N, K, H, W). uncertainty: Jensen-Shannon divergence
    H(mean p) - mean H(p) in nats, (n, 1) or (N, H, W). shares: of the networks that predict each class, (n, K) or
    (N, K, H, W).
    """

    labels: torch.Tensor
    log_probabilities: torch.Tensor
    uncertainty: torch.Tensor
    shares: torch.Tensor


class PixelEnsemble(nn.Module):
    """Ten networks d -> 128 -> 32 -> K on the d stacked features of a pixel, which differ in their random numbers only.

    channels: {block: C}. The state of each network's stopping rule (`update_stopping`) is in buffers, so that an
    interrupted run can be resumed.
    """

    def __init__(self, channels: Channels, classes: int) -> None:
        super().__init__()
        self.channels = dict(sorted(channels.items()))
        self.models = nn.ModuleList(_network(sum(channels.values()), classes) for _ in range(MODELS))
        self.best_loss: torch.Tensor
        self.stale_steps: torch.Tensor
        self.stopped: torch.Tensor
        self.register_buffer("best_loss", torch.full((MODELS,), torch.inf))
        self.register_buffer("stale_steps", torch.zeros(MODELS, dtype=torch.long))
        self.register_buffer("stopped", torch.zeros(MODELS, dtype=torch.bool))

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """Return the log of the mean probability: {block: (N, P, C, h, w)} in any layout -> (N, K, H, W)."""
        return self.predict(features, patch_grid).log_probabilities

    @torch.inference_mode()
    def predict(self, features: Features, patch_grid: tuple[int, int], *, ignore: int | None = None) -> Votes:
        """Return the votes of all networks on the pixels of N images, {block: (N, P, C, h, w)} in any layout.

        No network votes for the class `ignore`. One patch and one network at a time, so that at most 128 channels of
        a patch are held at pixel resolution.
        """
        grid = PatchGrid(*patch_grid)
        require_fitting(features, self.channels, grid)
        images, patches = next(iter(features.values())).shape[:2]
        votes = []
        for n in range(images):
            for p in range(patches):
                maps = {block: values[n, p].to(self.best_loss.dtype) for block, values in features.items()}
                votes.append(vote(torch.stack(list(self._patch_logits(maps))), ignore))  # of (M, 256*256, K)
        shape = (images, patches, -1, PATCH_PX, PATCH_PX)
        labels, log_probabilities, uncertainty, shares = (
            grid.stitch(torch.stack(values).transpose(1, 2).reshape(shape)) for values in zip(*votes, strict=True)
        )  # (N, 1 or K, H, W)
        return Votes(labels[:, 0], log_probabilities, uncertainty[:, 0], shares)

    def _patch_logits(self, maps: dict[Any, torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield each network's logits (256*256, K) of a patch, {block: (C, h, w)}.

        The first layer is applied at native resolution, because it commutes with upsampling.
        """
        for model in self.models:
            assert isinstance(model, nn.Sequential) and isinstance(model[0], nn.Linear)
            first = model[0]
            by_side: dict[int, torch.Tensor] = {}
            start = 0
            for block in sorted(maps):
                c, side = maps[block].shape[:2]
                x = F.conv2d(maps[block][None], first.weight[:, start : start + c, None, None])  # (1, 128, h, w)
                by_side[side] = by_side[side] + x if side in by_side else x
                start += c
            fine = [resample(x, PATCH_PX) for x in by_side.values()]
            hidden = sum(fine[1:], fine[0])  # (1, 128, 256, 256)
            yield model[1:](hidden[0].flatten(1).T + first.bias)


def _network(channels: int, classes: int) -> nn.Sequential:
    """DDPMSeg's `pixel_classifier`: weights from N(0, 0.02), biases 0."""
    first, second = (128, 32) if classes < MANY_CLASSES else (256, 128)
    network = nn.Sequential(
        nn.Linear(channels, first), nn.ReLU(), nn.BatchNorm1d(first),
        nn.Linear(first, second), nn.ReLU(), nn.BatchNorm1d(second),
        nn.Linear(second, classes),
    )  # fmt: skip
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            nn.init.zeros_(layer.bias)
    return network


def vote(logits: torch.Tensor, ignore: int | None = None) -> Votes:
    """Return the votes on n pixels from the logits of M networks, (M, n, K).

    The class `ignore` gets no votes and probability 0.
    """
    if ignore is not None and ignore < logits.shape[-1]:
        logits = logits.clone()
        logits[..., ignore] = -torch.inf
    probabilities = logits.softmax(-1)  # (M, n, K)
    mean = probabilities.mean(0)  # (n, K)
    counts = F.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)  # (n, K)
    divergence = torch.special.entr(mean).sum(-1) - torch.special.entr(probabilities).sum(-1).mean(0)  # (n,)
    labels = counts.argmax(-1, keepdim=True).to(torch.uint8)
    return Votes(labels, mean.log(), divergence.clamp(min=0)[:, None], counts / len(logits))


def image_uncertainty(uncertainty: torch.Tensor) -> float:
    """Return the mean over the most uncertain tenth of an image's pixels, (H, W) -> nats."""
    count = max(1, math.floor(uncertainty.numel() * TOP_SHARE))
    return float(uncertainty.flatten().topk(count).values.mean())


def pixel_features(features: Features, pixels: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """Interpolate the stacked features of single pixels of one image, as if every block were upsampled to 256 px.

    {block: (P, C, h, w)}, pixels (n,) as row * width + column -> (n, sum C), blocks ascending, float32 (float64 for
    float64 maps). Patches are upsampled separately.
    """
    rows, cols = pixels // grid.size[1], pixels % grid.size[1]
    patch = rows // PATCH_PX * grid.cols + cols // PATCH_PX  # (n,)
    of_blocks = []
    for block in sorted(features):
        maps = features[block]
        _, c, h, w = maps.shape
        cells = maps.permute(0, 2, 3, 1).reshape(-1, c)  # (P h w, C)
        dtype = torch.promote_types(maps.dtype, torch.float32)
        values = torch.zeros(len(pixels), c, dtype=dtype, device=maps.device)
        for y, weight_y in _neighbours(rows % PATCH_PX, h):
            for x, weight_x in _neighbours(cols % PATCH_PX, w):
                cell = cells.index_select(0, (patch * h + y) * w + x)  # (n, C)
                values += cell.to(dtype) * (weight_y * weight_x).to(dtype)[:, None]
        of_blocks.append(values)
    return torch.cat(of_blocks, dim=1)


def _neighbours(pixels: torch.Tensor, side: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Return the two cells along one axis between whose centres each pixel's centre lies, and their weights."""
    position = ((pixels + 0.5) * (side / PATCH_PX) - 0.5).clamp(min=0)  # exact: a side is a power of two
    low = position.floor()
    weight = position - low
    return (low.long(), 1 - weight), ((low + 1).clamp(max=side - 1).long(), weight)


def buffer_bytes(channels: int, itemsize: int, *, drawn: int) -> int:
    """Return the bytes that a full buffer of features takes, of `itemsize` bytes a value.

    drawn: pixels that one draw adds; the last draw before the buffer is full may exceed it.
    """
    return (POOL_PX + drawn) * channels * itemsize


class PixelBuffer:
    """A buffer of pixels of several images, their features and classes, which is shuffled and trained on when full.

    One array is allocated at the first draw, so that `take` copies nothing.
    """

    def __init__(self) -> None:
        self._features, self._labels, self._count = torch.empty(0), torch.empty(0), 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether the buffer holds enough pixels to train on."""
        return len(self) >= POOL_PX

    def draw(
        self,
        features: Features,
        masks: torch.Tensor,
        grid: PatchGrid,
        *,
        count: int,
        ignore: int | None,
        seed: list[int],
    ) -> None:
        """Add `count` random pixels of each image, all if it has fewer, none of the class `ignore`.

        features {block: (N, P, C, h, w)}, masks (N, H, W) class codes. Features keep their dtype.
        """
        rng = np.random.default_rng(seed)
        for n, mask in enumerate(masks):
            codes = mask.flatten()
            counted = np.arange(len(codes)) if ignore is None else np.flatnonzero((codes != ignore).cpu().numpy())
            chosen = torch.from_numpy(rng.choice(counted, min(count, len(counted)), replace=False)).to(codes.device)
            maps = {block: values[n] for block, values in features.items()}
            drawn = pixel_features(maps, chosen, grid)  # (n, d)
            if not self._count:
                capacity = POOL_PX + count * len(masks)  # the caller checks `full` after each draw
                dtype = reduce(torch.promote_types, (values.dtype for values in maps.values()))
                self._features = torch.empty(capacity, drawn.shape[1], dtype=dtype, device=drawn.device)
                self._labels = torch.empty(capacity, dtype=torch.long, device=drawn.device)
            self._features[self._count : self._count + len(drawn)] = drawn
            self._labels[self._count : self._count + len(drawn)] = codes[chosen]
            self._count += len(drawn)

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Empty the buffer and return its features (n, d) and class codes (n,) int64, without a copy."""
        features, labels = self._features[: self._count], self._labels[: self._count]
        self._features, self._labels, self._count = torch.empty(0), torch.empty(0), 0
        return features, labels


def train_on_buffer(
    buffer: PixelBuffer,
    head: PixelEnsemble,
    optimizer: Adam,
    *,
    epoch: int,
    weights: torch.Tensor | None,
    seed: list[int],
) -> list[float]:
    """Train every network for one pass over the buffer and empty it; return the loss of each step.

    Batches are of 64 pixels, in an order of its own for each network; a remainder is dropped, because batch
    normalisation needs more than one pixel. A step's loss is the mean over the networks that have not stopped; stopped
    networks keep their weights. Ends early, with that loss as the last, when a loss is not finite. weights (K,) are
    class weights. An empty buffer gives no steps.
    """
    if not len(buffer):
        return []
    features, labels = buffer.take()
    steps = len(labels) // BATCH_PX
    orders = torch.stack(
        [torch.from_numpy(np.random.default_rng([*seed, m]).permutation(len(labels))) for m in range(len(head.models))]
    ).to(labels.device)  # (M, n)
    head.train()
    losses: list[float] = []
    for step in range(steps):
        running = (~head.stopped).nonzero()[:, 0].tolist()
        if not running:
            break
        each = []
        for m in running:
            batch = orders[m, step * BATCH_PX : (step + 1) * BATCH_PX]
            logits = head.models[m](features.index_select(0, batch).float())  # (64, K)
            nothing = weights is not None and not weights[labels[batch]].any()  # as of `pixel_loss`: else 0 / 0
            each.append(logits.sum() * 0 if nothing else F.cross_entropy(logits, labels[batch], weight=weights))
        found = torch.stack(each)  # (running networks,)
        losses.append(found.mean().item())
        if not np.isfinite(losses[-1]):
            break
        optimizer.zero_grad()  # Adam skips parameters without gradient: those of stopped networks
        found.sum().backward()
        optimizer.step()
        if epoch > FREE_EPOCHS:
            update_stopping(head, running, found.detach())
    return losses


def update_stopping(head: PixelEnsemble, running: list[int], losses: torch.Tensor) -> None:
    """Count the batches in a row that did not beat each network's best loss; stop it after more than `STALE_STEPS`.

    losses: of the networks with the indices `running`.
    """
    better = losses < head.best_loss[running]
    head.best_loss[running] = torch.where(better, losses, head.best_loss[running])
    head.stale_steps[running] = torch.where(better, 0, head.stale_steps[running] + 1)
    head.stopped |= head.stale_steps > STALE_STEPS
