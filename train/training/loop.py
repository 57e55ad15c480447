"""Training heads from cached features, any number from one read, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pathseg.store.features import FeatureStore
from pathseg.train.config import Config
from pathseg.train.data.augment import symmetry, turn, turn_features
from pathseg.train.data.reader import Batch, FeatureReader, class_pixels, wanted_by
from pathseg.train.data.splits import Parts, draw_views, split_images
from pathseg.train.heads.baselines import start_from_imagenet
from pathseg.train.heads.pixel_ensemble import PixelEnsemble
from pathseg.train.heads.pixel_pool import BATCH_PX, learn_from
from pathseg.train.metrics.pixel import Scores
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.checkpoint import Trainee, load_best, new_trainee, restore, save_last, save_weights, score
from pathseg.train.training.evaluation import evaluate, pixel_loss
from pathseg.train.training.results import describe, write_results

OnEpoch = Callable[[RunFolder, dict[str, Any]], None]


def train_heads(
    store: FeatureStore,
    runs: Sequence[tuple[Config, RunFolder]],
    *,
    device: str = "cpu",
    memory_bytes: int | None = None,
    without: Collection[int] = (),
    on_epoch: OnEpoch = lambda run, line: None,
) -> list[Trainee]:
    """Train heads, or baselines, together: every image is read once per epoch, whatever the number of heads.

    Of a patch with several views each epoch draws one, the same for all heads; class weights count them all.
    The configurations may differ in everything but batch_size, val_fraction and split_seed; each head comes out as
    if it had been trained alone. Pixel-wise cross-entropy, Adam, no schedule (section 4 of the paper); the epoch with
    the best validation Dice (of a pixel ensemble the last) is kept and scored on the test parts. A run that was cut
    off goes on after its last finished epoch, with the same result. `on_epoch` gets each line of history.jsonl. A head
    whose loss is no number is given up (`failure` says so), the others go on. memory_bytes caps what is kept in
    memory. `without` are images to do without, by their indices.

    Raises Incomplete when the store lacks features, ValueError when its images cannot be split.
    """
    configs = [config for config, _ in runs]
    shared, target = configs[0], torch.device(device)
    parts = split_images(store, val_fraction=shared.val_fraction, seed=shared.split_seed, without=without)
    pixels = class_pixels(store, parts.train)
    reader = FeatureReader(store, wanted_by(configs), device=target, memory_bytes=memory_bytes)
    trainees = [_prepare(store, config, run, parts, pixels, device=target) for config, run in runs]

    epochs = max(config.epochs for config in configs)
    for epoch in range(1, epochs + 1):
        if not any(trainee.learning for trainee in trainees):
            break
        learning = [trainee for trainee in trainees if trainee.learning and trainee.epoch < epoch]
        if not learning:
            continue
        for trainee in learning:
            trainee.losses.clear()
        reader.expect(parts.val, 1)
        for step, batch in enumerate(reader.batches(_order(store, parts, shared, epoch), shared.batch_size)):
            for trainee in learning:
                started = time.perf_counter()
                _step(trainee, batch, store, epoch=epoch, step=step)
                trainee.seconds += time.perf_counter() - started
            learning = [trainee for trainee in learning if trainee.failure is None]
            if not learning:
                break
        for trainee in learning:
            if isinstance(trainee.head, PixelEnsemble):
                _finish_pixels(trainee, epoch)
        learning = [trainee for trainee in learning if trainee.failure is None]
        if not learning:
            continue
        if epoch < epochs:
            reader.expect(_order(store, parts, shared, epoch + 1), shared.batch_size)
        else:
            reader.expect(next(iter(parts.tests.values())), 1)
        for trainee, (val_loss, matrices) in zip(learning, evaluate(learning, reader, parts.val), strict=True):
            if not (np.isfinite(val_loss) or isinstance(trainee.head, PixelEnsemble)):  # whose log of 0 is no failure
                trainee.failure = _diverged(val_loss, epoch)
                continue
            line = _close_epoch(trainee, epoch, val_loss, Scores.of(sum(matrices.values()), store.ignore))
            on_epoch(trainee.run, line)

    finished = [trainee for trainee in trainees if trainee.failure is None]
    for trainee in finished:
        save_weights(trainee, trainee.run.last_weights)
        load_best(trainee)
    if finished:
        write_results(finished, reader, parts, answer=int(pixels.argmax()))
    return trainees


def _order(store: FeatureStore, parts: Parts, config: Config, epoch: int) -> list[int]:
    """Indices of the images that an epoch learns from, in its order."""
    drawn = draw_views(store, parts.train, seed=config.split_seed, epoch=epoch)
    return np.random.default_rng([config.split_seed, epoch]).permutation(drawn).tolist()


def _prepare(
    store: FeatureStore, config: Config, run: RunFolder, parts: Parts, pixels: np.ndarray, *, device: torch.device
) -> Trainee:
    """A new head in a fresh run folder, or an unfinished one where it was left."""
    weights = class_weights(pixels, store.ignore).to(device) if config.class_weights == "balanced" else None
    trainee = new_trainee(store, config, run, weights=weights, device=device)
    parameters = sum(p.numel() for p in trainee.head.parameters())
    about = describe(store, config, parts, parameters=parameters, device=str(device))
    if restore(trainee):
        if run.read_config()["data"]["images"] != about["data"]["images"]:  # others are complete now
            raise ValueError(f"{run.path} was begun on other images of this store; delete it or pass --name")
        run.cut_history(trainee.epoch)
    else:
        if getattr(config, "weights", "none") == "imagenet":
            start_from_imagenet(trainee.head, config.head)
        run.begin(about)
    return trainee


def _step(trainee: Trainee, batch: Batch, store: FeatureStore, *, epoch: int, step: int) -> None:
    """One step of Adam; marks the head as failed, and leaves it as it was, when the loss is no number.

    A pixel ensemble only draws its pixels, and takes its steps when it has enough.
    """
    config, grid = trainee.config, store.contents.grid
    features, masks = batch.features[config.t], batch.masks
    if isinstance(trainee.head, PixelEnsemble):
        own = {block: features[block] for block in config.blocks}
        seed = [config.seed, epoch, step]
        trainee.pool.draw(own, masks, grid, count=config.pixels, ignore=store.ignore, seed=seed)
        return _learn_pixels(trainee, epoch) if trainee.pool.full else None
    if config.augment == "flips":
        number = symmetry(grid, seed=config.seed, epoch=epoch, step=step)
        features = turn_features({b: features[b] for b in config.blocks}, grid, number)
        masks = turn(masks, number)
    trainee.head.train()
    with dropout_of(masks.device, [config.seed, epoch, step]):
        scores = score(trainee, features, grid)
    loss = pixel_loss(scores, masks, weights=trainee.weights, ignore=store.ignore)
    if not torch.isfinite(loss):
        trainee.failure = _diverged(loss.item(), epoch)
        return
    trainee.optimizer.zero_grad()
    loss.backward()
    trainee.optimizer.step()
    trainee.losses.append(loss.item())


def _learn_pixels(trainee: Trainee, epoch: int) -> None:
    """The steps of a pixel ensemble on the pixels it has drawn."""
    seed = [trainee.config.seed, epoch, len(trainee.losses)]
    options = {"epoch": epoch, "weights": trainee.weights, "seed": seed}
    losses = learn_from(trainee.pool, trainee.head, trainee.optimizer, **options)
    trainee.losses += losses
    if losses and not np.isfinite(losses[-1]):
        trainee.failure = _diverged(losses[-1], epoch)


def _finish_pixels(trainee: Trainee, epoch: int) -> None:
    """The steps of a pixel ensemble on what is left at the end of an epoch."""
    started = time.perf_counter()
    if len(trainee.pool):
        _learn_pixels(trainee, epoch)
    trainee.seconds += time.perf_counter() - started
    if not trainee.losses:
        trainee.failure = f"fewer than {BATCH_PX} pixels of the training images count; extract more images"


def _diverged(loss: float, epoch: int) -> str:
    return f"the loss is {loss} in epoch {epoch}: training diverged; pass a smaller --lr"


@contextmanager
def dropout_of(device: torch.device, seed: Sequence[int]) -> Iterator[None]:
    """Within it, random numbers of a network are those of a seed; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


def _close_epoch(trainee: Trainee, epoch: int, val_loss: float, val: Scores) -> dict[str, Any]:
    """Keep the head if it is the best so far, write its history, save where it stands; gives the line of history."""
    line = {"epoch": epoch, "train_loss": float(np.mean(trainee.losses)), "val_loss": val_loss}
    line |= {f"val_{name}": getattr(val, name) for name in ("accuracy", "dice", "miou", "f1")}
    line["seconds"] = trainee.seconds
    trainee.epoch = epoch
    if trainee.config.keep == "last" or (val.dice or 0.0) > trainee.best:  # no Dice: every validation pixel is ignored
        trainee.best, trainee.best_epoch = val.dice or 0.0, epoch
        save_weights(trainee, trainee.run.weights)
    trainee.run.append_history(line)
    save_last(trainee)
    return line


def class_weights(pixels: np.ndarray, ignore: int | None) -> torch.Tensor:
    """(K,) counted pixels of each class -> the paper's weights 1 - N_c / N, (K,) float32; 0 for the ignored class.

    A class without pixels weighs 1, as the formula has it: no training pixel is of it.
    """
    weights = 1 - pixels / max(1, pixels.sum())
    weights[np.arange(len(pixels)) == (-1 if ignore is None else ignore)] = 0.0
    return torch.from_numpy(weights).float()
