"""Linear probe trained to convergence: logistic regression of the foreground on cells of 16 px, by L-BFGS.

It complements the linear head of stage two, which does not converge in a few epochs on every kind of feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pathseg.store.features import FeatureStore

CELLS = 16  # along each side of a patch
WEIGHT_DECAY, STEPS = 1e-2, 60


def to_cells(maps: torch.Tensor) -> torch.Tensor:
    """Resample maps (P, C, h, w) to cells (P * 256, C): average pooling of finer maps, bilinear for coarser ones."""
    if maps.shape[-1] > CELLS:
        maps = F.adaptive_avg_pool2d(maps, CELLS)
    return F.interpolate(maps, size=(CELLS, CELLS), mode="bilinear").permute(0, 2, 3, 1).flatten(0, 2)


def examples(store: FeatureStore, index: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cells (n, C) of one image and their share of foreground (n,)."""
    values = store.read(index, t)
    features = torch.cat([to_cells(torch.from_numpy(maps).float()) for _, maps in sorted(values.items())], 1)
    patches = store.contents.grid.cut((store.mask(index) > 0)[..., None])[..., 0]
    return features, to_cells(torch.from_numpy(patches)[:, None].float())[:, 0]


def probe(store: FeatureStore, t: int = 50) -> float:
    """Train on the cells of the training images, all blocks; return the mean Dice of both classes on test cells."""
    train: list[tuple[torch.Tensor, torch.Tensor]] = []
    test: list[tuple[torch.Tensor, torch.Tensor]] = []
    for index, split in enumerate(store.splits):
        (train if split == "train" else test).append(examples(store, index, t))
    (x, y), (x_test, y_test) = ([torch.cat(values) for values in zip(*images, strict=True)] for images in (train, test))
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    weights = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=STEPS)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weights[:-1] + weights[-1], y)
        loss = loss + WEIGHT_DECAY * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        predicted, truth = x_test @ weights[:-1] + weights[-1] > 0, y_test > 0.5
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in ((predicted, truth), (~predicted, ~truth))]
    return float(sum(dice) / 2)
