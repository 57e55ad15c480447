"""Training one head from cached features, read top to bottom."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pathseg.store.features import FeatureStore
from pathseg.train.batches import FeatureReader, class_pixels
from pathseg.train.config import HeadConfig
from pathseg.train.evaluate import evaluate, pixel_loss
from pathseg.train.heads import HEADS
from pathseg.train.metrics import Scores
from pathseg.train.parts import require_complete, split_images
from pathseg.train.results import describe, score_part
from pathseg.train.runs import RunFolder


def train_head(
    store: FeatureStore,
    config: HeadConfig,
    run: RunFolder,
    *,
    device: str = "cpu",
    on_epoch: Callable[[dict[str, Any]], None] = lambda epoch: None,
) -> dict[str, Any]:
    """Train a head on a store's features and write its run folder; returns what metrics.json holds.

    Pixel-wise cross-entropy, Adam, no schedule (section 4 of the paper); the epoch with the best validation Dice is
    kept. `on_epoch` gets each line of history.jsonl. Raises Incomplete when the store lacks features, ValueError when
    its images cannot be split or the loss is no number.
    """
    require_complete(store, t=config.t, blocks=config.blocks)
    parts = split_images(store, val_fraction=config.val_fraction, seed=config.seed)
    target = torch.device(device)
    reader = FeatureReader(store, t=config.t, blocks=config.blocks)
    pixels = class_pixels(store, parts.train)
    weights = class_weights(pixels).to(target) if config.class_weights == "balanced" else None
    with torch.random.fork_rng(devices=[]):  # the seed decides the head and nothing else outside this block
        torch.manual_seed(config.seed)
        channels = {block: store.contents.blocks[block].channels for block in config.blocks}
        head = HEADS[config.head](channels, len(store.classes)).to(target)
    optimizer = torch.optim.Adam(head.parameters(), lr=config.lr)
    order = np.random.default_rng(config.seed)
    grid = (store.contents.grid.rows, store.contents.grid.cols)
    run.begin(describe(store, config, parts, parameters=sum(p.numel() for p in head.parameters()), device=device))

    started, best, best_epoch, best_state = time.perf_counter(), -1.0, 0, {}
    for epoch in range(1, config.epochs + 1):
        epoch_started, losses = time.perf_counter(), []
        head.train()
        for batch in reader.batches(order.permutation(parts.train).tolist(), config.batch_size):
            scores = head({b: maps.to(target).float() for b, maps in batch.features.items()}, grid)
            loss = pixel_loss(scores, batch.masks.to(target), weights=weights, ignore=store.ignore)
            if not torch.isfinite(loss):
                raise ValueError(f"the loss is {loss.item()} in epoch {epoch}: training diverged; pass a smaller --lr")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        val_loss, matrices = evaluate(head, reader, parts.val, device=target, weights=weights)
        val = Scores.of(sum(matrices.values()), store.ignore)
        line = {"epoch": epoch, "train_loss": float(np.mean(losses)), "val_loss": val_loss}
        line |= {f"val_{name}": getattr(val, name) for name in ("accuracy", "dice", "miou", "f1")}
        line["seconds"] = time.perf_counter() - epoch_started
        if (val.dice or 0.0) > best:  # no Dice: every validation pixel is ignored
            best, best_epoch = val.dice or 0.0, epoch
            best_state = {name: value.detach().cpu().clone() for name, value in head.state_dict().items()}
        run.append_history(line)
        on_epoch(line)

    head.load_state_dict(best_state)
    save_file({k: v.contiguous() for k, v in best_state.items()}, run.weights)
    metrics = {
        "best_epoch": best_epoch,
        "epochs": config.epochs,
        "seconds": time.perf_counter() - started,
        "test_split": store.contents.test_split,
        "splits": {
            name: score_part(head, reader, indices, run, device=target, answer=int(pixels.argmax()))
            for name, indices in parts.tests.items()
        },
    }
    run.write_metrics(metrics)
    return metrics


def train_or_keep(
    store: FeatureStore,
    config: HeadConfig,
    folder: Path,
    *,
    device: str = "cpu",
    on_epoch: Callable[[dict[str, Any]], None] = lambda epoch: None,
) -> dict[str, Any]:
    """Train a head unless the run folder already holds exactly this run, finished; returns its metrics.

    Raises ValueError when the folder holds a finished run of other settings or of another store.
    """
    run = RunFolder(folder)
    if not run.finished:
        return train_head(store, config, run, device=device, on_epoch=on_epoch)
    there = run.read_config()
    wanted = {**dataclasses.asdict(config), "key": store.contents.key.digest}
    found = {**dataclasses.asdict(HeadConfig.from_dict(there["head"])), "key": there["data"]["key"]}
    if differing := [
        f"{name} is {found[name]} there, {wanted[name]} asked for" for name in wanted if found[name] != wanted[name]
    ]:
        raise ValueError(
            f"{folder} holds a finished run of other settings: {'; '.join(differing)}; pass another --name"
        )
    return run.read_metrics()


def class_weights(pixels: np.ndarray) -> torch.Tensor:
    """(K,) pixels of each class -> the paper's weights 1 - N_c / N, (K,) float32; 0 for a class without pixels."""
    weights = np.where(pixels > 0, 1 - pixels / max(1, pixels.sum()), 0.0)
    return torch.from_numpy(weights).float()
