"""A linear probe taken to its end: logistic regression for the foreground on cells of 16 px, by L-BFGS.

Beside the linear head of stage two, which a few epochs do not bring to its end on every kind of feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pathseg.store.features import FeatureStore

CELLS = 16  # along each side of a patch
DECAY, STEPS = 1e-2, 60  # of the squared weights; of L-BFGS


def cells(maps: torch.Tensor) -> torch.Tensor:
    """(P, C, h, w) -> (P * 256, C): means of finer maps, bilinear values of coarser ones."""
    if maps.shape[-1] > CELLS:
        maps = F.adaptive_avg_pool2d(maps, CELLS)
    return F.interpolate(maps, size=(CELLS, CELLS), mode="bilinear").permute(0, 2, 3, 1).flatten(0, 2)


def examples(store: FeatureStore, index: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells of one image and their share of foreground."""
    values = store.read(index, t)
    features = torch.cat([cells(torch.from_numpy(maps).float()) for _, maps in sorted(values.items())], 1)
    patches = store.contents.grid.cut((store.mask(index) > 0)[..., None])[..., 0]
    return features, cells(torch.from_numpy(patches)[:, None].float())[:, 0]


def probe(store: FeatureStore, t: int = 50) -> float:
    """Mean Dice of both classes over the test images' cells, trained on the training images'; all blocks."""
    parts: dict[bool, list[tuple[torch.Tensor, torch.Tensor]]] = {True: [], False: []}
    for index, split in enumerate(store.splits):
        parts[split == "train"].append(examples(store, index, t))
    (x, y), (x_test, y_test) = ([torch.cat(part) for part in zip(*parts[kind], strict=True)] for kind in (True, False))
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    weights = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=STEPS)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weights[:-1] + weights[-1], y)
        loss = loss + DECAY * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        found, true = x_test @ weights[:-1] + weights[-1] > 0, y_test > 0.5
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in ((found, true), (~found, ~true))]
    return float(sum(dice) / 2)
