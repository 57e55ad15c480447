"""How a pixel ensemble learns: pixels drawn from many images, mixed, and small steps on them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from pathseg.store.grid import PatchGrid
from pathseg.train.heads.native_conv import Features
from pathseg.train.heads.pixel_ensemble import PixelEnsemble, pixel_features

# DDPMSeg's numbers
BATCH_PX = 64
FREE_EPOCHS = 4  # its epochs 0 to 3, in which no network stops
STALE_STEPS = 50  # a network stops when so many of its batches in a row were no better than its best, and one more

POOL_PX = 512 * BATCH_PX  # pixels that are mixed: 0.5 GB of all 7,296 channels in float16


def pool_bytes(channels: int, itemsize: int, *, drawn: int) -> int:
    """What a pool takes at most, features of so many channels in a type of so many bytes: it is held beside the head.

    drawn: pixels that one draw adds; the last one before the pool is full goes beyond it.
    """
    return (POOL_PX + drawn) * channels * itemsize


class PixelPool:
    """Pixels of several images with their classes, until there are enough of them to be mixed.

    They lie in one array from the first draw on, so that taking them out copies nothing.
    """

    def __init__(self) -> None:
        self._features, self._labels, self._filled = torch.empty(0), torch.empty(0), 0

    def __len__(self) -> int:
        return self._filled

    @property
    def full(self) -> bool:
        """Whether it is time to learn from them."""
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
        """Add `count` random pixels of each image, all if it has fewer, none that is ignored.

        features {block: (N, P, C, h, w)}, masks (N, H, W) class codes. Kept in the features' own type.
        """
        rng = np.random.default_rng(seed)
        for n, mask in enumerate(masks):
            codes = mask.flatten()
            known = np.arange(len(codes)) if ignore is None else np.flatnonzero((codes != ignore).cpu().numpy())
            chosen = torch.from_numpy(rng.choice(known, min(count, len(known)), replace=False)).to(codes.device)
            maps = {block: maps[n] for block, maps in features.items()}
            drawn = pixel_features(maps, chosen, grid)  # (n, d)
            if not self._filled:
                room = POOL_PX + count * len(masks)  # as `full` is asked after each draw
                kept = next(iter(maps.values())).dtype
                self._features = torch.empty(room, drawn.shape[1], dtype=kept, device=drawn.device)
                self._labels = torch.empty(room, dtype=torch.long, device=drawn.device)
            self._features[self._filled : self._filled + len(drawn)] = drawn
            self._labels[self._filled : self._filled + len(drawn)] = codes[chosen]
            self._filled += len(drawn)

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All of them, features (n, d) and classes (n,), not copied; the pool is empty after this."""
        features, labels = self._features[: self._filled], self._labels[: self._filled]
        self._features, self._labels, self._filled = torch.empty(0), torch.empty(0), 0
        return features, labels


def learn_from(
    pool: PixelPool,
    head: PixelEnsemble,
    optimizer: torch.optim.Optimizer,
    *,
    epoch: int,
    weights: torch.Tensor | None,
    seed: list[int],
) -> list[float]:
    """One pass of every network over the pool in batches of 64, each in an order of its own; the loss of each step.

    A step's loss is the mean over the networks that still learn. A network that has stopped is left as it is. Ends
    early, with that loss as the last, when a loss is no number. No steps on an empty pool, as the last one before it
    leaves it where it was just full. Pixels that fill no batch are left out: batch
    normalisation cannot do with one.
    """
    if not len(pool):
        return []
    features, labels = pool.take()
    steps = len(labels) // BATCH_PX
    orders = torch.stack(
        [torch.from_numpy(np.random.default_rng([*seed, m]).permutation(len(labels))) for m in range(len(head.models))]
    ).to(labels.device)
    head.train()
    losses = []
    for step in range(steps):
        learning = (~head.stopped).nonzero()[:, 0].tolist()
        if not learning:
            break
        each = []
        for m in learning:
            batch = orders[m, step * BATCH_PX : (step + 1) * BATCH_PX]
            scores = head.models[m](features.index_select(0, batch).float())
            each.append(F.cross_entropy(scores, labels[batch], weight=weights))
        found = torch.stack(each)
        losses.append(found.mean().item())
        if not np.isfinite(losses[-1]):
            break
        optimizer.zero_grad(set_to_none=True)  # Adam leaves alone what has no gradient: the networks that stopped
        found.sum().backward()
        optimizer.step()
        if epoch > FREE_EPOCHS:
            judge(head, learning, found.detach())
    return losses


def judge(head: PixelEnsemble, learning: list[int], losses: torch.Tensor) -> None:
    """Count, for each network that learns, the batches in a row that did not beat its best loss; stop the stale."""
    better = losses < head.best_loss[learning]
    head.best_loss[learning] = torch.where(better, losses, head.best_loss[learning])
    head.stale_steps[learning] = torch.where(better, 0, head.stale_steps[learning] + 1)
    head.stopped |= head.stale_steps > STALE_STEPS
