"""The training loop: any number of heads trained together, each image read once per epoch for all of them."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch

from pathseg.store.features import FeatureStore
from pathseg.store.runtime.device import ieee_float32
from pathseg.store.sampling import Sampling
from pathseg.train.config import BATCH_PX, IMAGE, BaselineConfig, Config, HeadConfig
from pathseg.train.data.augment import apply_symmetry, apply_symmetry_to_features, symmetry
from pathseg.train.data.joined import JoinedStores
from pathseg.train.data.reader import Batch, FeatureReader, class_pixels, required_layers
from pathseg.train.data.splits import Splits, draw_views, first_views, run_splits, shared_sources, sources_of
from pathseg.train.heads.baselines import VGG16FCN8, ResUNet, start_from_imagenet
from pathseg.train.heads.inference import score
from pathseg.train.heads.pixel_ensemble import PixelEnsemble, train_on_buffer
from pathseg.train.heads.scalar_mix import ScalarMixHead
from pathseg.train.runs.folder import LAST, RunFolder
from pathseg.train.runs.record import Epoch, ImageLoss, LayerWeight, Metrics, RunConfig, RunData, Source, SplitScores
from pathseg.train.training.checkpoint import (
    TrainingState,
    keep_best,
    load_best,
    load_last,
    new_training_state,
    save_best,
    save_last,
    save_weights,
    seed_of,
    seeded,
)
from pathseg.train.training.evaluation import image_losses, pixel_loss, score_split, tune_objects, validate
from pathseg.train.training.initial_weights import initial_run_images, load_initial_weights

OnEpoch = Callable[[RunFolder, Epoch], None]


@ieee_float32()
def train_heads(
    stores: FeatureStore | JoinedStores,
    runs: Sequence[tuple[Config, RunFolder]],
    *,
    device: str = "cpu",
    memory_bytes: int | None = None,
    without: Collection[int] = (),
    on_epoch: OnEpoch = lambda run, epoch: None,
) -> list[TrainingState]:
    """Train heads (or baselines) together and score them on the test splits.

    Every image is read once per epoch, whatever the number of heads, and each head comes out as if it had been trained
    alone. Pixel-wise cross-entropy, Adam, constant learning rate (section 4 of the paper). The epoch with the best
    validation Dice is kept, of a pixel ensemble and without validation images the last. Of a group of views each
    epoch draws one, the same for all heads; class weights count all views. An interrupted run resumes after its
    last finished epoch with the same result; on a GPU up to rounding, since PyTorch's loss and the gradient of its
    bilinear upsampling add in no fixed order there. A head whose loss is not finite is given up (`failure` says why),
    the others go on.

    memory_bytes: limit for features kept in memory, None for half of the free memory. without: indices of images that
    are left out. on_epoch: called with each run and each line of its history.jsonl.

    Raises ValueError when settings that heads share differ (`reading_settings`), when the images cannot be split, or
    when a folder holds an unfinished run of other settings or data; Incomplete when the store lacks features.
    """
    # plan: who trains on what, and where each run goes on
    shared = _require_same_reading([settings for settings, _ in runs])
    stores = JoinedStores.of(stores)
    store = stores.images
    splits, epoch_images = run_splits(store, shared, without=without)
    pixels = class_pixels(store, splits.train)  # (K,)
    required = required_layers(settings for settings, _ in runs)
    reader = FeatureReader(stores, required, device=torch.device(device), memory_bytes=memory_bytes)
    states = [_prepare(stores, settings, run, splits, pixels, torch.device(device)) for settings, run in runs]

    for epoch in range(1, max(settings.epochs for settings, _ in runs) + 1):
        training = [state for state in states if state.unfinished and state.epoch < epoch]
        if not training:
            continue

        # train: one step of every head on each batch that is read
        for state in training:
            state.losses.clear()
            state.image_losses.clear()
        order = _epoch_order(store, splits, seed=shared.split_seed, epoch=epoch, count=epoch_images)
        for step, batch in enumerate(reader.batches(order, shared.batch_size)):
            for state in training:
                started = time.perf_counter()
                if isinstance(state.head, PixelEnsemble):
                    _pixel_step(state, batch, store, epoch=epoch, step=step)
                else:
                    _train_step(state, batch, store, epoch=epoch, step=step)
                state.seconds += time.perf_counter() - started
            training = [state for state in training if state.failure is None]
            if not training:
                break
        for state in training:
            if isinstance(state.head, PixelEnsemble):
                started = time.perf_counter()
                _finish_pixel_epoch(state, epoch)
                state.seconds += time.perf_counter() - started
        training = [state for state in training if state.failure is None]
        if not training:
            continue

        # evaluate on the validation images, and record the epoch
        for state, (val_loss, scores) in zip(training, validate(training, reader, splits.val), strict=True):
            # the log of 0 of an ensemble is no failure
            if splits.val and not np.isfinite(val_loss) and not isinstance(state.head, PixelEnsemble):
                state.failure = _diverged(val_loss, epoch)
                continue
            line = Epoch(
                epoch=epoch, train_loss=float(np.mean(state.losses)),
                val_loss=val_loss if splits.val else None, val_accuracy=scores.accuracy, val_dice=scores.dice,
                val_miou=scores.miou, val_f1=scores.f1, seconds=state.seconds, steps=len(state.losses),
            )  # fmt: skip
            state.epoch = epoch
            dice = scores.dice or 0.0  # None where every validation pixel is ignored
            if state.settings.keep == "last" or not splits.val or dice > state.best:
                state.best, state.best_epoch = dice, epoch
                save_best(state)
            state.run.append_history(line)
            save_last(state)
            keep_best(state)
            on_epoch(state.run, line)

    # score the kept epoch of each head: validation images choose how its objects are post-processed, then the test
    # splits; and finish the runs
    finished = [state for state in states if state.failure is None]
    for state in finished:
        save_weights(state, state.run.last_weights)
        load_best(state)
    scored: list[dict[str, SplitScores]] = [{} for _ in finished]
    tuned = tune_objects(finished, reader, splits.val)
    rules = [None if tuning is None else tuning.rule for tuning in tuned]
    for name, indices in splits.tests.items() if finished else ():
        found = score_split(finished, reader, indices, constant=int(pixels.argmax()), rules=rules)
        for own, split in zip(scored, found, strict=True):
            own[name] = split
    for state, own, tuning in zip(finished, scored, tuned, strict=True):
        state.run.write_metrics(
            Metrics(
                best_epoch=state.best_epoch, epochs=state.epoch, seconds=state.seconds, bytes_read=reader.bytes_read,
                heads_from_one_read=len(finished), test_split=store.contents.test_split, splits=own,
                constant_class=store.classes[int(pixels.argmax())], layer_weights=_layer_weights(state),
                sha256=state.run.weights_digests(), object_tuning=tuning,
                train_losses=tuple(ImageLoss(store.ids[i], loss) for i, loss in sorted(state.best_losses.items())),
            )
        )  # fmt: skip
        (state.run.path / LAST).unlink(missing_ok=True)
    return states


def reading_settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide which images are read and in which order: the same for heads trained together."""
    shared = {name: getattr(config, name) for name in ("batch_size", "val_fraction", "split_seed", "train_images")}
    return shared if config.train_images == "all" else {**shared, "seed": config.seed}  # draws the subset of images


def _layer_weights(state: TrainingState) -> tuple[LayerWeight, ...]:
    """Return the weights that a scalar mix learned; empty for other heads."""
    if not isinstance(state.head, ScalarMixHead):
        return ()
    weights = state.head.layer_weights().items()
    return tuple(LayerWeight(layer.source, layer.t, layer.block, weight) for layer, weight in weights)


def _require_same_reading(configs: Sequence[Config]) -> Config:
    """Return the first of them. Raises ValueError when they differ in a setting that all heads share."""
    first = configs[0]
    for other in configs[1:]:
        there = reading_settings(other)
        for name, value in reading_settings(first).items():
            if value != there[name]:
                raise ValueError(f"{name} must be the same for heads trained together, got {value} and {there[name]}; "
                                 "train them in two calls")  # fmt: skip
    return first


def _epoch_order(store: FeatureStore, splits: Splits, *, seed: int, epoch: int, count: int) -> list[int]:
    """Return the indices of the images that an epoch trains on, in its order: `count`, repeated where there are fewer.

    Repeated images come in rounds, each of all images in an order of its own.
    """
    drawn = draw_views(store, splits.train, seed=seed, epoch=epoch)
    generator = np.random.default_rng([seed, epoch])
    order: list[int] = []
    while len(order) < count:
        order += generator.permutation(drawn).tolist()
    return order[:count]


def _prepare(
    stores: JoinedStores, settings: Config, run: RunFolder, splits: Splits, pixels: np.ndarray, device: torch.device
) -> TrainingState:
    """Create the training state of a run: a new head in a fresh folder, or an unfinished run after its last epoch.

    Raises ValueError when the folder holds an unfinished run of other settings, another store or other images.
    """
    weights = class_weights(pixels, stores.images.ignore).to(device) if settings.class_weights == "balanced" else None
    state = new_training_state(stores, settings, run, class_weights=weights, device=device)
    parameters = sum(p.numel() for p in state.head.parameters())
    config = run_config(stores, settings, splits, parameters=parameters, device=str(device))
    if not (run.path / LAST).is_file():
        if isinstance(settings, BaselineConfig) and settings.weights == "imagenet":
            assert isinstance(state.head, ResUNet | VGG16FCN8)
            start_from_imagenet(state.head, settings.network)
        if isinstance(settings, HeadConfig) and settings.initial_weights is not None:
            load_initial_weights(state.head, stores, settings)
        run.begin(config)
        return state
    begun = run.read_config()
    for differs, what in (
        (begun.data.digest != config.data.digest, "was begun on other data than that of these stores"),
        (begun.settings != settings, "holds an unfinished run of other settings"),
        (begun.data.images != config.data.images, "was begun on other images of this store"),  # others are complete now
    ):
        if differs:
            raise ValueError(f"{run.path} {what}; delete it or pass --name")
    load_last(state)
    keep_best(state)
    run.cut_history(state.epoch)
    return state


def run_config(stores: JoinedStores, settings: Config, splits: Splits, *, parameters: int, device: str) -> RunConfig:
    """Return the content of config.json: the settings, the data of the run, the versions that ran."""
    store, contents = stores.images, stores.images.contents
    data = RunData(
        sources=tuple(_source(one, settings, number) for number, one in enumerate(stores.stores)),
        classes=contents.classes,
        background=contents.background,
        ignore=contents.ignore,
        sampling=Sampling.of(contents),
        test_split=contents.test_split,
        images={name: tuple(store.ids[i] for i in indices) for name, indices in splits.named().items()},
        shared_sources=shared_sources(store, splits),
        train_images=len(first_views(store, splits.train)),
        patch_bytes=stores.image_bytes(layer for layer in settings.layers if layer != IMAGE) // contents.grid.patches,
        colours=contents.colours,
        image_sources={name: own for name in ("train", "val") if (own := sources_of(store, splits.named()[name]))},
        ancestors=initial_run_images(stores, settings),
    )
    return RunConfig(settings, data, parameters, versions(), device)


def _source(store: FeatureStore, settings: Config, number: int) -> Source:
    """Return the record of a store, the joined one of this number."""
    contents = store.contents
    read = {layer.block: contents.blocks[layer.block].channels for layer in settings.layers if layer.source == number}
    return Source(str(store.location), store.digest(), contents.key, contents.model_trained, read)


def versions() -> dict[str, str]:
    """Return the versions of pathseg and of the libraries that its numbers depend on."""
    return {name: importlib.metadata.version(name) for name in ("pathseg", "torch", "zarr", "numpy")}


def _train_step(state: TrainingState, batch: Batch, store: FeatureStore, *, epoch: int, step: int) -> None:
    """Take one step of Adam; when the loss is not finite, set `failure` and leave the head unchanged."""
    settings, grid = state.settings, store.contents.grid
    features, masks = batch.features, batch.masks
    if settings.augment == "flips":
        number = symmetry(grid, seed=settings.seed, epoch=epoch, step=step)
        features = apply_symmetry_to_features({layer: features[layer] for layer in settings.layers}, grid, number)
        masks = apply_symmetry(masks, number)
    state.head.train()
    with seeded(masks.device, seed_of([settings.seed, epoch, step])):  # dropout of the baselines
        scores = score(state.head, features, grid, layers=settings.layers, precision=settings.precision)  # (N, K, H, W)
    loss = pixel_loss(scores, masks, weights=state.class_weights, ignore=store.ignore)
    value = loss.item()
    if not math.isfinite(value):
        state.failure = _diverged(value, epoch)
        return
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.losses.append(value)
    of_images = (
        [value] if len(masks) == 1 else image_losses(scores, masks, weights=state.class_weights, ignore=store.ignore)
    )
    state.image_losses.update(zip(batch.indices, of_images, strict=True))


def _pixel_step(state: TrainingState, batch: Batch, store: FeatureStore, *, epoch: int, step: int) -> None:
    """Draw pixels for a pixel ensemble, and train it once enough are drawn."""
    settings = state.settings
    assert isinstance(settings, HeadConfig)
    own = {layer: batch.features[layer] for layer in settings.layers}
    seed = [settings.seed, epoch, step]
    state.pixels.draw(own, batch.masks, store.contents.grid, count=settings.pixels, ignore=store.ignore, seed=seed)
    if state.pixels.full:
        _train_on_buffer(state, epoch)


def _train_on_buffer(state: TrainingState, epoch: int) -> None:
    """Take the steps of a pixel ensemble on the pixels drawn so far."""
    assert isinstance(state.head, PixelEnsemble)
    seed = [state.settings.seed, epoch, len(state.losses)]
    weights = state.class_weights
    losses = train_on_buffer(state.pixels, state.head, state.optimizer, epoch=epoch, weights=weights, seed=seed)
    state.losses += losses
    if losses and not np.isfinite(losses[-1]):
        state.failure = _diverged(losses[-1], epoch)


def _finish_pixel_epoch(state: TrainingState, epoch: int) -> None:
    """Train a pixel ensemble on the pixels that are left at the end of an epoch."""
    if len(state.pixels):
        _train_on_buffer(state, epoch)
    if not state.losses:
        state.failure = f"fewer than {BATCH_PX} pixels of the training images count; extract more images"


def _diverged(loss: float, epoch: int) -> str:
    return f"the loss is {loss} in epoch {epoch}: training diverged; pass a smaller --lr"


def class_weights(pixels: np.ndarray, ignore: int | None) -> torch.Tensor:
    """Return the paper's class weights 1 - N_c / N, (K,) float32, of counted pixels (K,); 0 for the ignored class.

    A class without pixels weighs 1, as the formula has it: no training pixel is of it.
    """
    weights = 1 - pixels / max(1, pixels.sum())
    weights[np.arange(len(pixels)) == (-1 if ignore is None else ignore)] = 0.0
    return torch.from_numpy(weights).float()
